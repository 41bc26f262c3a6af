import pytest

from uia_lab.access.keys import KeyRing
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, StoreError
from uia_lab.domain.keys import Limits
from uia_lab.store.keys import KeyStore
from uia_lab.store.schema import transaction
from uia_lab.store.values import backend_store

EVERY_LIMIT = Limits(
    models=("a", "gpt-*"),
    backend_types=("gpu",),
    requests_per_minute=1,
    tokens_per_minute=2,
    max_concurrent=3,
    token_budget=4,
)


async def ring_over(database):
    ring = KeyRing()
    ring.table = KeyStore(database)
    await ring.sync()
    return ring


async def test_a_key_comes_back_as_it_was_and_its_secret_is_not_in_the_file(opened, path):
    first = opened(path)
    ring = await ring_over(first)
    secret, key = await ring.create("script", ["infer", "read"], EVERY_LIMIT, expires_at=4e9)
    ring.verify(secret)
    ring.charge(key.id, 7)
    await ring.sync()
    again = await ring_over(opened(path))
    assert again.all() == ring.all()
    assert again.verify(secret) == ring.verify(secret)
    (kept,) = again.all()
    assert (kept.limits, kept.tokens_used, kept.expires_at) == (EVERY_LIMIT, 7, 4e9)
    first.close()
    for file in path.parent.iterdir():
        assert secret.encode() not in file.read_bytes()


async def test_two_files_open_one_name_and_a_revoked_key(opened, path):
    here, there = await ring_over(opened(path)), await ring_over(opened(path))
    secret, key = await here.create("x", ["infer"])
    with pytest.raises(BadRequest, match="already"):
        await there.create("x", ["infer"])
    await there.sync()
    assert await there.revoke(key.id)
    here.charge(key.id, 5)
    await here.sync()
    assert here.verify(secret) is None
    assert here.all() == []


async def test_what_cannot_be_read_does_not_keep_the_others_out(opened, path, caplog):
    database = opened(path)
    store = backend_store(database)
    good = BackendDescription(id="good", type="api", endpoint="http://127.0.0.1:1", models=("m",))
    await store.put("good", good)

    def spoil(connection):
        with transaction(connection):
            connection.execute("INSERT INTO backends VALUES ('bad', '{\"id\": 5}')")

    database.write(spoil).result(10)
    assert await store.load() == {"good": good}
    assert "'bad' is kept but cannot be read" in caplog.text
    database.close()
    with pytest.raises(StoreError):
        await store.put("late", good)
