"""The kernel's interrupt button, in a real kernel that waits for a generation in local mode."""

import os
import sys
import time

import pytest
from jupyter_client.manager import KernelManager

SERVE = """
import asyncio, uia_lab
from uia_lab.inference_backend_manager import BackendCapabilities
async def endless():
    while True:
        yield "word "
        await asyncio.sleep(0.01)
uia_lab.get_backend_manager().register_backend("endless", "gpu", "Endless", endless,
    BackendCapabilities({"text-generation"}, {"endless"}, supports_streaming=True))
lab = uia_lab.connect()
"""
AFTER = """
report = lab.status()
print("totals", report["total_cancelled"], report["in_flight"])
lab.close()
"""


@pytest.fixture
def client():
    manager = KernelManager()
    # The interpreter of the tests, whatever kernels the machine has installed.
    manager.kernel_spec.argv[0] = sys.executable
    here = {name: value for name, value in os.environ.items() if not name.startswith("UIA_LAB_")}
    manager.start_kernel(env=here)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    client.manager = manager
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def texts(client, wanted, seconds=60):
    """What the kernel publishes, until something in it is what is wanted."""
    end = time.monotonic() + seconds
    seen = []
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=seconds)
        seen.append(str(message["content"]))
        if wanted(message):
            return seen
    raise AssertionError(seen[-5:])


def idle(message):
    return message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"


def test_interrupting_a_waiting_cell_cancels_the_request(client):
    client.execute(SERVE)
    texts(client, idle)
    client.execute('lab.generate("x", model="endless")')
    texts(client, lambda message: "word word" in str(message["content"]))
    client.manager.interrupt_kernel()
    seen = texts(client, idle)
    assert any("KeyboardInterrupt" in text for text in seen)
    client.execute(AFTER)
    assert any("totals 1 0" in text for text in texts(client, idle))
