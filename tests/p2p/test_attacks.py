"""Whoever means no good is refused or bounded, and the node serves the others all the while."""

import asyncio
import contextlib
import os
import struct
import warnings

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.p2p.bare_host import bare_host
from tests.p2p.conftest import MODEL, OFFER, Counting, ask, counted, descriptors, read, until
from uia_lab.domain.errors import BackendFailed, NotAllowed
from uia_lab.domain.peers import Load, PeerState, Quota
from uia_lab.p2p import answering, messages
from uia_lab.p2p import hub as hub_module
from uia_lab.p2p.frames import MAX_FRAME, Splitter, pack
from uia_lab.p2p.hello import PROTOCOLS
from uia_lab.p2p.libp2p_host import MOST_STREAMS, peer_id_of
from uia_lab.p2p.records import Signer
from uia_lab.p2p.session import MOST_LOAD
from uia_lab.p2p.streams import StreamGone

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.network.stream.exceptions import StreamEOF, StreamReset
    from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport


class Attacker:
    """A bare host that a node trusts, and that knows the protocols as well as we do."""

    def __init__(self, bare, seed, network):
        self.bare = bare
        self.peer_id = bare.peer_id
        self.network = network
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.signer = Signer(self.key, self.peer_id, network)
        self.connection = None
        bare.host.set_stream_handler(messages.STATUS, self._on_status)

    async def _on_status(self, stream):
        """It gives signs of life: otherwise it would not be a peer for long."""
        splitter = Splitter(messages.Beat)
        with contextlib.suppress(StreamEOF, StreamReset):
            while data := await stream.read(65_536):
                for ping in splitter.feed(data):
                    await stream.write(pack(messages.Pong(n=ping.n)))

    async def hello(self, node, invite=None, record=None, network=None):
        """Connects and says hello; gives the answer."""
        self.connection = await self.bare.dial(node.addresses[0])
        stream = await self.bare.open(self.connection, messages.HELLO)
        frame = messages.Hello(
            versions=PROTOCOLS,
            network=network or self.network,
            instance_id="attacker",
            software="0",
            record=record or self.signer.record(OFFER),
            invite=invite,
        )
        await self.send(stream, pack(frame))
        return (await self.frames(stream, messages.Greeting))[0]

    async def open(self, protocol):
        return await self.bare.open(self.connection, protocol)

    async def send(self, stream, data):
        await self.bare.run(stream.write, data)

    async def frames(self, stream, kinds):
        """The next frames."""
        splitter = Splitter(kinds)

        async def read():
            with trio.fail_after(20):
                while not (found := list(splitter.feed(await stream.read(65_536)))):
                    pass
                return found

        return await self.bare.run(read)

    async def closed(self, stream):
        """Done when the stream is of no more use."""

        async def read():
            with trio.fail_after(20):
                try:
                    while await stream.read(65_536):
                        pass
                except Exception:  # noqa: BLE001
                    return

        await self.bare.run(read)


@pytest.fixture
async def attacker(network):
    seed = os.urandom(32)
    async with bare_host(seed) as bare:
        yield Attacker(bare, seed, network)


@pytest.fixture
async def victim(friends, attacker):
    """A node with a friend, and with an attacker whom it trusts too."""
    serve = Counting()
    node, friend = await friends(serve)
    await node.trust(attacker.peer_id, "mallory", Quota(max_concurrent=2))
    node.serve, node.friend = serve, friend
    yield node
    # Whatever happened: it still serves, over the connection that it had.
    assert (await read(friend.request(node.peer_id, ask(50))))[0] == counted(50)
    assert node.running


def request_frame(label, tokens=5, **fields):
    return messages.Request(
        id=label, task="text-generation", model=MODEL, inputs="x", parameters={"max_tokens": tokens}, **fields
    )


async def test_an_id_claimed_over_plain_text_opens_nothing(victim):
    """Trap 1: a usual host would take it at its word."""
    keys = create_new_key_pair(os.urandom(32))
    friend = victim.friend.peer_id
    plain = InsecureTransport(keys)
    liar = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: plain})
    async with bare_host(None, liar) as bare:
        with pytest.raises(Exception, match=r"security|upgrade|protocol|closed|negotiat"):
            await bare.dial(victim.addresses[0])
    assert victim.peer(friend).connected
    assert victim.peer(str(liar.get_id())) is None
    offered = victim._hub.host.get_network().upgrader.security_multistream.transports
    assert list(offered) == ["/noise"]


async def test_a_stranger_gets_no_further_than_a_refusal(victim, attacker, monkeypatch):
    await victim.revoke(attacker.peer_id)
    answer = await attacker.hello(victim)
    assert isinstance(answer, messages.Refused)
    assert "not trusted" in answer.message
    assert victim.peer(attacker.peer_id).state is PeerState.REFUSED
    await until(lambda: attacker.connection.is_closed)
    # Whoever does not even say hello is not kept, and no protocol answers in the meantime.
    connection = await attacker.bare.dial(victim.addresses[0])
    for protocol in (messages.INFERENCE, messages.STATUS, "/rendezvous/1.0.0"):
        with contextlib.suppress(StreamGone):
            stream = await attacker.bare.open(connection, protocol)
            with contextlib.suppress(Exception):
                await attacker.send(stream, pack(request_frame("1")))
            await attacker.closed(stream)
    await until(lambda: connection.is_closed)
    assert victim.serve.requests == []
    assert not victim.peer(attacker.peer_id).connected


async def test_without_hello_nothing_is_answered_to_a_trusted_peer_either(victim, attacker, monkeypatch):
    monkeypatch.setattr(hub_module, "HELLO_S", 1.0)
    connection = await attacker.bare.dial(victim.addresses[0])
    stream = await attacker.bare.open(connection, messages.INFERENCE)
    with contextlib.suppress(Exception):
        await attacker.send(stream, pack(request_frame("1")))
    await attacker.closed(stream)
    assert victim.serve.requests == []
    await until(lambda: connection.is_closed)


@pytest.mark.parametrize("protocol", [messages.HELLO, messages.INFERENCE, messages.STATUS])
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", MAX_FRAME + 1),
        struct.pack(">I", 7) + b"no json",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 20) + b'{"type": "surprise"}',
    ],
)
async def test_a_broken_frame_ends_its_stream_and_nothing_else(victim, attacker, protocol, data):
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(protocol)
    await attacker.send(stream, data)
    await attacker.closed(stream)
    if protocol == messages.INFERENCE:
        stream = await attacker.open(protocol)
        await attacker.send(stream, pack(request_frame("1")))
        (first, *_) = await attacker.frames(stream, messages.ToClient)
        assert first == messages.Accepted(id="1")


async def test_a_thousand_half_open_streams(victim, attacker):
    assert isinstance(await attacker.hello(victim), messages.Hello)
    before = descriptors()

    async def flood():
        opened = 0
        # At most 256 can be open at once; those that the node resets make room for more.
        with trio.move_on_after(15):
            for _ in range(1000):
                await attacker.connection.muxed_conn.open_stream()
                opened += 1
        return opened

    assert await attacker.bare.run(flood) > MOST_STREAMS
    connection = next(
        link.connection
        for link in victim._hub._links.values()
        if link.session is not None and link.session.peer_id == attacker.peer_id
    )
    await asyncio.sleep(0)
    text, _ = await read(victim.friend.request(victim.peer_id, ask(20)))
    assert text == counted(20)
    await until(lambda: len(connection.streams) <= MOST_STREAMS)
    assert descriptors() <= before


async def test_a_reader_that_takes_nothing_holds_a_bounded_amount(victim, attacker):
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(messages.INFERENCE)
    await attacker.send(stream, pack(request_frame("1", 1_000_000, window=10**9)))
    await attacker.send(stream, pack(request_frame("2", 1_000_000)))
    # It acknowledges nothing, and of the second one it reads nothing.
    await until(lambda: victim.serve.made > 300)
    made = victim.serve.made
    assert (await read(victim.friend.request(victim.peer_id, ask(20))))[0] == counted(20)
    await until(lambda: victim.serve.closed >= 3, 60)
    assert victim.serve.made < made + 100_000
    await until(lambda: victim.peer(attacker.peer_id).serving == 0)


async def test_more_requests_than_are_allowed(victim, attacker):
    victim.serve.gate = gate = asyncio.Semaphore(0)
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(messages.INFERENCE)
    await attacker.send(stream, b"".join(pack(request_frame(str(n))) for n in range(500)))
    seen = []
    while sum(isinstance(frame, messages.Failed) for frame in seen) < 498:
        seen += await attacker.frames(stream, messages.ToClient)
    assert {frame.code for frame in seen if isinstance(frame, messages.Failed)} <= {
        "rate_limit_exceeded",
        "queue_full",
    }
    assert victim.peer(attacker.peer_id).serving == 2
    await attacker.bare.run(attacker.connection.close)
    await until(lambda: victim.peer(attacker.peer_id).serving == 0)
    victim.serve.gate = None
    gate.release()


async def test_refusals_that_nobody_reads_end_the_stream(monkeypatch):
    """A peer that asks without end and reads nothing holds a bounded amount."""
    monkeypatch.setattr(answering, "MOST_WAITING", 500)
    asked = b"".join(pack(request_frame(str(number))) for number in range(2_000))

    class Stream:
        def __init__(self):
            self.fed = 0
            self.ended = False

        async def read(self, most):
            await trio.sleep(0)
            data = asked[self.fed : self.fed + most]
            self.fed += len(data)
            return data or await trio.sleep_forever()

        async def write(self, data):
            await trio.sleep_forever()

        async def reset(self):
            self.ended = True

    class Answers:
        def begin(self, peer_id, frame, answer):
            pass

        def cancel(self, answer):
            pass

    async def served(stream):
        def tell(function, *args):
            function(*args)

        side = answering.Answering(stream, "peer", Answers(), tell, lambda function: function())
        with trio.fail_after(20):
            await side.run()
        return len(side._outbox)

    stream = Stream()
    assert await asyncio.to_thread(trio.run, served, stream) <= 501
    assert stream.ended


async def test_a_connection_has_one_hello_and_one_session(victim, attacker):
    assert isinstance(await attacker.hello(victim), messages.Hello)
    for _ in range(3):
        stream = await attacker.open(messages.HELLO)
        frame = messages.Hello(
            versions=PROTOCOLS,
            network=attacker.network,
            instance_id="attacker",
            software="0",
            record=attacker.signer.record(OFFER),
        )
        await attacker.send(stream, pack(frame))
        await attacker.closed(stream)
    assert len(victim._hub._sessions[attacker.peer_id]) == 1
    assert victim.peer(attacker.peer_id).connected


async def test_a_label_in_use_ends_the_stream(victim, attacker):
    victim.serve.gate = asyncio.Semaphore(0)
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(messages.INFERENCE)
    await attacker.send(stream, pack(request_frame("1")) * 2)
    await attacker.closed(stream)
    await until(lambda: victim.peer(attacker.peer_id).serving == 0)
    victim.serve.gate = None


async def test_a_replayed_record_is_refused(victim, attacker):
    old = attacker.signer.record(OFFER)
    new = attacker.signer.record(msgspec.structs.replace(OFFER, max_concurrent=9))
    assert isinstance(await attacker.hello(victim, record=new), messages.Hello)
    await attacker.bare.run(attacker.connection.close)
    answer = await attacker.hello(victim, record=old)
    assert isinstance(answer, messages.Refused)
    assert "older" in answer.message
    assert victim.peer(attacker.peer_id).offer.max_concurrent == 9
    # Nor does it come in by a ping.
    assert isinstance(await attacker.hello(victim, record=new), messages.Hello)
    stream = await attacker.open(messages.STATUS)
    await attacker.send(stream, pack(messages.Ping(n=1, record=old)))
    await until(lambda: attacker.connection.is_closed)
    assert victim.peer(attacker.peer_id).offer.max_concurrent == 9


async def test_a_record_of_somebody_else_is_refused(victim, attacker):
    other = Ed25519PrivateKey.generate()
    signer = Signer(other, peer_id_of(other.public_key().public_bytes_raw()), attacker.network)
    answer = await attacker.hello(victim, record=signer.record(OFFER))
    assert isinstance(answer, messages.Refused)
    assert "another peer" in answer.message


async def test_a_lie_about_the_load_is_a_bounded_hint(victim, attacker):
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(messages.STATUS)
    for told, kept in ((10**30, MOST_LOAD), (-5, 0)):
        load = Load(in_flight=told, queued=told)
        await attacker.send(stream, pack(messages.Ping(n=1, load=load)))
        (pong,) = await attacker.frames(stream, messages.Beat)
        assert (pong.n, pong.record is not None) == (1, told > 0)
        await until(lambda kept=kept: victim.peer(attacker.peer_id).load == Load(in_flight=kept, queued=kept))


async def test_a_used_invitation_opens_nothing(victim, attacker, make_node):
    await victim.revoke(attacker.peer_id)
    link = (await victim.invite("carol")).link
    await (await make_node()).accept_invite(link)
    from uia_lab.p2p.invites import link_of

    answer = await attacker.hello(victim, invite=link_of(link).secret)
    assert isinstance(answer, messages.Refused)
    assert "used" in answer.message
    assert not victim.peer(attacker.peer_id).trusted


async def test_a_server_that_sends_what_nobody_asked_for(make_node, network):
    """The other way round: the node asks, and the peer it asks breaks the protocol."""
    seed = os.urandom(32)
    replies = []

    async with bare_host(seed, listen=("/ip4/127.0.0.1/tcp/0",)) as bare:
        mallory = Attacker(bare, seed, network)

        async def on_hello(stream):
            await stream.read(65_536)
            frame = messages.Hello(
                versions=PROTOCOLS,
                network=network,
                instance_id="m",
                software="0",
                record=mallory.signer.record(OFFER),
            )
            await stream.write(pack(frame))

        async def on_inference(stream):
            await stream.read(65_536)
            await stream.write(replies.pop(0))
            await trio.sleep(20)

        for protocol, handler in ((messages.HELLO, on_hello), (messages.INFERENCE, on_inference)):
            bare.host.set_stream_handler(protocol, handler)
        node = await make_node()
        await node.trust(bare.peer_id)
        address = str(bare.host.get_transport_addrs()[0])
        await node.connect(f"{address}/p2p/{bare.peer_id}")
        accepted = pack(messages.Accepted(id="1"))
        chunk = pack(messages.Chunk(id="1", seq=0, text="a"))
        for reply, why in (
            (accepted + pack(messages.Chunk(id="1", seq=1, text="a")), "chunk 1 came where 0 was due"),
            (accepted + chunk + chunk, "chunk 0 came where 1 was due"),
            (accepted + chunk + pack(messages.Done(id="1", chunks=2)), "1 chunks came of 2"),
            (accepted + pack(messages.Chunk(id="1", seq=0)), "without content"),
            (b"\xff\xff\xff\xff", "over the limit"),
        ):
            replies.append(reply.replace(b'"id":"1"', b'"id":"' + str(node_label(node)).encode() + b'"'))
            with pytest.raises(BackendFailed, match=why):
                await read(node.request(bare.peer_id, ask()))
            # The next request opens another stream.
            await bare.run(close_inference, bare)


def node_label(node):
    """The label that the node's next request will have."""
    (sessions,) = node._hub._sessions.values()
    text = repr(sessions[-1].asking._numbers)
    return text.partition("(")[2].rstrip(")")


async def close_inference(bare):
    for connections in bare.host.get_network().connections.values():
        for connection in connections:
            for stream in list(connection.streams):
                if stream.get_protocol() == messages.INFERENCE:
                    await stream.reset()
    await trio.sleep(0.1)


async def test_an_honest_node_is_not_refused(victim, attacker):
    """What the other tests refuse is not refused because everybody is."""
    assert isinstance(await attacker.hello(victim), messages.Hello)
    stream = await attacker.open(messages.INFERENCE)
    await attacker.send(stream, pack(request_frame("1", 3)))
    seen = []
    while not any(isinstance(frame, messages.Done) for frame in seen):
        seen += await attacker.frames(stream, messages.ToClient)
    assert "".join(frame.text for frame in seen if isinstance(frame, messages.Chunk)) == counted(3)
    assert seen[-1].chunks == 3


async def test_another_network_and_an_old_version_are_told_why(victim, attacker):
    answer = await attacker.hello(victim, network="elsewhere")
    assert (answer.code, "elsewhere" in answer.message) == (NotAllowed.code, True)
