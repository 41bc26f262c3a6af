"""A request moves on before its first content, and never after."""

import pytest

from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import BackendFailed, BadRequest, DeadlineExceeded, RateLimited, StreamInterrupted
from uia_lab.domain.events import Chunk, Finished, Started


@pytest.fixture
def first_then(manager, scripted):
    """Registers a first backend that is always chosen first, and a second one."""

    def register(first, second=None):
        manager.set_strategy("round_robin")
        manager.register_backend("first", "gpu", "First", first, weight=100.0)
        second = second or scripted("saved")
        manager.register_backend("second", "gpu", "Second", second)
        return second

    return register


@pytest.mark.parametrize(
    "fault", [BackendFailed("boom"), RateLimited("slow", retry_after=1), RuntimeError("bug"), OSError("gone")]
)
async def test_it_moves_on_silently_before_the_first_content(manager, scripted, first_then, fault):
    first = scripted(fault)
    first_then(first)
    result = await manager.infer("generation", inputs="x")
    assert result.text == "saved"
    assert [item.backend_id for item in result.attempts] == ["first", "second"]
    assert result.attempts[0].outcome == ("rejected" if isinstance(fault, RateLimited) else "failed")
    assert result.attempts[1].outcome == "ok"
    assert first.closed == 1
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"]) == (1, 1)


async def test_only_the_backend_that_answers_is_announced(manager, scripted, first_then):
    first_then(scripted(BackendFailed("boom")))
    events = [event async for event in manager.stream("generation", inputs="x")]
    assert [type(event) for event in events] == [Started, Chunk, Finished]
    assert (events[0].backend_id, events[0].attempt) == ("second", 2)


async def test_an_answer_without_its_end_has_failed(manager, scripted, first_then):
    class Cut(scripted):
        async def infer(self, request):
            async for event in super().infer(request):
                if type(event).__name__ == "Finished":
                    return
                yield event

    first_then(Cut())
    result = await manager.infer("generation", inputs="x")
    assert "without saying that it was whole" in result.attempts[0].message


async def test_after_content_the_stream_is_interrupted(manager, scripted, first_then):
    second = first_then(scripted("Once", BackendFailed("cut")))
    stream = manager.stream("generation", inputs="x")
    assert [type(await anext(stream)) for _ in range(2)] == [Started, Chunk]
    with pytest.raises(StreamInterrupted, match="first broke off after 1 chunks: cut"):
        await anext(stream)
    assert second.requests == []
    assert manager.get_backend("first").status is BackendStatus.DEGRADED


async def test_a_callers_fault_is_not_tried_elsewhere(manager, scripted, first_then):
    second = first_then(scripted(BadRequest("temperature", param="temperature")))
    with pytest.raises(BadRequest):
        await manager.infer("generation", inputs="x")
    assert second.requests == []
    assert manager.get_backend("first").status is BackendStatus.HEALTHY
    report = manager.get_backend_status_report()
    assert (report["total_rejected"], report["total_failed"]) == (1, 0)


async def test_what_has_side_effects_is_not_tried_twice(manager, scripted, first_then):
    second = first_then(scripted(BackendFailed("boom"), side_effects=True))
    with pytest.raises(BackendFailed):
        await manager.infer("generation", inputs="x")
    assert second.requests == []


async def test_the_number_of_attempts_is_bounded(manager, scripted):
    for number in range(5):
        manager.register_backend(f"b{number}", "gpu", "B", scripted(BackendFailed(f"boom {number}")))
    with pytest.raises(BackendFailed):
        await manager.infer("generation", inputs="x", max_attempts=2)
    tried = sum(item.metrics.total_requests for item in manager.list_backends())
    assert tried == 2


async def test_one_deadline_over_everything(manager, scripted, first_then):
    import asyncio

    silent = scripted(asyncio.Event())
    second = first_then(silent)
    with pytest.raises(DeadlineExceeded):
        await manager.infer("generation", inputs="x", deadline_s=0.2)
    assert silent.closed == 1, "the work outside has ended"
    assert second.requests == []


async def test_a_silent_backend_is_left_for_another(manager, scripted, first_then, monkeypatch):
    import asyncio

    monkeypatch.setattr("uia_lab.manager.attempt.LOCAL_FIRST_CHUNK_S", 0.1)
    monkeypatch.setattr("uia_lab.manager.attempt.FIRST_CHUNK_S", 0.1)
    first_then(scripted(asyncio.Event()))
    result = await manager.infer("generation", inputs="x")
    assert result.text == "saved"
    assert result.attempts[0].error == "backend_timeout"
