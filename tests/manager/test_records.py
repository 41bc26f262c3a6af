"""Every finished request is told once, with what happened to it."""

import asyncio

import pytest

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import BackendFailed, Cancelled, ModelNotFound
from uia_lab.domain.events import Finished, Usage


@pytest.fixture
def records(manager):
    kept = []
    manager.on_record = kept.append
    return kept


async def test_a_good_request(manager, scripted, records):
    manager.register_backend("a", "gpu", "A", scripted("Once", " upon", supported_models={"m"}))
    result = await manager.infer("generation", "m", "secret prompt")
    (record,) = records
    assert (record.id, record.outcome, record.backend_id) == (result.request_id, "ok", "a")
    assert (record.model, record.task, record.principal) == ("m", "text-generation", "local")
    assert (record.input_tokens, record.output_tokens, record.estimated) == (3, 2, False)
    assert record.chunks == 2
    assert 0 < record.first_token_s <= record.latency_s
    assert record.decision["winner"] == "a"
    assert record.instance_id == manager.instance_id
    assert record.input_bytes == len('"secret prompt"')
    assert "secret" not in repr(record), "prompts are kept only when asked for"


@pytest.mark.parametrize(
    ("told", "counted"), [((-5000, 1), (0, 1)), ((10**30, 2**63), (2**53, 2**53)), ((7, 2**53), (7, 2**53))]
)
async def test_counts_that_no_answer_has_are_not_believed(manager, scripted, records, told, counted):
    """A budget would grow by a negative one, and a store takes no huge one."""

    class Boasting(scripted):
        async def infer(self, request):
            async for event in super().infer(request):
                boast = Finished("x", Usage(*told, cached_tokens=-1))
                yield boast if isinstance(event, Finished) else event

    manager.register_backend("a", "gpu", "A", Boasting("x", supported_models={"m"}))
    usage = (await manager.infer("generation", "m", "x")).usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (*counted, 0)
    assert (records[0].input_tokens, records[0].output_tokens) == counted


async def test_prompts_are_kept_when_asked_for(manager, scripted, records):
    manager.log_prompts = True
    manager.register_backend("a", "gpu", "A", scripted("Once"))
    await manager.infer("generation", inputs="prompt")
    assert (records[0].inputs, records[0].result) == ("prompt", "Once")


async def test_failed_and_rejected_ones(manager, scripted, records):
    manager.register_backend("a", "gpu", "A", scripted(BackendFailed("boom"), supported_models={"m"}))
    with pytest.raises(BackendFailed):
        await manager.infer("generation", "m", "x")
    with pytest.raises(ModelNotFound):
        await manager.infer("generation", "n", "x")
    failed, rejected = records
    assert (failed.outcome, failed.error, failed.message) == ("failed", "backend_failed", "boom")
    assert failed.attempts[0].backend_id == "a"
    assert (rejected.outcome, rejected.error, rejected.backend_id) == ("rejected", "model_not_found", None)


async def test_a_cancelled_one_is_accounted_for(manager, scripted, records):
    backend = scripted("Once", " upon", asyncio.Event())
    manager.register_backend("a", "gpu", "A", backend)
    stream = manager.stream("generation", inputs="four words of prompt")
    task = asyncio.create_task(stream.result())
    await backend.reached.wait()
    manager.cancel(stream.request_id)
    with pytest.raises(Cancelled):
        await task
    (record,) = records
    assert (record.outcome, record.error) == ("cancelled", "cancelled")
    assert (record.output_tokens, record.estimated) == (3, True)
    assert record.input_tokens == 5


async def test_the_time_in_the_queue_is_told(manager, scripted, records):
    release = asyncio.Event()
    backend = scripted("x", release)
    manager.register_backend("a", "gpu", "A", backend, max_concurrency=1)
    tasks = [asyncio.create_task(manager.infer("generation", inputs="x")) for _ in range(2)]
    await backend.reached.wait()
    while len(manager.router.queue) < 1:
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks)
    assert records[0].queued_s == 0.0
    assert records[1].queued_s > 0.0


async def test_a_log_that_fails_costs_nobody_an_answer(manager, scripted, caplog):
    def broken(record):
        raise OSError("disk full")

    manager.on_record = broken
    manager.register_backend("a", "gpu", "A", scripted("x"))
    assert (await manager.infer("generation", inputs="x")).text == "x"
    assert "could not be recorded" in caplog.text


async def test_tokens_are_estimated_and_marked_where_nobody_tells(manager, scripted, records):
    class Silent(scripted):
        async def infer(self, request):
            from uia_lab.domain.events import Finished

            async for event in super().infer(request):
                yield Finished(event.result) if isinstance(event, Finished) else event

    manager.register_backend("a", "gpu", "A", Silent("Once", " upon"))
    result = await manager.infer("generation", inputs="four words of prompt")
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.estimated) == (5, 2, True)


async def test_an_answer_in_one_piece_has_no_rate_of_tokens(manager, scripted):
    able = BackendCapabilities(supported_tasks={"text-generation"})
    manager.register_backend("whole", "gpu", "A", lambda inputs: "a b c d", able)
    manager.register_backend("streamed", "gpu", "B", scripted("a", " b", " c"))
    for name in ("whole", "streamed"):
        await manager.infer("generation", inputs="x", backend_id=name)
    report = manager.get_backend_status_report()
    rates = {entry["id"]: entry["metrics"].get("tokens_per_second") for entry in report["backends"]}
    assert rates["whole"] is None
    assert rates["streamed"] > 0
