"""``lab.models``: a list of names that loads and unloads, over a server and in this process."""

import threading

import pytest
from anyio.from_thread import start_blocking_portal

from tests.engine import tiny
from uia_lab.access.keys import new_key
from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.errors import BadRequest, InsufficientMemory, ModelNotFound
from uia_lab.doors.application import HttpServer
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.notebook.async_lab import AsyncLab
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.load_progress import TextProgress, words
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.models import Models, cells, still
from uia_lab.notebook.widgets.load_bar import LoadBar
from uia_lab.notebook.widgets.model_manager import ModelManager
from uia_lab.unified_inference_service import UnifiedInferenceService

SMALL = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-classifier").mkdir()
    tiny.bert(folder / "tiny-classifier", "BertForSequenceClassification")
    return folder


@pytest.fixture
def house(models, folder):
    config = InferenceServiceConfig(
        backend_health_checks=False, hf_enable_hardware_detection=False, model_folders=[str(folder)]
    )
    return UnifiedInferenceService(config, manager=BackendManager(config))


@pytest.fixture(params=["server", "local"])
def lab(request, house):
    if request.param == "local":
        with Lab(InProcessTransport(house)) as lab:
            yield lab
        return
    with start_blocking_portal() as portal:
        portal.call(lambda: house.start(listen=False, store=False))
        doors = HttpServer(house, "127.0.0.1", 0)
        portal.call(doors.start)
        key = new_key()
        house.keys.add(key, Principal("tests", frozenset({"admin"})))
        with Lab(HttpTransport(doors.url, key)) as lab:
            yield lab
        portal.call(doors.stop)
        portal.call(house.stop)


def test_a_list_that_loads_and_unloads(lab, folder, capsys):
    names = lab.models
    assert isinstance(names, list)
    assert SMALL in names
    known = {row["model_id"]: row for row in names.details()}
    assert known[SMALL]["state"] == "unloaded"
    assert known[SMALL]["estimated_bytes"] > known[SMALL]["size"] / 2, "known before the load"
    skill = known[str(folder / "tiny-classifier")]
    assert (skill["state"], skill["task"]) == ("loadable", "text-classification")
    assert skill["size"] > 0
    assert skill["estimated_bytes"] > skill["size"]

    loaded = names.load("smollm2", keep_alive=600)
    assert (loaded["model_id"], loaded["state"], loaded["keep_alive"]) == (SMALL, "loaded", 600)
    assert "is loaded on cpu" in repr(loaded)
    assert "after 10 min idle" in repr(loaded)
    told = capsys.readouterr().err
    assert "smollm2: finding it" in told
    assert "loading into memory" in told
    assert names.unload(SMALL) == [loaded["backend_id"]]
    assert names.unload(SMALL) == []


def test_what_cannot_be(lab, house, capsys):
    names = lab.models
    with pytest.raises(ModelNotFound):
        names.load("no-such-model")
    with pytest.raises(ModelNotFound, match="no local model"):
        names.unload("no-such-model")
    with pytest.raises(BadRequest):
        names.load("smollm2", engine="pickle", show=False)
    house.models._memory = lambda: 50_000_000
    with pytest.raises(InsufficientMemory, match=r"needs 0\.\d+ GB and 0\.05 GB are free"):
        names.load("smollm2")
    assert "not loaded (InsufficientMemory)" in capsys.readouterr().err


def until(view, condition, seconds=50):
    """Waits until the traits of a widget satisfy a condition."""
    there = threading.Event()
    view.observe(lambda _: condition() and there.set(), ["rows", "loads", "hardware", "trouble"])
    if not condition():
        assert there.wait(seconds), (view.loads, view.trouble)


def row(view, name=SMALL):
    return next((each for each in view.rows if each["model_id"] == name), {})


def test_the_manager_widget(lab, house):
    view = ModelManager(lab._transport, lab._async.spawn)
    assert view.rows == []
    view._handle_custom_msg({"type": "nonsense"}, [])
    view._handle_custom_msg({"type": "look"}, [])
    until(view, lambda: row(view))
    view._handle_custom_msg({"type": "hardware"}, [])
    until(view, lambda: view.hardware.get("available_bytes"))
    stages = []
    view.observe(lambda change: stages.extend(change["new"].get("smollm2", {}).items()), "loads")
    view._handle_custom_msg({"type": "load", "model_id": "smollm2", "keep_alive": 300}, [])
    until(view, lambda: row(view).get("state") == "loaded")
    assert ("stage", "loading") in stages
    assert view.loads == {}
    assert row(view)["keep_alive"] == 300
    view._handle_custom_msg({"type": "unload", "model_id": SMALL}, [])
    until(view, lambda: row(view).get("state") == "unloaded")
    house.models._memory = lambda: 50_000_000
    view._handle_custom_msg({"type": "load", "model_id": "smollm2"}, [])
    until(view, lambda: "error" in view.loads.get("smollm2", {}))
    assert view.loads["smollm2"]["code"] == "insufficient_memory"
    assert "0.05 GB are free" in view.loads["smollm2"]["error"]
    view._handle_custom_msg({"type": "dismiss", "model_id": "smollm2"}, [])
    until(view, lambda: view.loads == {})
    bundle = view._repr_mimebundle_()
    assert SMALL in bundle["text/plain"]
    view.close()


def test_a_closed_lab_is_told(lab):
    view = ModelManager(lab._transport, lab._async.spawn)
    lab.close()
    view._handle_custom_msg({"type": "look"}, [])
    assert "closed" in view.trouble
    view.close()


async def test_the_asynchronous_face(house):
    async with AsyncLab(InProcessTransport(house)) as lab:
        names = await lab.models
        loaded = await names.load("smollm2", show=False)
        assert loaded["state"] == "loaded"
        assert await names.unload("smollm2") == [loaded["backend_id"]]
        assert any(each["model_id"] == SMALL for each in await names.details())
        assert SMALL in names._repr_mimebundle_()["text/plain"]


def test_forms_of_a_saved_notebook():
    rows = [
        {
            "model_id": "<b>",
            "state": "loaded",
            "active": 2,
            "keep_alive": 0,
            "estimated_bytes": 1_500_000_000,
        },
        {"model_id": "x", "state": "not loadable", "reason": "no weights", "size": 5_000_000},
    ]
    forms = still(rows, ["<b>", "remote"])
    assert "<b>" not in forms["text/html"].replace("<b>", "", 0) or "&lt;b&gt;" in forms["text/html"]
    assert "1.50 GB" in forms["text/plain"]
    assert "remote" in forms["text/plain"]
    assert cells(rows[0])[-2:] == ["2", "never"]
    assert "no weights" in cells(rows[1])[2]
    assert still([]) == {"text/plain": "no models", "text/html": "<p>no models</p>"}


async def test_the_bar_takes_many_steps_and_shows_the_last():
    bar = LoadBar("m")
    seen = []
    bar.observe(lambda change: seen.append(change["new"]["done"]), "step")
    for done in range(1000):
        bar.take({"stage": "fetching", "done": done, "total": 1000})
    bar._coalescer.flush()
    assert seen[-1] == 999
    assert len(seen) < 20
    assert "m" in bar.still("too little")["text/html"]
    bar.close()


def test_steps_in_words(capsys):
    assert (
        words({"stage": "fetching", "done": 30_000_000, "total": 60_000_000})
        == "fetching  50 % (30 of 60 MB)"
    )
    progress = TextProgress("m")
    for done in range(3):
        progress.step({"stage": "fetching", "done": done, "total": 3})
    progress.failed(RuntimeError())
    assert capsys.readouterr().err.count("\n") == 2, "a line a stage where it is no terminal"


def test_models_is_plain_where_nothing_is_asked():
    assert Models(["a", "b"], None, None, None) == ["a", "b"]
