"""An engine in this process, asked and waited for."""

import threading

import pytest

from uia_lab.engine.frames import Done, Failed, Load, Piece, Submit


class Asked:
    """Runs an engine here: its frames come back as a list, an error frame as it is."""

    def __init__(self):
        self._frames = {}
        self._ended = {}
        self._count = 0

    def emit(self, frame):
        self._frames[frame.rid].append(frame)
        if isinstance(frame, (Done, Failed)):
            self._ended[frame.rid].set()

    def start(self, engine, task, inputs, **parameters):
        self._count += 1
        rid = f"r{self._count}"
        self._frames[rid], self._ended[rid] = [], threading.Event()
        engine.submit(Submit(rid, task, "tiny", inputs, None, parameters))
        return rid

    def wait(self, rid):
        assert self._ended[rid].wait(60)
        return self._frames[rid]

    def result(self, engine, task, inputs, **parameters):
        piece, end = self.wait(self.start(engine, task, inputs, **parameters))
        assert isinstance(piece, Piece)
        assert isinstance(end, Done)
        return piece.result["value"]


@pytest.fixture(scope="module")
def asked():
    return Asked()


@pytest.fixture(scope="module")
def pipeline(asked, tmp_path_factory):
    """Builds a tiny model with a function and loads it for a task."""
    from uia_lab.engine.pipelines import PipelineEngine

    def load(task, build, *args, **options):
        folder = tmp_path_factory.mktemp(task)
        parts = build(folder, *args, **options)
        return PipelineEngine(Load("transformers", str(folder), "tiny", 4, 64, task), asked.emit, 1), parts

    return load
