"""The local engine against its peers: same weights, same prompts, one run, fp32 and greedy.

Ours through the REST door (transformers and llama.cpp) against ``generate`` one after the other, a static
batch, ``transformers serve`` with and without continuous batching, and xllamacpp's own server; embeddings
through the door against the micro-batcher alone; and the event loop's lag while nothing happens, while 16
streams run, and while a model loads. Goals: 0.95 of the best transformers-based server at 16 streams, 0.9 of
raw xllamacpp at one stream, 0.9 of the micro-batcher.

The safetensors are made out of the packaged GGUF file at the first run, for which ``gguf`` and ``accelerate``
have to be installed; ``transformers serve`` needs ``accelerate`` too.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp

from benchmarks.engine_load import chat, embeddings
from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.engine.catalogue import Catalogue
from uia_lab.engine.sources import converted, packaged
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.local_models import LoadOptions
from uia_lab.unified_inference_service import UnifiedInferenceService

TOKENS = 24
KEY = "uia-benchmark-0123456789"
NAME = "SmolLM2-135M-Instruct"
# The peers' threads wait as ours do: a figure shows the engine, not who suffers from a busy machine.
SAME = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def measured(*arguments: str) -> float:
    """A figure that a peer prints."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine_peers", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=400,
        env=SAME,
    ).stdout  # fmt: skip
    return float(json.loads(out.splitlines()[-1]))


@contextlib.contextmanager
def serving(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=SAME) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def until_healthy(port: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(120):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)


class Figures(dict[str, float]):
    """Figures by name, each printed as it comes."""

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        print(f"{name:28} {value:8.2f}", flush=True)


class Lag:
    """How late the event loop comes back from a sleep of a millisecond.

    Attributes:
        worst: The latest it came back, in seconds.
    """

    def __init__(self) -> None:
        self.worst = 0.0

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watches for as long as the block runs."""
        self.worst = 0.0
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begin - 0.001)


async def ours(folder_for_embeddings: str) -> dict[str, float]:
    """Figures through the REST door, and the loop's lag; server and clients share one process and loop."""
    figures = Figures()
    config = InferenceServiceConfig(hf_server_port=0, store_path=":memory:", queue_timeout=120.0)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    service.keys.add(KEY, Principal("benchmark", frozenset({"infer", "read"})))
    lag = Lag()
    async with service:
        server = service.get_hf_server()
        assert server is not None
        base = server.url + "v1"
        async with lag.watched():
            await asyncio.sleep(3)
        figures["lag idle, ms"] = lag.worst * 1e3
        async with lag.watched():
            await service.models.load(
                "smollm2", options=LoadOptions(engine="transformers", name="smol-torch", dtype="float32")
            )
        figures["lag loading, ms"] = lag.worst * 1e3
        await chat(base, "smol-torch", 2, 4, KEY)
        figures["ours transformers 1"], figures["first token 1, s"] = await chat(
            base, "smol-torch", 1, TOKENS, KEY
        )
        async with lag.watched():
            figures["ours transformers 16"], figures["first token 16, s"] = await chat(
                base, "smol-torch", 16, TOKENS, KEY
            )
        figures["lag streaming 16, ms"] = lag.worst * 1e3
        await service.models.unload("smol-torch")
        await service.models.load("smollm2", options=LoadOptions(concurrency=16, context_length=1024))
        await chat(base, NAME, 1, 4, KEY)
        figures["ours llama.cpp 1"], _ = await chat(base, NAME, 1, 4 * TOKENS, KEY)
        figures["ours llama.cpp 16"], _ = await chat(base, NAME, 16, TOKENS, KEY)
        await service.models.unload(NAME)
        await service.models.load("minilm")
        await embeddings(base, KEY)
        figures["ours embeddings"] = await embeddings(base, KEY)
    figures["micro-batcher"] = await asyncio.to_thread(measured, "embed", folder_for_embeddings)
    return figures


async def peers(folder: str, file: str) -> dict[str, float]:
    figures = Figures()
    for kind in ("generate", "static"):
        figures[kind] = await asyncio.to_thread(measured, kind, folder, str(TOKENS))
    for name, flags in (
        ("serve, continuous", ("--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "512",
                               "--cb-max-batch-tokens", "512")),
        ("serve, plain", ()),
    ):  # fmt: skip
        port = free_port()
        command = [str(Path(sys.executable).parent / "transformers"), "serve", *flags, "--port", str(port)]
        with serving(*command, "--host", "127.0.0.1", "--dtype", "float32", "--device", "cpu"):
            await until_healthy(port)
            await chat(f"http://127.0.0.1:{port}/v1", folder, 1, 4, plain=True)
            for streams in (1, 16):
                figures[f"{name} {streams}"], _ = await chat(
                    f"http://127.0.0.1:{port}/v1", folder, streams, TOKENS, plain=True
                )
    port = free_port()
    with serving(sys.executable, "-m", "benchmarks.engine_peers", "xllamacpp", file, str(port)):
        await until_healthy(port)
        base = f"http://127.0.0.1:{port}/v1"
        await chat(base, NAME, 1, 4)
        figures["xllamacpp 1"], _ = await chat(base, NAME, 1, 4 * TOKENS)
        figures["xllamacpp 16"], _ = await chat(base, NAME, 16, TOKENS)
    return figures


def main() -> int:
    models = Catalogue()
    gguf = packaged(models, "smollm2")
    folder = str(converted(gguf, models.cache_dir).fetch())
    figures = asyncio.run(ours(str(models.path("minilm").parent)))
    figures |= asyncio.run(peers(folder, str(gguf.path)))
    best = max(figures["serve, continuous 16"], figures["serve, plain 16"])
    ratios = {
        "16 streams / best transformers server (goal 0.95)": figures["ours transformers 16"] / best,
        "16 streams / static batch": figures["ours transformers 16"] / figures["static"],
        "16 streams / generate one by one": figures["ours transformers 16"] / figures["generate"],
        "1 stream / raw xllamacpp (goal 0.9)": figures["ours llama.cpp 1"] / figures["xllamacpp 1"],
        "16 streams / raw xllamacpp": figures["ours llama.cpp 16"] / figures["xllamacpp 16"],
        "embeddings / micro-batcher (goal 0.9)": figures["ours embeddings"] / figures["micro-batcher"],
    }
    for name, value in ratios.items():
        print(f"{name:52} {value:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
