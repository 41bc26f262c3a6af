"""The local engine against its peers: same weights, same prompts, one run, fp32 and greedy.

Ours through the REST door of ``python -m uia_lab serve`` against ``generate`` one after the other, a static
batch, ``transformers serve`` with and without continuous batching, and xllamacpp's own server; embeddings
through the door against the micro-batcher alone; and the event loop's lag while nothing happens, while 16
streams run, and while a model loads. Goals: 0.95 of the best transformers-based server at 16 streams, 0.9 of
raw xllamacpp at one stream, 0.9 of the micro-batcher.

Whoever is compared for a goal is up all the time and takes turns with us; a ratio is the median of the ratios
of each round, so that what else the machine does falls on both.

The safetensors are made out of the packaged GGUF file at the first run, for which ``gguf`` and ``accelerate``
have to be installed; ``transformers serve`` needs ``accelerate`` too.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

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
TORCH = "smol-torch"
# The peers' threads wait as ours do: a figure shows the engine, not who suffers from a busy machine.
SAME = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
CONTINUOUS = (
    "--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "512",
    "--cb-max-batch-tokens", "512",
)  # fmt: skip


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
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that talks by lines, ended at the end."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**SAME, **environment},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


async def until_healthy(port: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(180):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)


async def load(base: str, model: str, **options: Any) -> None:
    """Has our server load a model."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=300)) as session,
        session.post(f"{base}models/load", json={"model_id": model, "options": options}) as answer,
    ):
        if answer.status != 200:
            raise RuntimeError(f"{model}: {answer.status} {(await answer.text())[:500]}")


class Figures(dict[str, list[float]]):
    """Figures by name, in the order of the rounds; each is printed as it comes."""

    async def take(self, name: str, figure: Callable[[], Awaitable[float]]) -> None:
        """Takes one more figure of a name."""
        value = await figure()
        self.setdefault(name, []).append(value)
        print(f"{name:28} {value:8.2f}", flush=True)

    def ratio(self, mine: str, theirs: str) -> float:
        """The median of the ratios of each round; a peer that was measured once counts in each."""
        mines, others = self[mine], self[theirs]
        others = others if len(others) == len(mines) else others * len(mines)
        return statistics.median(a / b for a, b in zip(mines, others, strict=True))


class Lag:
    """How late the event loop comes back from a sleep of a millisecond.

    Attributes:
        worst: The latest it came back, in seconds.
    """

    def __init__(self) -> None:
        self.worst = 0.0

    @contextlib.asynccontextmanager
    async def watched(self, what: str) -> AsyncIterator[None]:
        """Watches for as long as the block runs, and prints it."""
        self.worst = 0.0
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
        print(f"{f'lag {what}, ms':28} {self.worst * 1e3:8.2f}", flush=True)

    async def _watch(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begin - 0.001)


async def lags() -> None:
    """The lag of a server's loop; the clients share it."""
    config = InferenceServiceConfig(hf_server_port=0, store_path=":memory:", queue_timeout=120.0)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    service.keys.add(KEY, Principal("benchmark", frozenset({"infer", "read"})))
    lag = Lag()
    async with service:
        server = service.get_hf_server()
        assert server is not None
        async with lag.watched("idle"):
            await asyncio.sleep(3)
        options = LoadOptions(engine="transformers", name=TORCH, dtype="float32")
        async with lag.watched("loading"):
            await service.models.load("smollm2", options=options)
        await chat(server.url + "v1", TORCH, 2, 4, KEY)
        async with lag.watched("streaming 16"):
            await chat(server.url + "v1", TORCH, 16, TOKENS, KEY)


def rate(base: str, model: str, streams: int, tokens: int, key: str | None) -> Callable[[], Awaitable[float]]:
    """Measures tokens a second; without a key the peer is asked for nothing it refuses."""

    async def figure() -> float:
        return (await chat(base, model, streams, tokens, key, plain=key is None))[0]

    return figure


async def compared(folder: str, file: str, minilm: str, rounds: int, store: str) -> Figures:
    """Ours and the peers of the goals, turn by turn."""
    figures = Figures()
    transformers, llama = free_port(), free_port()
    address = "http://127.0.0.1"
    with (
        running(
            sys.executable, "-m", "uia_lab", "serve", "--port", "0",
            UIA_LAB_SERVE_TOKEN=KEY, UIA_STORE_PATH=store,
        ) as server,
        running(
            str(Path(sys.executable).parent / "transformers"), "serve", *CONTINUOUS, "--port",
            str(transformers), "--host", "127.0.0.1", "--dtype", "float32", "--device", "cpu",
        ),
        running(sys.executable, "-m", "benchmarks.engine_peers", "xllamacpp", file, str(llama)),
        running(sys.executable, "-m", "benchmarks.engine_peers", "embed", minilm) as batcher,
    ):  # fmt: skip
        assert server.stdout is not None
        base = (await asyncio.to_thread(server.stdout.readline)).split()[-1].removesuffix("v1")
        await load(base, "smollm2", engine="transformers", name=TORCH, dtype="float32")
        await load(base, "smollm2", concurrency=16, context_length=1024)
        await load(base, "minilm")
        await until_healthy(transformers)
        await until_healthy(llama)

        async def batched() -> float:
            assert batcher.stdin is not None
            assert batcher.stdout is not None
            batcher.stdin.write("\n")
            batcher.stdin.flush()
            return float(json.loads(await asyncio.to_thread(batcher.stdout.readline)))

        ours, theirs = f"{base}v1", f"{address}:{transformers}/v1"
        turns: dict[str, Callable[[], Awaitable[float]]] = {
            "ours transformers 16": rate(ours, TORCH, 16, TOKENS, KEY),
            "serve, continuous 16": rate(theirs, folder, 16, TOKENS, None),
            "ours transformers 1": rate(ours, TORCH, 1, TOKENS, KEY),
            "serve, continuous 1": rate(theirs, folder, 1, TOKENS, None),
            "ours llama.cpp 1": rate(ours, NAME, 1, 4 * TOKENS, KEY),
            "xllamacpp 1": rate(f"{address}:{llama}/v1", NAME, 1, 4 * TOKENS, None),
            "ours llama.cpp 16": rate(ours, NAME, 16, TOKENS, KEY),
            "xllamacpp 16": rate(f"{address}:{llama}/v1", NAME, 16, TOKENS, None),
            "ours embeddings": lambda: embeddings(ours, KEY),
            "micro-batcher": batched,
        }
        for figure in turns.values():
            await figure()
        for _ in range(rounds):
            for name, figure in turns.items():
                await figures.take(name, figure)
    return figures


async def measure(folder: str, file: str, minilm: str, rounds: int) -> Figures:
    """Everything."""
    await lags()
    with tempfile.TemporaryDirectory(prefix="uia-engine-") as place:
        figures = await compared(folder, file, minilm, rounds, str(Path(place) / "store.sqlite3"))
    for kind in ("generate", "static"):
        await figures.take(kind, lambda: asyncio.to_thread(measured, kind, folder, str(TOKENS)))  # noqa: B023
    port = free_port()
    command = (str(Path(sys.executable).parent / "transformers"), "serve", "--port", str(port))
    with running(*command, "--host", "127.0.0.1", "--dtype", "float32", "--device", "cpu"):
        await until_healthy(port)
        await chat(f"http://127.0.0.1:{port}/v1", folder, 1, 4, plain=True)
        await figures.take("serve, plain 16", rate(f"http://127.0.0.1:{port}/v1", folder, 16, TOKENS, None))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="The local engine against its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    models = Catalogue()
    gguf = packaged(models, "smollm2")
    folder = str(converted(gguf, models.cache_dir).fetch())
    figures = asyncio.run(measure(folder, str(gguf.path), str(models.path("minilm").parent), rounds))
    both = [figures.ratio("ours transformers 16", f"serve, {kind} 16") for kind in ("continuous", "plain")]
    ratios = {
        "16 streams / best transformers server (goal 0.95)": min(both),
        "16 streams / static batch": figures.ratio("ours transformers 16", "static"),
        "16 streams / generate one by one": figures.ratio("ours transformers 16", "generate"),
        "1 stream / transformers serve": figures.ratio("ours transformers 1", "serve, continuous 1"),
        "1 stream / raw xllamacpp (goal 0.9)": figures.ratio("ours llama.cpp 1", "xllamacpp 1"),
        "16 streams / raw xllamacpp": figures.ratio("ours llama.cpp 16", "xllamacpp 16"),
        "embeddings / micro-batcher (goal 0.9)": figures.ratio("ours embeddings", "micro-batcher"),
    }
    for name, value in ratios.items():
        print(f"{name:52} {value:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
