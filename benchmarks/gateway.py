"""CPU microseconds a gateway spends on a request and on a chunk of a stream, against the floor.

An upstream on loopback answers at once. Between it and the clients stands, in turn: nothing; the floor
(tornado and one shared aiohttp session that pass everything on); ours as ``python -m uia_lab serve``; ours
inside Jupyter's server; LiteLLM's proxy where one is installed. Ours have a scoped key, the request log and
the metrics on, as they come. All run in every round, each pinned to one core, so that the ratios are of the
same minute; a figure is the median of the rounds. Run it as ``python -m benchmarks.gateway``.

``whole`` is an answer that is not streamed. A stream has 100 chunks: ``burst`` as fast as they are taken, so
that several come with one read; ``paced`` one every 10 ms, so that each is a read of its own.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway_parts import CHUNKS, MODEL

ROOT = Path(__file__).parents[1]
KINDS = ("whole", "burst", "paced")
GOALS = {"request": 1.5, "burst": 2.0, "paced": 2.0}
OURS = ("serve", "jupyter")
ADMIN = "uia-benchmark-admin-0123456789"
START_S = 120.0
CLIENTS = 32
LITELLM = "UIA_BENCH_LITELLM"


@dataclass(frozen=True, slots=True)
class System:
    """What stands in the middle.

    Args:
        name: What the table calls it.
        url: Where its chat is.
        key: What opens it.
        pid: Its process; None where there is none.
    """

    name: str
    url: str
    key: str = "none"
    pid: int | None = None


@contextmanager
def process(
    *command: str, core: int | None, log: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process pinned to a core, ended at the end."""
    with log.open("w") as errors:
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'jupyter_server_extension'}",
                **environment,
            },
        )
    try:
        if core is not None:
            os.sched_setaffinity(started.pid, {core})
        yield started
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        assert started.stdout is not None
        started.stdout.close()


def part(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.gateway_parts", *arguments)


def line(started: subprocess.Popen[str], log: Path) -> str:
    """The first line it says, which tells where it listens."""
    assert started.stdout is not None
    if said := started.stdout.readline():
        return said.split()[-1]
    raise RuntimeError(f"it did not start: {log.read_text()[-2000:]}")


def call(url: str, key: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def until_up(url: str, started: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except (OSError, urllib.error.URLError):
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def ours(base: str, admin: str, name: str, upstream: str, pid: int) -> System:
    """Registers the upstream and makes the key that the clients come with."""
    call(
        f"{base}backends",
        admin,
        {"id": "up", "type": "api", "endpoint": upstream, "models": [MODEL], "max_concurrency": 64},
    )
    key = call(f"{base}keys", admin, {"name": "bench", "scopes": ["infer"], "models": [MODEL]})["key"]
    return System(name, f"{base}v1/chat/completions", key, pid)


@contextmanager
def serve(upstream: str, core: int | None, folder: Path) -> Iterator[System]:
    log = folder / "serve.log"
    command = (sys.executable, "-m", "uia_lab", "serve", "--port", "0")
    store = str(folder / "serve.sqlite3")
    with process(*command, core=core, log=log, UIA_LAB_SERVE_TOKEN=ADMIN, UIA_STORE_PATH=store) as started:
        base = line(started, log).removesuffix("v1")
        yield ours(base, ADMIN, "serve", upstream, started.pid)


@contextmanager
def jupyter(upstream: str, core: int | None, folder: Path) -> Iterator[System]:
    log, port = folder / "jupyter.log", free_port()
    command = (
        sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}",
        "--ServerApp.jpserver_extensions={'uia_lab_server': True}",
        "--InferenceServiceConfig.enable_hf_server=False",
    )  # fmt: skip
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {"JUPYTER_TOKEN": ADMIN, "JUPYTER_NO_CONFIG": "1", **places}
    store = str(folder / "jupyter.sqlite3")
    with process(*command, core=core, log=log, UIA_STORE_PATH=store, **environment) as started:
        base = f"http://127.0.0.1:{port}/uia/"
        until_up(f"{base}health", started, log)
        yield ours(base, ADMIN, "jupyter", upstream, started.pid)


@contextmanager
def litellm(python: str, upstream: str, core: int | None, folder: Path) -> Iterator[System]:
    log, config, port = folder / "litellm.log", folder / "litellm.json", free_port()
    model = {"model": f"openai/{MODEL}", "api_base": upstream, "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]}))
    command = (
        str(Path(python).parent / "litellm"), "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--num_workers", "1", "--telemetry", "False",
    )  # fmt: skip
    key = f"sk-{secrets.token_hex(32)}"
    local = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": key,
    }
    with process(*command, core=core, log=log, **local) as started:
        until_up(f"http://127.0.0.1:{port}/health/liveliness", started, log)
        yield System("litellm", f"http://127.0.0.1:{port}/v1/chat/completions", key, started.pid)


@contextmanager
def floor(upstream: str, core: int | None, folder: Path) -> Iterator[System]:
    log = folder / "floor.log"
    with process(*part("floor", f"{upstream}/chat/completions"), core=core, log=log) as started:
        yield System("floor", line(started, log), "none", started.pid)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Seconds of all threads of a process, to the nanosecond: the clock of another process (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


def measure(system: System, kind: str, count: int, clients: int) -> tuple[float, dict[str, float]]:
    """CPU microseconds a request of one batch, and how long a client waited."""
    before = cpu_s(system.pid) if system.pid is not None else 0.0
    done = subprocess.run(
        part("load", system.url, system.key, kind, str(count), str(min(clients, count))),
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{system.name}, {kind}: {done.stderr[-3000:]}")
    spent = cpu_s(system.pid) - before if system.pid is not None else 0.0
    return spent / count * 1e6, json.loads(done.stdout)


Figures = dict[str, dict[str, list[float]]]


def rounds(systems: Sequence[System], options: argparse.Namespace) -> Figures:
    """By system: microseconds of a request and of both kinds of chunk, and seconds of lone requests."""
    found: Figures = {system.name: {} for system in systems}

    def note(system: System, name: str, value: float) -> None:
        found[system.name].setdefault(name, []).append(value)

    counts = {"whole": options.requests, "burst": options.streams, "paced": options.streams}
    for number in range(options.rounds + 1):
        for kind in KINDS:
            for system in systems:
                count = max(1, counts[kind] // (20 if system.name == "litellm" else 1))
                us, _ = measure(system, kind, count, CLIENTS)
                if number == 0:
                    # Caches fill and connections open.
                    continue
                if kind == "whole":
                    note(system, "request", us)
                else:
                    note(system, kind, (us - found[system.name]["request"][-1]) / CHUNKS)
        for system in systems:
            _, alone = measure(system, "burst", 5, 1)
            note(system, "first_s", alone["first_s"])
    return found


def table(found: Figures) -> list[str]:
    """A markdown table; the ratios are medians of the ratios of each round."""
    lines = [
        "| system | us a request | ratio | us a chunk, burst | ratio | paced | ratio | first byte, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        cells = [name]
        for figure in GOALS:
            if name == "direct":
                cells += ["0", "0"]
            else:
                cells += [f"{statistics.median(figures[figure]):.1f}", f"{ratio(found, name, figure):.2f}"]
        cells.append(f"{statistics.median(figures['first_s']) * 1000:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio(found: Figures, name: str, figure: str) -> float:
    pairs = zip(found[name][figure], found["floor"][figure], strict=True)
    return statistics.median(mine / least for mine, least in pairs)


def verdict(found: Figures) -> bool:
    met = True
    for name in OURS:
        for figure, goal in GOALS.items():
            if name in found and (reached := ratio(found, name, figure)) > goal:
                met = False
                print(f"{name}, {figure}: {reached:.2f} of the floor; the goal is {goal}")
    print("goals met" if met else "goals MISSED")
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="CPU of a gateway per request and per chunk.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="in each round, not streamed")
    parser.add_argument("--streams", type=int, default=320, help="in each round and kind")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, which proves nothing but that it runs"
    )
    parser.add_argument("--only", nargs="+", choices=(*OURS, "litellm"), help="beside direct and floor")
    parser.add_argument(
        "--litellm",
        default=os.environ.get(LITELLM),
        metavar="PYTHON",
        help=f"python of an environment with litellm[proxy]; {LITELLM} does the same",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.requests, options.streams = 1, 64, 32
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # The middle has a core of its own where there are two; the clients and the upstream keep off it.
    core = cores[-1] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores) - {core})
    wanted = options.only or (*OURS, "litellm")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uia-gateway-")))
        log = folder / "upstream.log"
        upstream = line(stack.enter_context(process(*part("upstream"), core=None, log=log)), log)
        systems = [System("direct", f"{upstream}/chat/completions")]
        systems.append(stack.enter_context(floor(upstream, core, folder)))
        if "serve" in wanted:
            systems.append(stack.enter_context(serve(upstream, core, folder)))
        if "jupyter" in wanted:
            systems.append(stack.enter_context(jupyter(upstream, core, folder)))
        if "litellm" in wanted and options.litellm:
            systems.append(stack.enter_context(litellm(options.litellm, upstream, core, folder)))
        found = rounds(systems, options)
    print("\n".join(table(found)))
    # Said, not failed: what a shared machine measures must not end the benchmarks that come after.
    verdict(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
