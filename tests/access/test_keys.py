import asyncio

import pytest

from uia_lab.access.credentials import bearer
from uia_lab.access.keys import KeyRing, new_key
from uia_lab.access.principals import Principal
from uia_lab.domain.errors import BadRequest, NotAllowed, StoreError
from uia_lab.domain.keys import Limits


class Table:
    """Keys in memory, as another process shares them; it can be made to fail or to wait."""

    def __init__(self):
        self.keys, self.failing, self.gate = {}, False, None

    async def _turn(self):
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise StoreError("the disk is full")

    async def load(self):
        found = list(self.keys.values())
        await self._turn()
        return found

    async def add(self, key):
        await self._turn()
        self.keys[key.id] = key

    async def delete(self, key_id):
        await self._turn()
        return self.keys.pop(key_id, None) is not None

    async def charge(self, uses):
        import msgspec

        await self._turn()
        for key_id, (at, tokens) in uses.items():
            key = self.keys[key_id]
            self.keys[key_id] = msgspec.structs.replace(
                key, last_used_at=at or key.last_used_at, tokens_used=key.tokens_used + tokens
            )


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ring(clock):
    ring = KeyRing(clock)
    ring.table = Table()
    return ring


async def test_a_key_opens_for_its_principal_until_it_is_revoked(ring):
    ended = []
    ring.on_end.append(ended.append)
    secret, key = await ring.create("script", ["infer"], Limits(models=("m",)))
    other, _ = await ring.create("other", ["read"])
    assert secret.startswith("uia-")
    assert len(secret) > 44
    assert ring.verify(secret) == Principal(
        key.principal, frozenset({"infer"}), key.id, Limits(models=("m",))
    )
    for wrong in (secret + "x", "", "\udcff" * 20, secret.upper()):
        assert ring.verify(wrong) is None
    assert await ring.revoke(key.id)
    assert ended == [key.principal]
    assert key.principal.startswith("key:script:")
    assert not await ring.revoke(key.id)
    assert ring.verify(secret) is None
    assert ring.of_principal(key.principal) is None
    assert ring.verify(other) is not None


async def test_a_key_ends_when_it_expires(ring, clock):
    ended = []
    ring.on_end.append(ended.append)
    secret, key = await ring.create("short", ["infer"], expires_at=1010.0)
    clock.now = 1009.9
    assert ring.verify(secret) is not None
    clock.now = 1010.0
    assert ring.verify(secret) is None
    await ring.sync()
    await ring.sync()
    assert ended == [key.principal]
    assert [item.id for item in ring.all()] == [key.id]
    with pytest.raises(BadRequest, match="past"):
        await ring.create("late", ["infer"], expires_at=1010.0)


async def test_two_servers_share_the_table(ring, clock):
    other = KeyRing(clock)
    other.table = ring.table
    secret, key = await ring.create("shared", ["infer"])
    assert other.verify(secret) is None
    await other.sync()
    assert other.verify(secret) is not None
    other.charge(key.id, 5)
    ring.charge(key.id, 7)
    for one in (ring, other, ring):
        await one.sync()
    assert [one.get(key.id).tokens_used for one in (ring, other)] == [12, 12]
    ended = []
    other.on_end.append(ended.append)
    await ring.revoke(key.id)
    await other.sync()
    assert (other.verify(secret), ended) == (None, [key.principal])


async def test_uses_and_charges_are_written_once_whatever_fails(ring, clock):
    secret, key = await ring.create("k", ["infer"])
    ring.verify(secret)
    ring.charge(key.id, 10)
    ring.table.failing = True
    for _ in range(3):
        with pytest.raises(StoreError):
            await ring.sync()
        assert ring.get(key.id).tokens_used == 10
    ring.table.failing = False
    ring.charge(key.id, 1)
    clock.now = 1005.0
    ring.verify(secret)
    await ring.sync()
    kept = ring.table.keys[key.id]
    assert (kept.tokens_used, kept.last_used_at) == (11, 1005.0)
    await ring.sync()
    assert ring.table.keys[key.id].tokens_used == ring.get(key.id).tokens_used == 11


async def test_what_changes_while_the_table_is_read_is_not_undone(ring):
    secret, key = await ring.create("old", ["infer"])
    ring.table.gate = asyncio.Event()
    reading = asyncio.create_task(ring.sync())
    await asyncio.sleep(0)
    making = asyncio.create_task(ring.create("new", ["infer"]))
    ending = asyncio.create_task(ring.revoke(key.id))
    await asyncio.sleep(0)
    assert ring.verify(secret) is None, "at once, although the table is being read"
    ring.table.gate.set()
    new, _ = await making
    await asyncio.gather(reading, ending)
    await ring.sync()
    assert ring.verify(secret) is None
    assert ring.verify(new) is not None
    assert [item.name for item in ring.all()] == ["new"]


async def test_a_key_that_cannot_be_kept_opens_nothing(ring):
    ring.table.failing = True
    with pytest.raises(StoreError):
        await ring.create("k", ["infer"])
    assert len(ring) == 0
    ring.table = None
    with pytest.raises(StoreError, match="not open"):
        await ring.create("k", ["infer"])


async def test_no_secret_is_kept_or_shown(ring):
    secret, key = await ring.create("script", ["admin"])
    for shown in (repr(ring), str(vars(ring)), str(ring.table.keys), str(key.to_dict())):
        assert secret not in shown
    assert "script" in repr(ring)
    assert "digest" not in key.to_dict()
    with pytest.raises(ValueError, match="16") as caught:
        ring.add("short-one", Principal("p", frozenset({"read"})))
    assert "short-one" not in str(caught.value)


async def test_keys_of_this_process_are_neither_listed_nor_kept(ring):
    secret = new_key()
    ring.add(secret, Principal("kernel", frozenset({"admin"})))
    assert ring.verify(secret).name == "kernel"
    assert (ring.all(), ring.table.keys) == ([], {})
    ended = []
    ring.on_end.append(ended.append)
    assert ring.forget("kernel")
    assert not ring.forget("kernel")
    assert (ring.verify(secret), ended) == (None, ["kernel"])


async def test_scopes_and_names_are_checked_and_admin_implies_the_others(ring):
    with pytest.raises(BadRequest, match="Known: admin, infer, read"):
        await ring.create("x", ["write"])
    with pytest.raises(BadRequest, match="at least one"):
        await ring.create("x", [])
    for name in ("", "x" * 65, "a\nb", "key:x", " x", "a/b"):
        with pytest.raises(BadRequest, match="name"):
            await ring.create(name, ["infer"])
    admin, reader = Principal("a", frozenset({"admin"})), Principal("r", frozenset({"read"}))
    admin.require("infer")
    reader.require("infer", "read")
    with pytest.raises(NotAllowed, match="'infer'"):
        reader.require("infer")


@pytest.mark.parametrize(
    ("headers", "token", "key"),
    [
        ({"Authorization": "Bearer k"}, None, "k"),
        ({"Authorization": "bearer  k "}, None, "k"),
        ({"Authorization": "Basic k"}, None, None),
        ({"Authorization": "Basic k", "x-api-key": "a"}, None, "a"),
        ({"x-api-key": "a"}, "t", "a"),
        ({}, "t", "t"),
        ({}, None, None),
    ],
)
def test_where_a_key_is_looked_for(headers, token, key):
    assert bearer(headers, token) == key


async def test_a_later_key_of_a_name_is_somebody_else(ring):
    _, first = await ring.create("bob", ["infer"])
    await ring.revoke(first.id)
    _, second = await ring.create("bob", ["infer"])
    assert first.principal != second.principal


async def test_a_disk_that_is_full_keeps_no_key_alive_that_was_revoked_elsewhere(ring):
    secret, key = await ring.create("k", ["infer"])
    ring.verify(secret)
    del ring.table.keys[key.id]

    async def full(uses):
        raise StoreError("the disk is full")

    ring.table.charge = full
    with pytest.raises(StoreError):
        await ring.sync()
    assert ring.verify(secret) is None


async def test_an_empty_list_permits_nothing_and_is_refused(ring):
    for limits in (Limits(models=()), Limits(backend_types=())):
        with pytest.raises(BadRequest, match="at least one"):
            await ring.create("k", ["infer"], limits)
