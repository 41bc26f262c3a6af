"""What a request to a peer costs, against a bare libp2p stream in the same run: ``python -m benchmarks.p2p``.

Two processes: one lends, or echoes; the other asks. CPU is that of each process, user and system together.
The bare stream has one frame a token, written as it comes, and opens once for all requests, as ours does.
``--quick`` measures a tenth. The freeze and the kill are between three nodes of the tests.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

from tests.p2p.peer_node import MODEL as COUNTING
from tests.p2p.peer_processes import peer_processes
from uia_lab.domain.events import Chunk, Event, Finished, Started, Text, Usage
from uia_lab.domain.peers import Offer, OfferedModel, Quota
from uia_lab.domain.requests import InferenceRequest
from uia_lab.libp2p_inference import LibP2PInferenceNode
from uia_lab.p2p.node import P2PNode
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import MemoryTrust

TASK, MODEL = "text-generation", "m"
ECHO = "/bench/echo/1.0.0"
TOKEN = "token "  # noqa: S105 - a word
PACE_S = 0.002


async def _tokens(request: InferenceRequest) -> AsyncIterator[Event]:
    """As fast as they are taken, or each behind a pause."""
    count, pace = request.parameters["max_tokens"], request.parameters.get("pace", 0)
    yield Started("")
    for number in range(count):
        if pace:
            await asyncio.sleep(pace)
        yield Chunk(number, Text(TOKEN))
    yield Finished("", Usage(1, count))


def _node() -> P2PNode:
    offer = Offer(models=(OfferedModel(name=MODEL, tasks=(TASK,)),))
    config = P2PConfig(mode="open", network="bench", enable_mdns=False, open_quota=Quota(max_concurrent=None))
    return P2PNode(config, serve=_tokens, trust=MemoryTrust(), capabilities=lambda: offer)


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def lend() -> None:
    """The lending process: tells its address, and its CPU time whenever it is asked for a line."""
    node = _node()
    await node.start()
    _say(address=node.addresses[0])
    while await asyncio.to_thread(sys.stdin.readline):
        _say(cpu=time.process_time())
    await node.stop()


async def echo() -> None:
    """The bare process: for each frame on the stream that asks for n tokens, n frames."""
    import trio

    from tests.p2p.bare_host import bare_host
    from uia_lab.p2p.frames import Splitter, pack
    from uia_lab.p2p.messages import Cancel
    from uia_lab.p2p.messages import Chunk as Frame

    async def answer(stream: Any) -> None:
        splitter: Splitter[Any] = Splitter(Cancel)
        with contextlib.suppress(Exception):
            while True:
                for frame in splitter.feed(await stream.read(65_536)):
                    count, pace = map(float, frame.id.split())
                    for number in range(int(count)):
                        if pace:
                            await trio.sleep(pace)
                        await stream.write(pack(Frame(id="1", seq=number, text=TOKEN)))

    async with bare_host(os.urandom(32), listen=("/ip4/127.0.0.1/tcp/0",)) as bare:
        bare.host.set_stream_handler(ECHO, answer)
        _say(address=f"{bare.host.get_transport_addrs()[0]}/p2p/{bare.peer_id}")
        while await asyncio.to_thread(sys.stdin.readline):
            _say(cpu=time.process_time())


class Other:
    """The other process."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.p2p", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.address = str(self._line()["address"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def cpu(self) -> float:
        """Seconds of CPU it has used."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return float(self._line()["cpu"])

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


async def measure(ask: Any, other: Other, count: int) -> tuple[float, float]:
    """CPU seconds of both sides for so many rounds: (asking, answering)."""
    await ask()
    here, there = time.process_time(), other.cpu()
    for _ in range(count):
        await ask()
    return time.process_time() - here, other.cpu() - there


async def ours(scale: float) -> dict[str, tuple[float, float]]:
    """Our node on both sides."""
    other, node = Other("lend"), _node()
    await node.start()
    began = time.perf_counter()
    info = await node.connect(other.address)
    connected = time.perf_counter() - began
    figures = {"connect": (connected, connected)}

    async def ask(tokens: int, pace: float = 0.0) -> None:
        parameters = {"max_tokens": tokens, "pace": pace}
        request = InferenceRequest(TASK, MODEL, "x", parameters=parameters, stream=True)
        async for _ in node.request(info.peer_id, request):
            pass

    figures |= await _figures(ask, other, scale)
    await node.stop()
    other.close()
    return figures


async def bare(scale: float) -> dict[str, tuple[float, float]]:
    """A bare stream of libp2p on both sides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.p2p.bare_host import bare_host
    from uia_lab.p2p.frames import Splitter, pack
    from uia_lab.p2p.messages import Cancel
    from uia_lab.p2p.messages import Chunk as Frame

    other = Other("echo")
    async with bare_host(os.urandom(32)) as host:
        began = time.perf_counter()
        connection = await host.dial(other.address)
        connected = time.perf_counter() - began
        stream = await host.open(connection, ECHO)

        async def ask(tokens: int, pace: float = 0.0) -> None:
            async def there_and_back() -> None:
                await stream.write(pack(Cancel(id=f"{tokens} {pace}")))
                splitter: Splitter[Any] = Splitter(Frame)
                got = 0
                while got < tokens:
                    got += sum(1 for _ in splitter.feed(await stream.read(65_536)))

            await host.run(there_and_back)

        figures = {"connect": (connected, connected), **await _figures(ask, other, scale)}
    other.close()
    return figures


async def _figures(ask: Any, other: Other, scale: float) -> dict[str, tuple[float, float]]:
    requests, tokens, paced = int(400 * scale), int(5000 * scale), int(1000 * scale)
    short = await measure(lambda: ask(1), other, requests)
    fast = await measure(lambda: ask(tokens), other, 2)
    slow = await measure(lambda: ask(paced, PACE_S), other, 1)
    return {
        "request": (short[0] / requests, short[1] / requests),
        "token": (fast[0] / tokens / 2, fast[1] / tokens / 2),
        "paced token": (slow[0] / paced, slow[1] / paced),
    }


async def failover() -> dict[str, float]:
    """Largest gap between tokens of 20 ms when who sends them is killed, and when it is frozen."""
    found: dict[str, float] = {}
    with peer_processes("bench-failover") as start:
        settings = {
            "mode": "open",
            "network": "bench-failover",
            "enable_mdns": False,
            "discovery_interval": 1.0,
        }
        peers = {peer.peer_id: peer for peer in (start(pause_s=0.02) for _ in range(3))}
        addresses = [address for peer in peers.values() for address in peer.addresses]
        node = LibP2PInferenceNode({**settings, "bootstrap_peers": addresses})
        began = time.perf_counter()
        await node.start()
        while len(await node.find_peers_for_task(TASK, COUNTING)) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        found["three bootstrap peers found, s"] = time.perf_counter() - began
        for what, number in (("kill", signal.SIGKILL), ("freeze", signal.SIGSTOP)):
            gaps, last, count = [0.0], None, 0
            victim = ""
            async for chunk in node.stream_inference_request(TASK, COUNTING, "x", {"max_tokens": 120}):
                now = time.perf_counter()
                gaps.append(now - last if last is not None else 0.0)
                last, count = now, count + 1
                if chunk.index == 40:
                    victim = chunk.peer_id
                    peers[victim].signal(number)
            found[f"{what}: tokens of 120"] = count
            found[f"{what}: largest gap, ms"] = max(gaps) * 1000
        began = time.perf_counter()
        while next(info for info in node.peers if info.peer_id == victim).connected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found["frozen peer offline after the answer, s"] = time.perf_counter() - began
        await node.stop()
    return found


async def discovery(rounds: int) -> float:
    """Seconds until two nodes of one machine have met by mDNS, at the median."""
    times = []
    for number in range(rounds):
        settings = {"mode": "open", "network": f"bench-mdns-{os.getpid()}-{number}"}
        first, second = LibP2PInferenceNode(settings), LibP2PInferenceNode(settings)
        await first.start()
        await asyncio.sleep(1)
        began = time.perf_counter()
        await second.start()
        while not any(info.connected for info in second.peers):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        times.append(time.perf_counter() - began)
        await second.stop()
        await first.stop()
    return statistics.median(times)


async def main(scale: float) -> None:
    ours_, bare_ = await ours(scale), await bare(scale)
    print(f"{'':28}{'ours':>10}{'bare':>10}{'ratio':>8}")
    for name, unit, factor in (
        ("request", "ms", 1e3),
        ("token", "us", 1e6),
        ("paced token", "us", 1e6),
    ):
        for side, label in ((0, "asking"), (1, "answering")):
            mine, floor = ours_[name][side] * factor, bare_[name][side] * factor
            print(f"CPU {unit} a {name:12} {label:10}{mine:10.2f}{floor:10.2f}{mine / max(floor, 1e-9):8.2f}")
    mine, floor = ours_["connect"][0] * 1e3, bare_["connect"][0] * 1e3
    print(f"connect, ms (ours with hello){mine:9.1f}{floor:10.1f}{mine / floor:8.2f}")
    print(f"met by mDNS, s               {await discovery(max(1, int(5 * scale))):9.2f}")
    for name, value in (await failover()).items():
        print(f"{name:40}{value:10.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=("lend", "echo"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.kind is not None:
            asyncio.run({"lend": lend, "echo": echo}[options.kind]())
        else:
            asyncio.run(main(0.1 if options.quick else 1.0))
