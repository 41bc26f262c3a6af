import threading
import time

import numpy as np
import pytest

from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


@pytest.fixture
def lab(service):
    with Lab(InProcessTransport(service)) as lab:
        yield lab


def test_says_where_it_is(lab):
    assert "this kernel" in lab.where
    assert lab.instance_id == lab.status()["instance_id"]
    assert {"w", "b"} <= set(lab.models)


def test_generates(lab):
    answer = lab.generate("one two three", model="w")
    assert answer.text == "one two three "
    assert (answer.state, answer.backend, answer.finish_reason) == ("done", "words", "stop")
    assert answer.usage.output_tokens == 3
    assert [attempt.outcome for attempt in answer.attempts] == ["ok"]
    assert 0 < answer.time_to_first_token <= answer.elapsed


def test_parameters_reach_the_backend(lab):
    assert lab.generate("one two three", model="w", max_tokens=2, temperature=0).text == "one two "


def test_without_waiting(lab):
    answer = lab.generate("slowly " + "on " * 20, model="w", wait=False)
    assert not answer.done
    assert answer.wait(10).text.startswith("slowly on")


def test_stop_ends_the_request_as_cancelled(lab):
    answer = lab.generate("slowly " + "on " * 500, model="w", wait=False)
    deadline = time.monotonic() + 50
    while not answer.text and time.monotonic() < deadline:
        time.sleep(0.01)
    answer.stop()
    answer.wait(50)
    assert answer.state == "stopped"
    assert answer.text.startswith("slowly")
    while lab.status()["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lab.status()["total_cancelled"] == 1


def test_a_failure_is_raised_with_its_type(lab):
    with pytest.raises(InferenceError, match="out of paper"):
        lab.generate("x", model="b")
    with pytest.raises(InferenceError, match="no-such-model"):
        lab.generate("x", model="no-such-model")


def test_a_detached_failure_is_kept(lab):
    answer = lab.generate("x", model="b", wait=False).wait(10)
    assert answer.state == "failed"
    with pytest.raises(InferenceError):
        answer.raise_for_error()


def test_bad_arguments(lab):
    with pytest.raises(BadRequest, match="prompt"):
        lab.generate("")
    with pytest.raises(BadRequest, match="prefer"):
        lab.generate("x", prefer="tpu")
    with pytest.raises(BadRequest, match="texts"):
        lab.embed([1])


def test_embeds(lab):
    one, several = lab.embed("abc"), lab.embed(["a", "bc"])
    assert (one.shape, several.shape) == ((2,), (2, 2))
    assert several.dtype == np.float32
    np.testing.assert_array_equal(several[:, 0], [1, 2])
    assert lab.embed([]).shape == (0, 0)


def test_closing_ends_everything(service):
    before = {thread for thread in threading.enumerate() if thread.name == "uia-lab"}
    lab = Lab(InProcessTransport(service))
    answer = lab.generate("slowly " + "on " * 500, model="w", wait=False)
    lab.close()
    lab.close()
    assert answer.state == "stopped"
    assert not service.ready
    assert {thread for thread in threading.enumerate() if thread.name == "uia-lab"} == before
    with pytest.raises(RuntimeError, match="closed"):
        lab.status()
    assert "closed" in repr(lab)


def test_an_error_that_is_not_ours_still_ends_the_record(lab, monkeypatch):
    class Torn:
        request_id = None

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise LookupError("torn")

        async def aclose(self):
            pass

    monkeypatch.setattr(lab._transport, "stream", lambda request: Torn())
    with pytest.raises(BackendFailed, match="LookupError: torn"):
        lab.generate("x")
