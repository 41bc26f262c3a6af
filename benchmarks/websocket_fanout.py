"""What live status costs the server: no subscriber, one, and 500, at ten updates a second each.

The server is a process of its own, so that its CPU and memory are only its own; the subscribers are in
another one. A timer in the server measures by how much its event loop is late. The floor is the same server
under the same changes with nobody subscribed. Run it as ``python -m benchmarks.websocket_fanout``.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

KEY = "uia-benchmark-of-the-fan-out"
BACKENDS = 8
CHANGES_A_SECOND = 50
TICK_S = 0.005
CONNECT_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Cost:
    """What the server used while it was measured.

    Args:
        cpu: Share of one core.
        lag_p50_ms: Median lateness of a timer of 5 ms.
        lag_p99_ms: Its 99th percentile.
        lag_max_ms: Its longest.
        rss_mb: Memory at the end.
        growth_mb: Memory at the end less that at the beginning.
    """

    cpu: float
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    rss_mb: float
    growth_mb: float


def serve(pipe: Connection) -> None:
    """The server process: says where it is, then measures itself whenever it is told a number of seconds."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    from uia_lab.access.principals import Principal
    from uia_lab.config import InferenceServiceConfig
    from uia_lab.domain.backends import BackendCapabilities
    from uia_lab.doors.application import HttpServer
    from uia_lab.inference_backend_manager import BackendManager
    from uia_lab.unified_inference_service import UnifiedInferenceService

    config = InferenceServiceConfig(
        enable_hf_server=False, backend_health_checks=False, store_path=":memory:"
    )
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    manager = service.get_backend_manager()
    service.keys.add(KEY, Principal("reader", frozenset({"read"})))
    await service.start(listen=False)
    for number in range(BACKENDS):
        capabilities = BackendCapabilities({"text-generation"}, {f"model-{number}"})
        manager.register_backend(f"backend-{number}", "gpu", f"Backend {number}", lambda: "x", capabilities)
    server = HttpServer(service, "127.0.0.1", 0)
    await server.start()
    pipe.send(server.port)

    async def change() -> None:
        while True:
            manager.settle([])
            await asyncio.sleep(1 / CHANGES_A_SECOND)

    changing = asyncio.create_task(change())
    while (seconds := await asyncio.to_thread(pipe.recv)) is not None:
        pipe.send(await _measured(seconds))
    changing.cancel()
    await server.stop()
    await service.stop()


async def _measured(seconds: float) -> Cost:
    import psutil

    process = psutil.Process()
    late: list[float] = []
    memory = process.memory_info().rss
    used, began = time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        await asyncio.sleep(TICK_S)
        late.append((time.perf_counter() - now - TICK_S) * 1000)
    took = time.perf_counter() - began
    late.sort()
    after = process.memory_info().rss
    return Cost(
        (time.process_time() - used) / took,
        late[len(late) // 2],
        late[int(0.99 * len(late))],
        late[-1],
        after / 2**20,
        (after - memory) / 2**20,
    )


def subscribe(pipe: Connection, port: int, count: int) -> None:
    """The clients' process: says when all have their snapshot, then counts what comes until it is told."""
    asyncio.run(_subscribe(pipe, port, count))


async def _subscribe(pipe: Connection, port: int, count: int) -> None:
    import aiohttp

    received = 0
    snapshots = asyncio.Semaphore(0)
    slots = asyncio.Semaphore(CONNECT_AT_ONCE)

    async def listen(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal received
        url = f"http://127.0.0.1:{port}/ws/{number}"
        async with slots:
            ws = await session.ws_connect(url, headers={"Authorization": f"Bearer {KEY}"})
            await ws.send_json({"type": "subscribe", "topics": ["status"]})
        first = True
        async for message in ws:
            if '"update"' in message.data[:16]:
                received += 1
                if first:
                    first = False
                    assert json.loads(message.data)["sequence"] == 0
                    snapshots.release()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(listen(session, number)) for number in range(count)]
        for _ in range(count):
            await snapshots.acquire()
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        received, began = 0, time.perf_counter()
        await asyncio.to_thread(pipe.recv)
        pipe.send(received / (time.perf_counter() - began) / max(1, count))
        for task in tasks:
            task.cancel()


def measure(counts: list[int], seconds: float) -> list[tuple[int, float, Cost]]:
    """The updates a second of each subscriber and the server's cost, for each number of subscribers."""
    start = multiprocessing.get_context("spawn")
    pipe, end = start.Pipe()
    server = start.Process(target=serve, args=(end,))
    server.start()
    port = pipe.recv()
    found = []
    for count in counts:
        clients: Any = None
        mine, theirs = start.Pipe()
        if count:
            clients = start.Process(target=subscribe, args=(theirs, port, count))
            clients.start()
            mine.recv()
            mine.send("count")
        pipe.send(seconds)
        cost = pipe.recv()
        rate = 0.0
        if clients is not None:
            mine.send("stop")
            rate = mine.recv()
            clients.join()
        found.append((count, rate, cost))
    pipe.send(None)
    server.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    many = options.subscribers
    # The second round of many shows whether memory goes on growing.
    rows = measure([0, 1, many, many, 0], options.seconds)
    floor = rows[0][2]
    print("subscribers  updates/s each  CPU of a core  against none  lag p50/p99/max ms  memory MB (growth)")
    for count, rate, cost in rows:
        ratio = cost.cpu / floor.cpu
        print(
            f"{count:11}  {rate:14.1f}  {cost.cpu:12.1%}  {ratio:11.1f}x  "
            f"{cost.lag_p50_ms:5.2f} / {cost.lag_p99_ms:5.2f} / {cost.lag_max_ms:6.2f}  "
            f"{cost.rss_mb:7.1f} ({cost.growth_mb:+.1f})"
        )
    updates = many * rows[2][1]
    each = (rows[2][2].cpu - floor.cpu) / updates * 1e6 if updates else 0.0
    print(f"one update to one subscriber costs {each:.1f} us of the server's CPU")


if __name__ == "__main__":
    main()
