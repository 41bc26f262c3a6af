"""Nodes that know each other: requests, cancellation, trust, restarts, and nothing left behind."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from tests.p2p.conftest import MODEL, OFFER, Counting, ask, counted, descriptors, read, until
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    LoopDetected,
    ModelNotFound,
    NotAllowed,
    RateLimited,
    StoreError,
)
from uia_lab.domain.events import Chunk, Finished, Result, Started, Text, Usage
from uia_lab.domain.peers import Load, Offer, OfferedModel, PeerState, Quota
from uia_lab.domain.requests import InferenceRequest, Resumed
from uia_lab.p2p.calls import WINDOW
from uia_lab.p2p.node import P2PNode
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import MemoryTrust


async def test_an_answer_comes_as_it_was_given(friends):
    serve = Counting()
    lender, borrower = await friends(serve)
    text, end = await read(borrower.request(lender.peer_id, ask(20, via=("elsewhere",))))
    assert (text, end.result) == (counted(20), counted(20))
    assert end.usage == Usage(3, 20)
    (request,) = serve.requests
    assert request.principal == f"peer:{borrower.peer_id}"
    assert request.via == ("elsewhere", "instance-1")
    assert (request.model, request.stream, request.parameters) == (MODEL, True, {"max_tokens": 20})


async def test_both_sides_know_each_other_after_an_invitation(friends):
    lender, borrower = await friends()
    here, there = borrower.peer(lender.peer_id), lender.peer(borrower.peer_id)
    assert (here.state, here.trusted, here.offer, here.instance_id) == (
        PeerState.CONNECTED,
        True,
        OFFER,
        "instance-0",
    )
    assert (there.state, there.name, there.trusted) == (PeerState.CONNECTED, "bob", True)
    assert here.addresses == tuple(lender.addresses)
    assert lender.invites == []
    assert here.to_dict()["found_by"] == ["invite"]


async def test_whatever_a_task_gives_and_takes(friends):
    inputs = {}

    async def serve(request):
        inputs[request.task] = request.inputs
        yield Started("")
        value = [[0.5] * 50_000] * 3 if request.task == "text-embedding" else {"label": "a"}
        yield Chunk(0, Result(value))
        yield Finished(value, Usage(1, 0))

    offer = Offer(tasks=("text-embedding", "image-classification", "text-generation"))
    lender, borrower = await friends(serve, offer=offer)
    sent = {"text-embedding": ["a" * 700_000, "b" * 700_000], "image-classification": b"\x00\xff" * 10}
    for task, given in sent.items():
        request = InferenceRequest(task, inputs=given)
        events = [event async for event in borrower.request(lender.peer_id, request)]
        assert inputs[task] == given
        value = events[-1].result
        assert value == ({"label": "a"} if task != "text-embedding" else [[0.5] * 50_000] * 3)


async def test_many_requests_share_one_stream_and_none_gets_into_another_s_way(friends):
    lender, borrower = await friends(Counting())
    await lender.trust(borrower.peer_id, quota=Quota(max_concurrent=None))
    answers = await asyncio.gather(
        *(read(borrower.request(lender.peer_id, ask(number))) for number in range(40))
    )
    assert [text for text, _ in answers] == [counted(number) for number in range(40)]
    assert lender.peer(borrower.peer_id).serving == 0


async def test_leaving_an_answer_cancels_it_there(friends):
    serve = Counting(asyncio.Semaphore(3))
    lender, borrower = await friends(serve)
    answer = borrower.request(lender.peer_id, ask(1000))
    async for event in answer:
        if isinstance(event, Chunk) and event.index == 2:
            break
    assert lender.peer(borrower.peer_id).serving == 1
    await answer.aclose()
    await until(lambda: serve.closed == 1)
    await until(lambda: lender.peer(borrower.peer_id).serving == 0)


async def test_a_reader_that_stops_slows_the_sender_down_and_nobody_else(friends):
    serve = Counting()
    lender, borrower = await friends(serve)
    answer = borrower.request(lender.peer_id, ask(5000))
    await anext(answer)
    await until(lambda: serve.made >= WINDOW)
    text, _ = await read(borrower.request(lender.peer_id, ask(100)))
    assert text == counted(100)
    assert serve.made <= 2 * WINDOW + 100
    rest, _ = await read(answer)
    assert rest == counted(5000)


async def test_errors_come_with_their_type(friends):
    async def serve(request):
        raise {"bad": BadRequest("no such thing", param="x"), "none": ModelNotFound("gone")}.get(
            request.inputs, ValueError("secret detail")
        )
        yield

    lender, borrower = await friends(serve)
    for inputs, kind in (("bad", BadRequest), ("none", ModelNotFound), ("other", BackendFailed)):
        request = InferenceRequest("text-generation", MODEL, inputs)
        with pytest.raises(kind) as caught:
            await read(borrower.request(lender.peer_id, request))
        assert "secret" not in str(caught.value)
    with pytest.raises(BadRequest) as caught:
        await read(borrower.request(lender.peer_id, InferenceRequest("text-generation", MODEL, "bad")))
    assert (caught.value.param, caught.value.message) == ("x", "no such thing")


async def test_an_answer_without_its_end_has_failed(friends):
    async def serve(request):
        yield Started("")
        yield Chunk(0, Text("half"))

    lender, borrower = await friends(serve)
    with pytest.raises(BackendFailed, match="whole"):
        await read(borrower.request(lender.peer_id, ask()))


async def test_quotas_and_what_is_not_lent(friends):
    lender, borrower = await friends(Counting(asyncio.Semaphore(0)))
    with pytest.raises(NotAllowed, match="not lent"):
        await read(borrower.request(lender.peer_id, ask(model="other")))
    await lender.trust(borrower.peer_id, quota=Quota(max_concurrent=1))
    first = borrower.request(lender.peer_id, ask())
    await anext(first)
    with pytest.raises(RateLimited) as caught:
        await read(borrower.request(lender.peer_id, ask()))
    assert caught.value.retry_after == 1.0
    await first.aclose()
    await lender.trust(borrower.peer_id, quota=Quota(models=()))
    with pytest.raises(NotAllowed, match="to you"):
        await read(borrower.request(lender.peer_id, ask()))


async def test_a_request_that_has_been_there_goes_no_further(friends):
    lender, borrower = await friends()
    with pytest.raises(LoopDetected):
        await read(borrower.request(lender.peer_id, ask(via=("instance-0",))))


async def test_an_answer_goes_on_where_another_broke_off(friends):
    async def serve(request):
        assert request.resumed == Resumed("0 1 ", 2, "d")
        yield Started("")
        yield Chunk(0, Text("2 "))
        # A manager counts the whole answer.
        yield Finished("0 1 2 ", Usage(1, 3))

    lender, borrower = await friends(serve)
    events = borrower.request(lender.peer_id, ask(resumed=Resumed("0 1 ", 2, "d")))
    ends = [event async for event in events if isinstance(event, Finished)]
    assert [(end.result, end.usage.output_tokens) for end in ends] == [("2 ", 1)]


async def test_a_changed_offer_and_load_are_told_at_once(make_node):
    offered, load = [OFFER], Load()
    node = await make_node(offer=lambda: offered[0])
    node._load = lambda: load
    other = await make_node()
    await other.accept_invite((await node.invite()).link)
    offered[0] = Offer(models=(OfferedModel(name="new", tasks=("text-generation",)),))
    await until(lambda: other.peer(node.peer_id).offer == offered[0])
    load = Load(in_flight=3, queued=1)
    await until(lambda: node._hub.load == load)
    assert (await other.refresh(node.peer_id)).load == load
    assert other.peer(node.peer_id).rtt_ms > 0


async def test_followers_hear_the_newest_state_of_each_peer(friends):
    lender, borrower = await friends()
    changes = borrower.subscribe()
    assert (await anext(changes)).state is PeerState.CONNECTED
    await lender.stop()
    async with asyncio.timeout(20):
        async for info in changes:
            if info.state is PeerState.OFFLINE:
                break
    await borrower.stop()
    async with asyncio.timeout(20):
        assert [info async for info in changes if info.connected] == []


async def test_a_node_that_comes_back_with_its_key_is_known_again(make_node, tmp_path):
    lender = await make_node(key_path=tmp_path / "a.key")
    borrower = await make_node(key_path=tmp_path / "b.key")
    await borrower.accept_invite((await lender.invite("bob")).link)
    before = borrower.peer_id
    for _ in range(2):
        await borrower.stop()
        await until(lambda: lender.peer(before).state is PeerState.OFFLINE)
        assert not borrower.running
        assert borrower.addresses == []
        await borrower.start()
        assert borrower.peer_id == before
        await until(lambda: borrower.peer(lender.peer_id).connected)
        assert (await read(borrower.request(lender.peer_id, ask())))[0] == counted(5)


async def test_whoever_is_dialled_comes_back_by_itself(friends):
    lender, borrower = await friends()
    await borrower.disconnect(lender.peer_id)
    await until(lambda: borrower.peer(lender.peer_id).connected)
    text, _ = await read(borrower.request(lender.peer_id, ask()))
    assert text == counted(5)


async def test_stopping_ends_requests_on_both_sides(friends):
    serve = Counting(asyncio.Semaphore(1))
    lender, borrower = await friends(serve)
    answer = borrower.request(lender.peer_id, ask(100))
    await anext(answer)
    await borrower.stop()
    with pytest.raises(BackendFailed):
        await read(answer)
    await until(lambda: serve.closed == 1)
    for call in (borrower.refresh(lender.peer_id), borrower.invite(), borrower.connect("x")):
        with pytest.raises(BackendFailed, match="stopped"):
            await call
    with pytest.raises(BackendFailed, match="stopped"):
        await read(borrower.request(lender.peer_id, ask()))


async def test_nothing_is_left_behind(network, tmp_path):
    from tests.p2p.conftest import nodes_of

    async def once():
        async with nodes_of(network) as make:
            lender, borrower = await make(key_path=tmp_path / "a.key"), await make(enable_mdns=True)
            await borrower.accept_invite((await lender.invite()).link)
            await read(borrower.request(lender.peer_id, ask()))

    await once()
    before, threads = descriptors(), set(threading.enumerate())
    for _ in range(3):
        await once()
    assert descriptors() <= before
    assert not [thread for thread in set(threading.enumerate()) - threads if "asyncio" not in thread.name]


async def test_start_and_stop_take_a_moment(friends):
    _, borrower = await friends()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await borrower.stop()
    await borrower.start()
    # About 0.2 s on an idle machine.
    assert loop.time() - began < 10


async def test_off_has_no_network(make_node):
    node = await make_node(mode="off")
    assert not node.running
    with pytest.raises(BackendFailed):
        await node.invite()


async def test_a_taken_port_is_an_error_and_not_half_of_the_connections(make_node):
    node = await make_node()
    address = node.addresses[0].partition("/p2p/")[0]
    with pytest.raises(BackendFailed, match="p2p_listen"):
        await make_node(listen=(address,))


@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/udp/0/quic-v1", "hello", "/ip4/127.0.0.1/tcp/0/ws"])
async def test_only_tcp_is_listened_at(make_node, listen):
    with pytest.raises(BadRequest, match="nothing to listen at"):
        await make_node(listen=(listen,))


async def test_an_address_of_all_interfaces_is_not_told(make_node):
    node = await make_node(listen=("/ip4/0.0.0.0/tcp/0",))
    assert node.addresses
    assert not [address for address in node.addresses if "/0.0.0.0/" in address]


@pytest.mark.parametrize(
    "address", ["", "hello", "/ip4/127.0.0.1/tcp/1", "/p2p/x", "/ip4/1.2.3.4/udp/1/p2p/12D3"]
)
async def test_what_is_no_address_is_a_bad_request(make_node, address):
    node = await make_node()
    with pytest.raises(BadRequest, match="no address of a peer"):
        await node.connect(address)
    with pytest.raises(BadRequest, match="no peer id"):
        await node.trust(address)


async def test_the_settings_are_checked():
    for bad in ({"mode": "public"}, {"network": ""}, {"listen": ()}, {"discovery_interval": 0}):
        with pytest.raises(BadRequest):
            P2PConfig(**bad)


async def test_a_thread_that_ends_by_an_error_takes_nothing_else_along(friends, caplog):
    lender, borrower = await friends()
    borrower._thread.post(lambda: borrower._hub._nursery.start_soon(_fail))
    await until(lambda: not borrower.running)
    await until(lambda: borrower.peer(lender.peer_id).state is PeerState.OFFLINE)
    with pytest.raises(BackendFailed):
        await read(borrower.request(lender.peer_id, ask()))
    await until(lambda: "the p2p node has ended" in caplog.text)
    await borrower.start()
    assert borrower.running


async def _fail():
    raise ZeroDivisionError("on purpose")


def test_without_libp2p_one_message_says_what_to_do_and_the_rest_works():
    code = """
import asyncio, sys
sys.modules["fastecdsa"] = None
from uia_lab.domain.errors import BackendFailed
from uia_lab.libp2p_inference import LibP2PInferenceNode
import uia_lab.p2p.node
assert not {"libp2p", "trio", "zeroconf"} & set(sys.modules), "imported before it is needed"
from uia_lab import BackendCapabilities, BackendManager

async def main():
    node = LibP2PInferenceNode({"mode": "open"})
    try:
        await node.start()
    except BackendFailed as error:
        print(error)
    await node.stop()
    manager = BackendManager()
    tasks = BackendCapabilities({"text-generation"})
    manager.register_backend("f", "gpu", "F", lambda inputs: inputs, tasks)
    print((await manager.infer("text-generation", "m", "works")).text)
    await manager.aclose()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ},
        check=True,
    )
    message, works = done.stdout.splitlines()
    assert "libgmp-dev" in message
    assert "pip install 'uia-lab[p2p]'" in message
    assert works == "works"
    assert done.stderr == ""


def test_a_node_needs_no_loop_to_be_made():
    node = P2PNode(P2PConfig(), serve=Counting(), trust=MemoryTrust(), capabilities=lambda: OFFER)
    assert (node.running, node.addresses, node.peers, node.peer_id) == (False, [], [], "")


async def test_a_peer_is_out_even_where_that_cannot_be_kept(friends, monkeypatch):
    serve = Counting(asyncio.Semaphore(1))
    lender, borrower = await friends(serve)
    reading = asyncio.create_task(read(borrower.request(lender.peer_id, ask(5))))
    await until(lambda: serve.made == 1)

    async def full(peer_id):
        raise StoreError("the disk is full")

    monkeypatch.setattr(lender._trust._store, "remove_peer", full)
    with pytest.raises(StoreError):
        await lender.revoke(borrower.peer_id)
    with pytest.raises(BackendFailed):
        await reading
    await until(lambda: serve.closed == 1)
    assert not lender.peer(borrower.peer_id).connected


async def test_a_connection_that_is_hung_up_takes_no_more_requests(friends):
    lender, borrower = await friends()
    hub, thread = borrower._hub, borrower._thread

    async def hang_up():
        session = hub.session(lender.peer_id)
        await hub._kick(session.connection)
        return session.alive

    assert await thread.call(hang_up) is False


async def test_a_thread_that_does_not_end_keeps_nobody_waiting(make_node, monkeypatch):
    node = await make_node()
    free = threading.Event()
    thread = node._thread
    monkeypatch.setattr("uia_lab.p2p.thread.STOP_S", 0.05)
    changes = node.subscribe()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    thread.post(free.wait, 30)
    try:
        with pytest.raises(TimeoutError):
            await node.stop()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert not node.running
    finally:
        free.set()
    await thread.ended(20)
    await thread.stop()


async def test_an_invitation_is_not_lost_where_the_store_is_slow(make_node, monkeypatch):
    lender, borrower = await make_node(), await make_node()
    monkeypatch.setattr("uia_lab.p2p.hub.HELLO_S", 0.3)
    store, real = lender._trust._store, lender._trust._store.save_peer

    async def slow(peer):
        await asyncio.sleep(1)
        await real(peer)

    monkeypatch.setattr(store, "save_peer", slow)
    link = (await lender.invite("bob")).link
    with pytest.raises(BackendFailed):
        await borrower.accept_invite(link)
    await until(lambda: lender._trust.trusts(borrower.peer_id))
    monkeypatch.undo()
    assert (await borrower.accept_invite(link)).connected
