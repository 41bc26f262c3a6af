"""The Python samples of the specification run as they stand, with only the package name changed."""

import ast
import inspect
import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from uia_lab.inference_backend_manager import get_backend_manager

TEXT = (Path(__file__).parent / "spec" / "unified-inference-backend.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", TEXT.replace("ipfs_accelerate_py", "uia_lab"), re.DOTALL)


async def run(source, **names):
    """Runs a sample that may await at its top level; gives what it defined."""
    code = compile(source, "specification", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(code, names)
    if inspect.iscoroutine(outcome):
        await outcome
    return names


def samples(part):
    found = [source for source in SAMPLES if part in source]
    assert found, f"the specification has no sample with {part!r}"
    return found


@pytest.fixture
async def shared_manager(monkeypatch):
    monkeypatch.setattr("uia_lab.inference_backend_manager._shared", None)
    yield
    await get_backend_manager().aclose()


async def test_the_manager(shared_manager):
    (source,) = samples("# Register a backend")

    async def my_backend_instance(inputs):
        yield inputs

    names = await run(source, my_backend_instance=my_backend_instance)
    assert names["backend"].backend_id == "my_gpu_backend"
    assert names["backend"].metrics.current_queue_size == 0
    assert names["status"]["total_backends"] == 1
    result = await names["manager"].infer("text-generation", "gpt2", "hello")
    assert result.text == "hello"


@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded", "best_performance"])
async def test_the_strategies(shared_manager, strategy):
    (source,) = samples(f"'load_balancing': '{strategy}'")
    names = await run(source, get_backend_manager=get_backend_manager)
    assert names["manager"].strategy_name == strategy


async def test_the_service(shared_manager, caplog):
    (source,) = samples("start_unified_service(config)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    names = await run(source.replace("8000", str(port)))
    try:
        assert names["service"].ready
        assert names["backend_manager"].list_backends()
        assert str(port) in names["hf_server"].url
        assert "0.0.0.0" not in names["hf_server"].url, "the address given out can be connected to"
        part = names["service"].parts["libp2p"]
        assert part["state"] == ("running" if find_spec("libp2p") is not None else "failed")
        assert (names["p2p_node"] is not None) == (part["state"] == "running")
    finally:
        await names["service"].stop()


async def test_the_configurations():
    from uia_lab.unified_inference_service import InferenceServiceConfig

    sources = samples("InferenceServiceConfig(")
    assert len(sources) == 6
    for source in sources:
        if "start_unified_service" in source:
            continue
        complete = source.replace("[...]", "['/ip4/127.0.0.1/tcp/4001']")
        names = await run(complete, InferenceServiceConfig=InferenceServiceConfig)
        assert isinstance(names["config"], InferenceServiceConfig)
