import pytest

from uia_lab.domain.errors import StoreError
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.store.values import alias_store


async def test_aliases_outlive_the_database(opened, path):
    first = alias_store(opened(path))
    await first.put("fast", ["a:m", "gpu:m", "m"])
    await first.put("smart", ["n"])
    await first.put("gone", ["o"])
    assert await first.delete("gone")
    assert not await first.delete("gone")
    assert await alias_store(opened(path)).load() == {"fast": ("a:m", "gpu:m", "m"), "smart": ("n",)}


async def test_they_can_be_set_again_in_the_order_they_come_back(opened, path):
    """A model that an alias leads to may get an alias's name later; the other way round is refused."""
    store = alias_store(opened(path))
    manager = BackendManager()
    for name, targets in (("z", ["x"]), ("a", ["m"]), ("m", ["n"]), ("z", ["b"])):
        manager.set_alias(name, targets)
        await store.put(name, targets)
    again = BackendManager()
    for name, targets in (await store.load()).items():
        again.set_alias(name, targets)
    assert again.aliases == manager.aliases == {"a": ("m",), "m": ("n",), "z": ("b",)}
    await manager.aclose()
    await again.aclose()


async def test_what_cannot_be_kept_is_an_error(opened, path):
    database = opened(path)
    store = alias_store(database)
    database.close()
    with pytest.raises(StoreError):
        await store.put("a", ["m"])
