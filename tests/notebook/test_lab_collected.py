"""A Lab that nobody keeps is closed, wherever the collector finds it."""

import asyncio
import gc
import threading

from uia_lab.domain.events import Chunk, Finished, Started, Text
from uia_lab.notebook.lab import Lab


class Quiet:
    """A transport that notes its end."""

    where = "a test"
    kind = "local"

    def __init__(self):
        self.closed = threading.Event()

    async def status(self):
        return {"instance_id": "i"}

    async def aclose(self):
        self.closed.set()


async def collect():
    gc.collect()


def lab_threads():
    return {thread for thread in threading.enumerate() if thread.name == "uia-lab"}


def test_one_that_is_collected_in_its_own_thread_is_closed():
    before = lab_threads()
    transport = Quiet()
    lab = Lab(transport)
    (thread,) = lab_threads() - before
    # A cycle, so that only the collector ends it, and that is run in the Lab's own thread.
    lab.itself = lab
    portal = lab._thread.portal
    gc.disable()
    try:
        del lab
        portal.start_task_soon(collect)
        assert transport.closed.wait(30)
        thread.join(30)
    finally:
        gc.enable()
    assert not thread.is_alive()


class Answering(Quiet):
    """One that answers when it may."""

    def __init__(self):
        super().__init__()
        self.may = threading.Event()

    def stream(self, request):
        return Answer(self.may)


class Answer:
    request_id = None

    def __init__(self, may):
        self.events = self.run(may)

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.events)

    async def aclose(self):
        await self.events.aclose()

    async def run(self, may):
        yield Started("b")
        while not may.is_set():
            await asyncio.sleep(0.001)
        yield Chunk(0, Text("x"))
        yield Finished("x")


def test_a_batch_keeps_its_lab_until_it_has_ended():
    transport = Answering()
    batch = Lab(transport).map(["a", "b"], wait=False, show=False, concurrency=1)
    gc.collect()
    transport.may.set()
    assert batch.wait(30).texts == ["x", "x"]
    gc.collect()
    assert transport.closed.wait(30)
