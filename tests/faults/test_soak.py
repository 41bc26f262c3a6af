"""Many requests with everything that can happen to them mixed, and nothing left behind."""

import asyncio
import contextlib
import gc
import logging
import random
from collections import Counter

import psutil
import pytest

from tests.faults.conftest import Told, check_backends, make_manager, set_patience, until
from uia_lab.domain.errors import BackendFailed, InferenceError, RateLimited
from uia_lab.domain.events import Chunk
from uia_lab.domain.requests import InferenceRequest, RoutingHints

WORKERS = 64
TEXT = "text-generation"


class Erratic(Told):
    """Mostly answers; sometimes breaks, in every way an adapter can."""

    def __init__(self, rng):
        super().__init__(resume=True, model_digest={"m0": "sha256:0", "m1": "sha256:1"})
        self.rng = rng

    async def infer(self, request):
        kind = self.rng.random()
        if kind < 0.90:
            self.script = ("a ", "b ", "c ", "d")
        elif kind < 0.92:
            self.script = (BackendFailed("boom"),)
        elif kind < 0.94:
            self.script = ("a ", BackendFailed("boom"))
        elif kind < 0.96:
            self.script = (RateLimited("slow down", retry_after=0.0),)
        elif kind < 0.98:
            self.script = ("a ", ValueError("bug"))
        else:
            self.script = ("a ", asyncio.Event(), "b") if kind < 0.99 else (asyncio.Event(),)
        async for event in super().infer(request):
            yield event
            await asyncio.sleep(0)


class Soak:
    """Workers that ask and leave in every way, and the figures of what became of it."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.manager = make_manager()
        self.endings = Counter()
        self.manager.on_record = self.record
        self.backends = [Erratic(random.Random(seed + number)) for number in range(6)]
        for number in range(len(self.backends)):
            self.register(number)

    def register(self, number):
        # Fewer slots than workers: some always wait.
        self.manager.register_backend(f"b{number}", "gpu", "B", self.backends[number], max_concurrency=8)

    def record(self, record):
        self.endings[record.outcome] += 1

    async def run(self, count):
        numbers = iter(range(count))
        await asyncio.gather(*(self.work(numbers) for _ in range(WORKERS)))
        await self.rest()

    async def work(self, numbers):
        for number in numbers:
            with contextlib.suppress(InferenceError, asyncio.CancelledError):
                await self.one(number)

    async def one(self, number):
        way = self.rng.random()
        if number % 500 == 499:
            # Somebody comes, goes, or is drained while it works.
            self.manager.unregister_backend("b5")
            self.register(5)
            self.manager.drain("b4")
            self.manager.enable("b4")
        hints = RoutingHints(
            session_id=f"s{number}",
            deadline_s=0.001 if way > 0.98 else 30.0,
            hedge_after_s=0.002 if number % 5 == 0 else None,
        )
        stream = self.manager.open(
            InferenceRequest(
                TEXT, f"m{number % 7}", "x", principal=f"p{number % 50}", stream=way < 0.8, routing=hints
            )
        )
        if way < 0.70 or way > 0.98:
            await stream.result()
        elif way < 0.80:
            async with stream:
                await self.some(stream)
        elif way < 0.88:
            # Dropped: nobody closes it.
            await self.some(stream)
        elif way < 0.93:
            task = asyncio.create_task(stream.result())
            await self.while_others_run()
            task.cancel()
            await task
        else:
            task = asyncio.create_task(stream.result())
            await self.while_others_run()
            self.manager.cancel(stream.request_id)
            await task

    async def some(self, stream):
        left = self.rng.randrange(4)
        async for event in stream:
            left -= isinstance(event, Chunk)
            if left < 0:
                return

    async def while_others_run(self):
        for _ in range(1 + self.rng.randrange(12)):
            await asyncio.sleep(0)

    async def rest(self):
        gc.collect()
        await until(lambda: not self.manager.running and not any(item.under_way for item in self.backends))
        assert self.manager.totals.in_flight == 0
        assert sum(self.endings.values()) == self.manager.totals.total

    async def close(self):
        await self.manager.aclose()
        totals = self.manager.totals
        assert self.endings == Counter(
            {name: getattr(totals, name) for name in ("ok", "failed", "cancelled", "rejected")}
        )
        check_backends(self.manager)
        assert all(backend.closed == backend.asked for backend in self.backends)
        assert (self.manager.running, self.manager.waiting, len(self.manager.router.queue)) == ({}, {}, 0)


async def soak(seed, count, warm_up, growth):
    process = psutil.Process()
    tasks, descriptors, threads = len(asyncio.all_tasks()), process.num_fds(), process.num_threads()
    under_test = Soak(seed)
    await under_test.run(warm_up)
    before = process.memory_info().rss
    await under_test.run(count - warm_up)
    gc.collect()
    after = process.memory_info().rss
    await under_test.close()
    totals = under_test.manager.totals
    assert totals.total == count
    assert min(totals.ok, totals.failed, totals.cancelled) > count / 100, "everything happened"
    assert after <= before * growth, f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB"
    assert len(asyncio.all_tasks()) == tasks
    assert process.num_fds() == descriptors
    assert process.num_threads() == threads


async def test_three_thousand_requests_leave_nothing(monkeypatch, caplog):
    set_patience(monkeypatch, 0.05)
    await soak(11, 3_000, 1_000, 1.10)
    assert not [item for item in caplog.records if item.levelno >= logging.ERROR]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_requests_leave_memory_flat(monkeypatch, caplog):
    set_patience(monkeypatch, 0.05)
    await soak(12, 100_000, 20_000, 1.05)
    assert not [item for item in caplog.records if item.levelno >= logging.ERROR]
