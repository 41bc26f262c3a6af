"""Servers with libp2p nodes on loopback: some in this process, some in processes of their own."""

import asyncio
import secrets
import threading

import pytest

from tests.upstreams.peer_processes import peer_processes
from tests.upstreams.peer_server import Counting
from uia_lab.config import InferenceServiceConfig
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.peer_network import Terms
from uia_lab.unified_inference_service import UnifiedInferenceService

pytest.importorskip("libp2p", reason="libp2p is not installed: pip install 'uia-lab[p2p]'")


@pytest.fixture
def network():
    """Settings of one network of this test."""
    return {
        "enable_libp2p": True,
        "libp2p_enable_mdns": False,
        "p2p_network": f"test-{secrets.token_hex(4)}",
        "enable_api_backends": False,
        "backend_health_check_interval": 2.0,
    }


@pytest.fixture
def start_peer(network, tmp_path):
    """Starts a server in a process of its own."""
    with peer_processes(tmp_path, network) as start:
        yield start


@pytest.fixture
def labs():
    opened = []

    def open_at(peer):
        opened.append(Lab(HttpTransport(peer.url, peer.key)))
        return opened[-1]

    yield open_at
    for lab in opened:
        lab.close()


@pytest.fixture
async def make_service(network, tmp_path):
    """Starts services with nodes in this process; each has a backend that counts, where one is given."""
    made = []

    async def make(backend=None, **settings):
        number = len(made)
        settings = {
            **network,
            "enable_hf_server": False,
            "store_path": str(tmp_path / f"here{number}.sqlite3"),
            "p2p_key_path": str(tmp_path / f"here{number}.key"),
            **settings,
        }
        config = InferenceServiceConfig(**settings)
        service = UnifiedInferenceService(config, manager=BackendManager(config))
        made.append(service)
        await service.start()
        if backend is not None:
            service.get_backend_manager().register_backend("count", "gpu", "Counting", backend)
            await service.get_backend_manager().probe("count")
        return service

    yield make
    for service in reversed(made):
        await service.stop()
    assert not [thread for thread in threading.enumerate() if "p2p" in thread.name]


@pytest.fixture
async def pair(make_service):
    """Two services: the first lends its counting model to the second one, which has none."""
    lender, borrower = await make_service(Counting()), await make_service()
    link = (await lender.peers.invite(terms(name="bob")))["link"]
    await borrower.peers.accept(link)
    return lender, borrower


def terms(**fields):
    return Terms(**fields)


def peers_of(service):
    return {peer["name"] or peer["peer_id"]: peer for peer in service.peers.report()["peers"]}


async def until(condition, seconds=30.0):
    """Waits for a condition that something outside brings about."""
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.02)
    return value


def borrowed(service):
    """The backends that are peers."""
    return service.get_backend_manager().list_backends("p2p")
