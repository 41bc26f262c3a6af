"""The model of nginx's least_conn against a real nginx: requests that reach each of four upstreams.

A child nginx in a directory of its own balances upstreams on the loopback interface that answer after known
delays; the model gets the same delays and the same rate. Shares may differ by ``TOLERANCE`` points.
Run it as ``python -m benchmarks.least_conn_check``; without nginx it says so and ends well.
"""

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.balancers import LeastConn
from benchmarks.simulation import Fault, Simulation, Workload

RATE = 150.0
REQUESTS = 1500
SEEDS = 10
TOLERANCE = 4.0
START_S = 10.0
UNLIMITED = 10**6

CONFIGURATION = """
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream fleet {{
        least_conn;
        {servers}
    }}
    server {{
        listen unix:{socket};
        location / {{
            proxy_pass http://fleet;
            proxy_next_upstream error timeout http_500 http_502 http_503 http_504;
            proxy_next_upstream_tries 3;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One set of upstreams; those in ``failing`` answer 500 at once."""

    title: str
    delays: tuple[float, ...]
    weights: tuple[int, ...] = (1, 1, 1, 1)
    failing: frozenset[int] = frozenset()


CASES = (
    Case("equal delays", (0.04, 0.04, 0.04, 0.04)),
    Case("delays 1 to 8", (0.03, 0.06, 0.12, 0.24)),
    Case("weights 1 to 4", (0.06, 0.06, 0.06, 0.06), (1, 2, 3, 4)),
    Case("one fails", (0.06, 0.06, 0.06, 0.06), failing=frozenset({0})),
)


def shares(counts: list[int]) -> list[float]:
    return [100 * count / sum(counts) for count in counts]


def modelled(case: Case) -> list[float]:
    """Percent of the attempts that reach each upstream, by the model."""
    counts = [0] * len(case.delays)
    faults = tuple(Fault(number, 0.0, 1e9, "fails") for number in case.failing)
    speeds = tuple(1.0 / delay for delay in case.delays)
    workload = Workload(speeds, RATE, REQUESTS, faults, UNLIMITED, "constant")

    def make(simulation: Simulation) -> LeastConn:
        balancer = LeastConn(simulation, 0)
        balancer.set_weights(list(case.weights))
        return balancer

    for seed in range(SEEDS):
        for call in Simulation(workload, seed, make).run():
            for number in call.tried:
                counts[number] += 1
    return shares(counts)


@asynccontextmanager
async def upstream(number: int, case: Case, counts: list[int]) -> AsyncIterator[int]:
    """A server that counts its requests; yields its port."""

    async def answer(_: web.Request) -> web.Response:
        counts[number] += 1
        if number in case.failing:
            return web.Response(status=500)
        await asyncio.sleep(case.delays[number])
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def balanced(program: str, ports: list[int], case: Case) -> AsyncIterator[Path]:
    """A child nginx before the upstreams; yields its socket."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        socket = directory / "nginx.sock"
        servers = "\n        ".join(
            f"server 127.0.0.1:{port} weight={weight} max_fails=1 fail_timeout=10s;"
            for port, weight in zip(ports, case.weights, strict=True)
        )
        (directory / "nginx.conf").write_text(CONFIGURATION.format(servers=servers, socket=socket))
        process = await asyncio.create_subprocess_exec(
            program, "-p", name, "-c", "nginx.conf", "-e", "stderr"
        )
        try:
            async with asyncio.timeout(START_S):
                while not socket.exists():
                    if process.returncode is not None:
                        raise RuntimeError(f"nginx ended with {process.returncode}")
                    await asyncio.sleep(0.02)
            yield socket
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def measured(program: str, case: Case) -> list[float]:
    """Percent of the attempts that reach each upstream, behind a real nginx."""
    counts = [0] * len(case.delays)
    rng = random.Random(1)  # noqa: S311 - arrivals
    async with AsyncExitStack() as stack:
        ports = [
            await stack.enter_async_context(upstream(number, case, counts))
            for number in range(len(case.delays))
        ]
        socket = await stack.enter_async_context(balanced(program, ports, case))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket), limit=0))
        )

        async def ask() -> None:
            async with session.get("http://fleet/") as response:
                assert response.status == 200, response.status
                await response.read()

        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(REQUESTS):
                due += rng.expovariate(RATE)
                await asyncio.sleep(max(0.0, due - loop.time()))
                group.create_task(ask())
    return shares(counts)


def main() -> int:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        print("skipped: nginx is not installed")
        return 0
    missed = 0
    print(f"| case | shares of nginx, % | of the model, % | difference at most ({TOLERANCE:.0f} may be) |")
    print("|---|---|---|---|")
    for case in CASES:
        real = asyncio.run(measured(program, case))
        model = modelled(case)
        most = max(abs(a - b) for a, b in zip(real, model, strict=True))
        missed += most > TOLERANCE
        cells = [" ".join(f"{share:.1f}" for share in row) for row in (real, model)]
        print(f"| {case.title} | {cells[0]} | {cells[1]} | {most:.1f} |")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
