"""A Lab that nobody keeps is closed, wherever the collector finds it."""

import gc
import threading

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
