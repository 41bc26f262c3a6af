import asyncio

from uia_lab.domain.peers import Invite, Quota, TrustedPeer
from uia_lab.store.peers import PeerStore
from uia_lab.store.schema import transaction

QUOTA = Quota(models=("qwen*",), max_concurrent=2, tokens_per_minute=900)
PEER = TrustedPeer(
    peer_id="12D3KooWAnn",
    name="ann",
    quota=QUOTA,
    addresses=("/ip4/127.0.0.1/tcp/1",),
    added_at=5.0,
    ours=True,
)
INVITE = Invite(id="invite-1", digest=b"\x01" * 32, name="bob", quota=QUOTA, expires_at=4e9, ours=True)


async def test_peers_and_invites_come_back_as_they_were(opened, path):
    first = opened(path)
    store = PeerStore(first)
    await store.save_peer(PEER)
    await store.save_invite(INVITE)
    changed = TrustedPeer(peer_id=PEER.peer_id, name="ann's", quota=Quota(models=()), added_at=5.0)
    await store.save_peer(changed)
    first.close()
    again = PeerStore(opened(path))
    assert await again.load() == ([changed], [INVITE])
    assert await again.move_peer(PEER.peer_id, ("/ip4/127.0.0.1/tcp/9",))
    assert (await again.load())[0][0].addresses == ("/ip4/127.0.0.1/tcp/9",)
    await again.remove_peer(PEER.peer_id)
    await again.remove_peer(PEER.peer_id)
    assert not await again.move_peer(PEER.peer_id, ("/ip4/127.0.0.1/tcp/9",))
    assert await again.load() == ([], [INVITE])


async def test_two_files_open_and_an_invite_is_taken_by_one(opened, path):
    here, there = PeerStore(opened(path)), PeerStore(opened(path))
    for number in range(20):
        invite = Invite(id=f"invite-{number}", digest=bytes([number]) * 32, expires_at=4e9)
        await here.save_invite(invite)
        taken = await asyncio.gather(here.remove_invite(invite.id), there.remove_invite(invite.id))
        assert sorted(taken) == [False, True]
    await there.save_peer(PEER)
    assert await here.load() == ([PEER], [])


async def test_what_cannot_be_read_does_not_keep_the_others_out(opened, path, caplog):
    database = opened(path)
    store = PeerStore(database)
    await store.save_peer(PEER)

    def spoil(connection):
        with transaction(connection):
            connection.execute("INSERT INTO peers VALUES ('bad', 'x', 1, 0, '[]', '{')")

    database.write(spoil).result(10)
    assert await store.load() == ([PEER], [])
    assert "'bad' is kept but cannot be read" in caplog.text
