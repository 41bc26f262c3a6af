"""The node inside its trio thread: connections, hello, and who may open which stream."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from uia_lab.domain.errors import BackendFailed, InferenceError, NotAllowed
from uia_lab.domain.peers import Load, Offer, PeerState
from uia_lab.domain.texts import one_line
from uia_lab.p2p import messages
from uia_lab.p2p.answering import Answering, Answers
from uia_lab.p2p.asking import Call
from uia_lab.p2p.dialer import Dialer
from uia_lab.p2p.frames import FrameError
from uia_lab.p2p.guards import Loop, contained, credible
from uia_lab.p2p.hello import checked, hello
from uia_lab.p2p.libp2p_host import (
    Notices,
    dial,
    hang_up,
    is_peer_id,
    listen,
    make_host,
    parsed,
    peer_id_of,
    reachable,
)
from uia_lab.p2p.messages import SignedRecord
from uia_lab.p2p.peer_table import PeerTable
from uia_lab.p2p.records import RecordError, Signer, Verifier
from uia_lab.p2p.session import Link, Session, StatusAnswers
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.streams import FrameStream, StreamGone, open_stream
from uia_lab.p2p.thread import TrioThread
from uia_lab.p2p.trust import Trust
from uia_lab.p2p.wire import error_from

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

HELLO_S = 5.0
STRANGER_S = 1.0
"""How long somebody who is not let in stays connected: long enough to be told why."""
DIAL_S = 5.0
CLOSE_S = 2.0
STORE_S = 5.0


class Hub:
    """Belongs to the trio thread, save where it is said.

    Args:
        config: The node's settings.
        seed: The node's key.
        thread: The bridge.
        loop: The node on the loop.
        answers: Who answers peers, on the loop.
        trust: The allow-list.
        instance_id: Id of this service.
    """

    def __init__(
        self,
        config: P2PConfig,
        seed: bytes,
        thread: TrioThread,
        loop: Loop,
        answers: Answers,
        trust: Trust,
        instance_id: str,
    ) -> None:
        self._config = config
        self._seed = seed
        self._thread = thread
        self._loop = loop
        self._answers = answers
        self._trust = trust
        self._instance_id = instance_id
        self.offer = Offer()
        self.load = Load()
        self.addresses: tuple[str, ...] = ()
        self.host: Any = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[Any, Link] = {}
        self._sessions: dict[str, list[Session]] = {}
        self._connecting: dict[str, trio.Lock] = {}
        self._dialled: set[str] = set()
        self._configured: dict[str, str] = {}
        self._start()

    def _start(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.peer_id = peer_id_of(key.public_key().public_bytes_raw())
        self._signer = Signer(key, self.peer_id, self._config.network)
        self._verifier = Verifier(self._config.network, peer_id_of)
        self.table = PeerTable(
            lambda peer_id, info: self._thread.tell(self._loop.peer_changed, peer_id, info), self._is_kept
        )
        for by, addresses in (
            ("bootstrap", self._config.bootstrap_peers),
            ("static", self._config.static_peers),
        ):
            for address in addresses:
                where, peer_id = parsed(address)
                if peer_id != self.peer_id:
                    self._configured[peer_id] = by
                    self.table.found(peer_id, by, (where,))
        for peer in self._trust.peers.values():
            self.table.found(peer.peer_id, "remembered", peer.addresses)

    async def run(self, ready: Callable[[], None], beside: Callable[["Hub"], Awaitable[None]]) -> None:
        """Listens, dials and serves until it is cancelled.

        Args:
            ready: Called when it listens.
            beside: What else runs in this thread for as long.
        """
        from libp2p.tools.anyio_service import background_trio_service

        self.host = host = make_host(self._seed)
        host.get_network().register_notifee(Notices(self._connected, self._disconnected))
        host.set_stream_handler(messages.HELLO, contained(self._on_hello))
        host.set_stream_handler(messages.INFERENCE, contained(self._on_inference))
        host.set_stream_handler(messages.STATUS, contained(self._on_status))
        async with background_trio_service(host.get_network()):
            try:
                await listen(host, self._config.listen)
                self.addresses = tuple(
                    where for known in host.get_transport_addrs() for where in reachable(known)
                )
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self.dialer = Dialer(
                        nursery,
                        self.table,
                        self.connect,
                        self.session,
                        self.wants,
                        self._is_candidate,
                        min(60.0, self._config.discovery_interval),
                    )
                    for info in self.table:
                        self.dialer.consider(info.peer_id)
                    ready()
                    await beside(self)
                    await trio.sleep_forever()
            finally:
                self._nursery = None
                await self._close()

    def found(self, peer_id: str, by: str, addresses: tuple[str, ...]) -> None:
        """Somebody may be there: a candidate, which counts after connect and hello and not before."""
        if peer_id == self.peer_id or not is_peer_id(peer_id) or self._nursery is None:
            return
        self.table.found(peer_id, by, addresses)
        self.dialer.consider(peer_id)

    @property
    def bootstrap(self) -> list[str]:
        """Ids of the bootstrap peers."""
        return [peer_id for peer_id, by in self._configured.items() if by == "bootstrap"]

    def gated(self, handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """A stream handler for peers that are let in, and nobody else."""

        async def handle(raw: Any) -> None:
            if await self._admitted(raw) is None:
                await raw.reset()
                return
            await handler(raw)

        return contained(handle)

    def session(self, peer_id: str) -> Session | None:
        """The session with a peer, the latest one first, if there is one."""
        for session in reversed(self._sessions.get(peer_id, ())):
            if session.alive:
                return session
        return None

    def wants(self, peer_id: str) -> bool:
        """Whether a peer is dialled for ever."""
        return peer_id != self.peer_id and (peer_id in self._configured or self._trust.trusts(peer_id))

    def may_use(self, peer_id: str) -> bool:
        """Whether a peer may ask for inference here."""
        return self._config.mode == "open" or self._trust.trusts(peer_id)

    def ask(self, peer_id: str, call: Call) -> None:
        """Sends a request; how it ends, its inbox hears."""
        session = self.session(peer_id)
        if session is None or session.asking is None:
            info = self.table.get(peer_id)
            why = info.reason if info is not None and info.reason else "not connected"
            call.inbox.fail(BackendFailed(f"the peer {_short(peer_id)} cannot be asked: {why}"))
            return
        call.asking = session.asking
        session.asking.begin(call)

    def announce(self, offer: Offer) -> None:
        """What is lent has changed: whoever is connected hears of it now."""
        self.offer = offer
        for sessions in self._sessions.values():
            for session in sessions:
                session.poke()

    async def connect(self, peer_id: str, invite: str | None = None) -> Session:
        """Connects to a known peer and says hello, unless that was done.

        Raises:
            NotAllowed: It does not let us in, or its id is another.
            BackendFailed: It cannot be reached.
        """
        async with self._connecting.setdefault(peer_id, trio.Lock()):
            session = self.session(peer_id)
            if session is not None:
                return session
            info = self.table.get(peer_id)
            if info is None or not info.addresses:
                raise BackendFailed(f"no address of the peer {_short(peer_id)} is known")
            if not info.connected and info.state is not PeerState.REFUSED:
                self.table.update(peer_id, state=PeerState.CONNECTING)
            error: InferenceError | None = None
            for address in info.addresses:
                try:
                    return await self._dial(peer_id, address.removesuffix(f"/p2p/{peer_id}"), invite)
                except NotAllowed:
                    raise
                except InferenceError as caught:
                    error = error or caught
            assert error is not None
            raise error

    async def disconnect(self, peer_id: str, reason: str) -> None:
        """Closes every connection to a peer."""
        for session in self._sessions.get(peer_id, ()):
            session.end(reason)
        async with trio.open_nursery() as nursery:
            for link in list(self._links.values()):
                if str(link.connection.muxed_conn.peer_id) == peer_id:
                    nursery.start_soon(self._kick, link.connection)

    async def refresh(self, peer_id: str) -> None:
        """Pings a peer; connects first where it is not connected. Errors as for :meth:`connect`."""
        session = await self.connect(peer_id)
        await session.fresh()
        if not session.alive:
            raise BackendFailed(f"the peer {_short(peer_id)} gives no sign of life: {session.reason}")

    def _is_kept(self, peer_id: str) -> bool:
        return peer_id in self._configured or self._trust.trusts(peer_id)

    def _is_candidate(self, peer_id: str) -> bool:
        return self._config.mode == "open" and peer_id != self.peer_id

    def _may_connect(self, peer_id: str) -> bool:
        """Whether a peer may come as far as hello."""
        return (
            self.may_use(peer_id)
            or peer_id in self._configured
            or peer_id in self._dialled
            or bool(self._trust.invites)
        )

    async def _dial(self, peer_id: str, address: str, invite: str | None) -> Session:
        self._dialled.add(peer_id)
        try:
            connection = await dial(self.host, address, peer_id, DIAL_S)
            try:
                with trio.fail_after(HELLO_S):
                    return await self._greet(connection, peer_id, address, invite)
            except BaseException as error:
                await self._kick(connection)
                if isinstance(error, trio.TooSlowError):
                    raise BackendFailed(f"{address} does not answer a hello") from None
                raise
        finally:
            self._dialled.discard(peer_id)

    async def _greet(self, connection: Any, peer_id: str, address: str, invite: str | None) -> Session:
        """Says hello on a connection that we dialled."""
        stream: FrameStream[messages.Greeting] | None = None
        try:
            raw = await open_stream(connection, messages.HELLO)
            stream = FrameStream(raw, messages.Greeting)
            await stream.send(self._greeting(invite))
            frame = await stream.one()
            if isinstance(frame, messages.Refused):
                raise error_from(frame)
            record = checked(frame, self._config.network, self._verifier, peer_id)
        except (StreamGone, FrameError, RecordError) as error:
            raise BackendFailed(f"no hello from {address}: {error}") from error
        finally:
            if stream is not None:
                await stream.close()
        return await self._establish(connection, peer_id, frame, record, (address,))

    async def _on_hello(self, raw: Any) -> None:
        """A hello on a connection that was dialled by the peer."""
        connection, peer_id = raw.swarm_conn, str(raw.muxed_conn.peer_id)
        stream: FrameStream[messages.Greeting] = FrameStream(raw, messages.Greeting)
        try:
            with trio.fail_after(HELLO_S):
                frame = await stream.one()
                if not isinstance(frame, messages.Hello):
                    return
                link = self._links.setdefault(connection, Link(connection))
                if link.asked or link.session is not None or connection.is_closed:
                    # Each would begin a session of its own, and pings, for as long as the connection lasts.
                    await raw.reset()
                    return
                link.asked = True
                record = checked(frame, self._config.network, self._verifier, peer_id)
                await self._let_in(peer_id, frame)
                addresses = credible(frame.addresses, connection, trusted=self._trust.trusts(peer_id))
                await self._establish(connection, peer_id, frame, record, addresses)
                await stream.send(self._greeting(None))
                await stream.close()
        except (InferenceError, RecordError) as error:
            await self._refuse(stream, connection, error)
        except (StreamGone, FrameError, trio.TooSlowError):
            await self._kick(connection)

    async def _let_in(self, peer_id: str, hello: messages.Hello) -> None:
        if self._trust.trusts(peer_id):
            return
        if hello.invite is not None:
            with trio.fail_after(STORE_S, shield=True):  # type: ignore[call-arg]  # else it may be used up for nobody
                await self._thread.ask(self._trust.redeem, hello.invite, peer_id, ())
            self.table.found(peer_id, "invite")
        elif not (self.may_use(peer_id) or peer_id in self._configured):
            raise NotAllowed(_STRANGER)

    async def _refuse(
        self, stream: FrameStream[messages.Greeting], connection: Any, error: Exception
    ) -> None:
        code = error.code if isinstance(error, InferenceError) else NotAllowed.code
        words = error.message if isinstance(error, InferenceError) else str(error)
        peer_id = str(connection.muxed_conn.peer_id)
        if self.session(peer_id) is None:
            self.table.found(peer_id, "inbound")
            self.table.gone(peer_id, PeerState.REFUSED, "it asked to come in, and is not trusted here")
        with trio.move_on_after(CLOSE_S):
            try:
                await stream.send(messages.Refused(code=code, message=words))
                await stream.close()
                # Time for it to be read: what is sent behind it is the end of the connection.
                await trio.sleep(0.2)
            except StreamGone:
                pass
        await self._kick(connection)

    async def _establish(
        self, connection: Any, peer_id: str, hello: messages.Hello, record: Any, addresses: tuple[str, ...]
    ) -> Session:
        """Both sides have said hello: from now on the peer counts."""
        if self._nursery is None or connection.is_closed:
            raise BackendFailed("the connection was closed")
        words = f"the peer {_short(peer_id)}"
        session = Session(connection, peer_id, words, self._beat, self._heard)
        self._sessions.setdefault(peer_id, []).append(session)
        link = self._links.setdefault(connection, Link(connection))
        link.session = session
        await self._nursery.start(self._attend, session)
        link.greeted.set()
        self.table.found(peer_id, self._how(peer_id), addresses)
        self.table.connected(
            peer_id,
            offer=record.offer,
            instance_id=one_line(hello.instance_id[:128]),
            version=one_line(hello.software[:64]),
        )
        if addresses:
            self._thread.tell(self._loop.remember, peer_id, addresses)
        self.dialer.consider(peer_id)
        return session

    def _how(self, peer_id: str) -> str:
        info = self.table.get(peer_id)
        return next(iter(info.found_by), "inbound") if info is not None else "inbound"

    async def _attend(
        self, session: Session, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        peer_id = session.peer_id
        try:
            await session.run(task_status=task_status)
        except Exception:
            # One peer must not take the others along.
            log.exception("unexpected error in the session of a peer")
        finally:
            sessions = self._sessions[peer_id]
            sessions.remove(session)
            if not sessions:
                del self._sessions[peer_id]
                self.table.gone(peer_id, PeerState.OFFLINE, session.reason or "the connection was closed")

    def _beat(self) -> tuple[Load, SignedRecord]:
        return self.load, self._signer.record(self.offer)

    def _heard(
        self, session: Session, round_trip: float | None, load: Load, record: SignedRecord | None
    ) -> None:
        facts: dict[str, Any] = {"load": load}
        if round_trip is not None:
            facts["rtt_ms"] = round_trip * 1000
        if record is not None:
            try:
                facts["offer"] = self._verifier.check(record, session.peer_id).offer
            except RecordError as error:
                session.end(str(error))
                return
        self.table.seen(session.peer_id, **facts)

    async def _on_inference(self, raw: Any) -> None:
        session = await self._admitted(raw)
        if session is None or not self.may_use(session.peer_id):
            await raw.reset()
            return
        await Answering(raw, session.peer_id, self._answers, self._thread.tell, self._thread.post).run()

    async def _on_status(self, raw: Any) -> None:
        session = await self._admitted(raw)
        if session is None:
            await raw.reset()
            return
        await StatusAnswers(session, self._beat, self._heard).run(raw)

    async def _admitted(self, raw: Any) -> Session | None:
        """The session of the connection a stream came by: without hello, and without trust, no protocol."""
        link = self._links.get(raw.swarm_conn)
        if link is None:
            return None
        with trio.move_on_after(HELLO_S):
            await link.greeted.wait()
        session = link.session
        if session is None or not session.alive:
            return None
        known = self.may_use(session.peer_id) or session.peer_id in self._configured
        return session if known or session.peer_id in self._dialled else None

    def _connected(self, connection: Any) -> None:
        if self._nursery is None:
            return
        self._links.setdefault(connection, Link(connection))
        peer_id = str(connection.muxed_conn.peer_id)
        if not self._may_connect(peer_id):
            self.table.found(peer_id, "inbound")
            self.table.gone(peer_id, PeerState.REFUSED, "it asked to come in, and is not trusted here")
            self._nursery.start_soon(self._expect_hello, connection, STRANGER_S)
        else:
            self._nursery.start_soon(self._expect_hello, connection, HELLO_S)

    async def _expect_hello(self, connection: Any, seconds: float) -> None:
        """A connection without hello is of no use to us, and not kept."""
        link = self._links.get(connection)
        if link is None:
            return
        with trio.move_on_after(seconds):
            await link.greeted.wait()
            return
        await self._kick(connection)

    def _disconnected(self, connection: Any, reason: str = "the connection was lost") -> None:
        link = self._links.pop(connection, None)
        if link is not None and link.session is not None:
            link.session.end(reason)

    async def _kick(self, connection: Any) -> None:
        self._disconnected(connection, "the connection was closed")
        await hang_up(connection, CLOSE_S, politely=True)

    def _greeting(self, invite: str | None) -> messages.Hello:
        record = self._signer.record(self.offer)
        return hello(self._config.network, self._instance_id, record, self.addresses, invite)

    async def _close(self) -> None:
        """Says goodbye to everybody at once, and closes the sockets."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            async with trio.open_nursery() as nursery:
                for connection in list(self._links):
                    nursery.start_soon(self._kick, connection)
            await self.host.close()


_STRANGER = "you are not trusted here; ask for an invitation, or to be put on the allow-list by your peer id"


def _short(peer_id: str) -> str:
    return peer_id[-8:]
