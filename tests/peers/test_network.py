"""Borrowing and lending between services, on real nodes."""

import asyncio
import stat

import pytest

from tests.peers.conftest import borrowed, peers_of, terms, until
from tests.upstreams.peer_server import DIGEST, MODEL, Counting, counted
from uia_lab.domain.errors import (
    BadRequest,
    InferenceError,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    RateLimited,
)

WAIT_S = 30.0


async def test_an_invite_makes_a_backend_of_a_friends_model(pair):
    lender, borrower = pair
    (backend,) = await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    assert backend.models == {MODEL}
    assert backend.capabilities.external is True
    assert (backend.capabilities.resume, backend.capabilities.model_digest) == (True, {MODEL: DIGEST})
    assert backend.capabilities.features == {"seed"}
    manager = borrower.get_backend_manager()
    async with manager.stream("generation", MODEL, "x", {"max_tokens": 40}) as answer:
        result = await answer.result()
    assert result.text == counted(40)
    assert result.backend_id == backend.backend_id
    (record,) = await lender.request_log.find()
    assert record.principal == f"peer:{borrower.get_p2p_node().peer_id}"
    assert (record.outcome, record.output_tokens) == ("ok", 40)
    (asked,) = lender.get_backend_manager().get_backend("count").instance.requests
    assert asked.via == (borrower.instance_id,)
    assert manager.get_backend(backend.backend_id).metrics.successful_requests == 1


async def test_a_friend_is_asked_only_by_name_and_a_machine_of_ours_at_any_time(pair, monkeypatch):
    lender, borrower = pair
    manager = borrower.get_backend_manager()
    (backend,) = await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    with pytest.raises(NoBackendAvailable, match="external: not named"):
        await manager.infer("generation", inputs="x")
    assert (await manager.infer("generation", inputs="x", preferred_types=["p2p"])).text == counted(16)
    await borrower.peers.trust(lender.get_p2p_node().peer_id, terms(ours=True))
    await until(lambda: borrowed(borrower)[0].capabilities.external is False)
    result = await manager.infer("generation", inputs="x")
    assert (result.text, result.backend_id) == (counted(16), backend.backend_id)


async def test_who_borrows_does_not_lend_by_that(pair):
    lender, borrower = pair
    borrower.get_backend_manager().register_backend("own", "gpu", "Own", Counting(model="own-model"))
    await borrower.get_backend_manager().probe("own")
    lenders = lender.get_backend_manager()
    await until(lambda: [backend for backend in borrowed(lender) if "own-model" in backend.models])
    with pytest.raises(InferenceError, match="lent"):
        await lenders.infer("generation", "own-model", "x")
    await borrower.peers.trust(lender.get_p2p_node().peer_id, terms(models=None))
    assert (await lenders.infer("generation", "own-model", "x")).text == counted(16)


async def test_quotas_of_a_peer(make_service):
    gate = asyncio.Event()

    class Waiting(Counting):
        async def infer(self, request):
            self.requests.append(request)
            await gate.wait()
            async for event in super().infer(request):
                yield event

    lender, borrower = await make_service(Waiting()), await make_service()
    made = await lender.peers.invite(
        terms(name="bob", models=("c*",), max_concurrent=1, tokens_per_minute=100)
    )
    await borrower.peers.accept(made["link"])
    manager = borrower.get_backend_manager()
    await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    first = asyncio.create_task(manager.infer("generation", MODEL, "x", {"max_tokens": 60}))
    await until(lambda: lender.get_backend_manager().get_backend("count").instance.requests)
    with pytest.raises(RateLimited, match="as many as you may"):
        await manager.infer("generation", MODEL, "x", {"max_tokens": 5})
    gate.set()
    assert (await first).text == counted(60)
    with pytest.raises(RateLimited, match="tokens a minute"):
        await manager.infer("generation", MODEL, "x", {"max_tokens": 60})


async def test_a_model_that_is_not_lent_to_a_peer_says_nothing_of_the_others(pair):
    lender, borrower = pair
    manager = borrower.get_backend_manager()
    (backend,) = await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    await lender.peers.trust(borrower.get_p2p_node().peer_id, terms(models=("other",)))
    assert peers_of(lender)["bob"]["quota"]["models"] == ("other",)
    with pytest.raises(InferenceError, match="not lent to you"):
        await manager.infer("generation", MODEL, "x")
    assert manager.get_backend(backend.backend_id).status == "healthy"
    await lender.peers.trust(borrower.get_p2p_node().peer_id, terms(models=None))
    assert (await manager.infer("generation", MODEL, "x")).text == counted(16)


async def test_an_invite_works_once_and_not_after_it_was_withdrawn(make_service):
    lender, first, second = await make_service(Counting()), await make_service(), await make_service()
    made = await lender.peers.invite(terms(name="bob"))
    assert [item["id"] for item in lender.peers.report()["invites"]] == [made["id"]]
    await first.peers.accept(made["link"])
    assert lender.peers.report()["invites"] == []
    with pytest.raises(NotAllowed):
        await second.peers.accept(made["link"])
    assert borrowed(second) == []
    withdrawn = await lender.peers.invite(terms())
    assert await lender.peers.withdraw(withdrawn["id"])
    assert not await lender.peers.withdraw(withdrawn["id"])
    with pytest.raises(NotAllowed):
        await second.peers.accept(withdrawn["link"])
    with pytest.raises(BadRequest):
        await second.peers.accept("http://127.0.0.1/not-an-invite")
    with pytest.raises(BadRequest, match="expires_in"):
        await lender.peers.invite(terms(), 0)


async def test_a_revoked_peer_is_out_in_the_middle_of_an_answer(pair):
    lender, borrower = pair
    lender.get_backend_manager().get_backend("count").instance.pause_s = 0.02
    await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    manager = borrower.get_backend_manager()
    answer = manager.stream("generation", MODEL, "x", {"max_tokens": 100_000})
    for _ in range(4):
        await anext(answer)
    assert await lender.peers.revoke(borrower.get_p2p_node().peer_id)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(InferenceError):
            async for _ in answer:
                pass
    await until(lambda: not lender.get_backend_manager().running)
    assert not await lender.peers.revoke(borrower.get_p2p_node().peer_id)
    with pytest.raises(InferenceError):
        await manager.infer("generation", MODEL, "x")


async def test_trust_survives_a_restart_and_the_peers_find_each_other_again(make_service, tmp_path):
    kept = {"store_path": str(tmp_path / "kept.sqlite3"), "p2p_key_path": str(tmp_path / "kept.key")}
    lender, borrower = await make_service(Counting()), await make_service(**kept)
    await borrower.peers.accept((await lender.peers.invite(terms(name="bob")))["link"])
    await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    peer_id = borrower.get_p2p_node().peer_id
    assert stat.S_IMODE((tmp_path / "kept.key").stat().st_mode) == 0o600
    await borrower.stop()
    assert borrower.get_p2p_node() is None
    again = await make_service(**kept)
    assert again.get_p2p_node().peer_id == peer_id
    await until(lambda: [b for b in borrowed(again) if b.status == "healthy"])
    assert (await again.get_backend_manager().infer("generation", MODEL, "x")).text == counted(16)


async def test_two_servers_on_one_store_share_who_is_trusted(make_service, tmp_path):
    store = str(tmp_path / "shared.sqlite3")
    one, two = await make_service(store_path=store), await make_service(store_path=store)
    peer_id = "12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE"
    await one.peers.trust(peer_id, terms(name="carol", models=("a",)))
    await until(lambda: "carol" in peers_of(two))
    assert peers_of(two)["carol"]["quota"]["models"] == ("a",)
    made = await one.peers.invite(terms(name="dave"))
    await until(lambda: [item["id"] for item in two.peers.report()["invites"]] == [made["id"]])
    assert await two.peers.revoke(peer_id)
    await until(lambda: not peers_of(one).get("carol", {}).get("trusted"))


async def test_what_is_agreed_stays_where_nothing_is_said(make_service):
    service = await make_service()
    peer_id = "12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE"
    await service.peers.trust(peer_id, terms(name="carol", models=("a",), tokens_per_minute=5, ours=True))
    told = await service.peers.trust(peer_id, terms(max_concurrent=9))
    assert (told["name"], told["ours"]) == ("carol", True)
    assert told["quota"] == {"models": ("a",), "max_concurrent": 9, "tokens_per_minute": 5}
    with pytest.raises(BadRequest):
        await service.peers.trust("no peer id", terms())


async def test_a_peer_is_a_backend_among_others_and_the_model_decides(pair):
    _, borrower = pair
    manager = borrower.get_backend_manager()
    await until(lambda: [b for b in borrowed(borrower) if b.status == "healthy"])
    manager.register_backend("own", "gpu", "Own", Counting())
    manager.set_strategy("round_robin")
    chosen = [(await manager.infer("generation", MODEL, "x")).backend_id for _ in range(8)]
    assert chosen.count("own") == 4
    with pytest.raises(ModelNotFound):
        await manager.infer("generation", "paid-model", "x")


def test_without_libp2p_one_part_says_so_and_the_rest_runs(start_peer, labs):
    server = start_peer(without=["libp2p"])
    part = server.parts["libp2p"]
    assert part["state"] == "failed"
    assert "uia-lab[p2p]" in part["reason"]
    assert "libgmp" in part["reason"]
    lab = labs(server)
    assert lab.generate("x", MODEL, max_tokens=16, show=False).text == counted(16)
    assert lab.peers().node is None
    assert repr(lab.peers()).startswith("no network of peers")
    with pytest.raises(NoBackendAvailable, match="enable_libp2p"):
        lab.peers().invite()


async def test_the_mode_off_has_no_network(make_service):
    service = await make_service(p2p_mode="off")
    assert service.parts["libp2p"]["state"] == "off"
    assert service.get_p2p_node() is None
