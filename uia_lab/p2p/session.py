"""One connection to a peer after hello: its requests, and a ping of our own that notices a frozen peer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.peers import Load
from uia_lab.p2p import messages
from uia_lab.p2p.asking import Asking
from uia_lab.p2p.frames import FrameError
from uia_lab.p2p.libp2p_host import hang_up
from uia_lab.p2p.messages import SignedRecord
from uia_lab.p2p.streams import FrameStream, StreamGone, open_stream

if TYPE_CHECKING:
    from trio_typing import TaskStatus

PING_S = 5.0
PONG_S = 3.0
MISSES = 2
AGAIN_S = 1.0
KILL_S = 2.0
MOST_LOAD = 1_000_000


class Session:
    """Belongs to the trio thread.

    Args:
        connection: A connection of libp2p, on which hello was said.
        peer_id: Who is at the other end.
        words: What it is called in errors.
        beat: Gives our load and our record as they are now.
        heard: Told of each sign of life: round trip in seconds or None, load, record.
    """

    def __init__(
        self,
        connection: Any,
        peer_id: str,
        words: str,
        beat: Callable[[], tuple[Load, SignedRecord]],
        heard: Callable[["Session", float | None, Load, SignedRecord | None], None],
    ) -> None:
        self.connection = connection
        self.peer_id = peer_id
        self.words = words
        self.ended = trio.Event()
        self.reason = ""
        self.asking: Asking | None = None
        self._beat = beat
        self._heard = heard
        self._sent: bytes | None = None
        self._poke = trio.Event()
        self._beats = 0
        self._beaten = trio.Event()

    @property
    def alive(self) -> bool:
        """Whether requests may be sent."""
        return self.asking is not None and not self.ended.is_set()

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connection until it is lost, or the peer gives no sign of life; then it is closed."""
        try:
            async with trio.open_nursery() as nursery:
                self.asking = Asking(self.connection, nursery, self.words)
                task_status.started()
                nursery.start_soon(self._closing, nursery.cancel_scope)
                await self._watch()
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()
            self._beaten.set()
            if self.asking is not None:
                self.asking.close(
                    BackendFailed(f"{self.words}: {self.reason or 'the connection was closed'}")
                )
            await self.kill()

    def end(self, reason: str) -> None:
        """The connection is lost, or is to be closed."""
        self.reason = self.reason or reason
        self.ended.set()

    def poke(self) -> None:
        """Pings now: there is something new to tell, or somebody wants to know."""
        self._poke.set()

    async def fresh(self) -> None:
        """Done when a ping that was sent after this call is answered, or the session has ended."""
        wanted = self._beats + 1
        self.poke()
        while self._beats < wanted and not self.ended.is_set():
            await self._beaten.wait()

    async def kill(self) -> None:
        """Closes the connection, whatever state the other side is in."""
        await hang_up(self.connection, KILL_S, politely=False)

    async def _closing(self, scope: trio.CancelScope) -> None:
        await self.ended.wait()
        scope.cancel()

    async def _watch(self) -> None:
        stream: FrameStream[messages.Beat] | None = None
        misses = number = 0
        try:
            while misses < MISSES:
                if not misses:
                    await self._pause()
                number += 1
                began = trio.current_time()
                try:
                    with trio.fail_after(PONG_S):
                        if stream is None:
                            raw = await open_stream(self.connection, messages.STATUS)
                            stream = FrameStream(raw, messages.Beat)
                        await self._ping(stream, number, began)
                    misses = 0
                except (StreamGone, FrameError, trio.TooSlowError) as error:
                    if stream is not None:
                        await stream.reset()
                        stream = None
                    if self.asking is not None and self.asking.heard_at > began:
                        # Too busy with its answers to answer a ping is alive.
                        continue
                    misses += 1
                    if not isinstance(error, trio.TooSlowError) and misses < MISSES:
                        # A stream may break on a connection that is well; a second one is given a moment.
                        await trio.sleep(AGAIN_S)
                    self.reason = (
                        f"no answer to {MISSES} pings"
                        if isinstance(error, trio.TooSlowError)
                        else f"lost ({error})"
                    )
        finally:
            if stream is not None:
                await stream.reset()

    async def _pause(self) -> None:
        with trio.move_on_after(PING_S if self._beats else 0.0):
            await self._poke.wait()
        self._poke = trio.Event()

    async def _ping(self, stream: FrameStream[messages.Beat], number: int, began: float) -> None:
        load, record = self._beat()
        news = None if record.signature == self._sent else record
        await stream.send(messages.Ping(n=number, load=load, record=news))
        while True:
            frame = await stream.one()
            if isinstance(frame, messages.Pong) and frame.n == number:
                break
        self._sent = record.signature
        self.reason = ""
        self._beats += 1
        self._heard(self, trio.current_time() - began, bounded(frame.load), frame.record)
        self._beaten.set()
        self._beaten = trio.Event()


@dataclass(slots=True)
class Link:
    """A connection, from its first moment.

    Args:
        connection: A connection of libp2p.
        greeted: Set when both sides have said hello.
        asked: Whether the peer has said hello on it, which it may once.
        session: What came of that.
    """

    connection: Any
    greeted: trio.Event = field(default_factory=trio.Event)
    asked: bool = False
    session: Session | None = None


class StatusAnswers:
    """Answers a peer's pings on the stream that it opened.

    Args:
        session: The session of the connection.
        beat: Gives our load and our record as they are now.
        heard: As for :class:`Session`.
    """

    def __init__(
        self,
        session: Session,
        beat: Callable[[], tuple[Load, SignedRecord]],
        heard: Callable[[Session, float | None, Load, SignedRecord | None], None],
    ) -> None:
        self._session = session
        self._beat = beat
        self._heard = heard

    async def run(self, raw: Any) -> None:
        """Answers until the stream ends."""
        stream: FrameStream[messages.Beat] = FrameStream(raw, messages.Beat)
        sent: bytes | None = None
        try:
            while True:
                frame = await stream.one()
                if not isinstance(frame, messages.Ping):
                    return
                load, record = self._beat()
                news = None if record.signature == sent else record
                await stream.send(messages.Pong(n=frame.n, load=load, record=news))
                sent = record.signature
                self._heard(self._session, None, bounded(frame.load), frame.record)
        except (StreamGone, FrameError):
            return
        finally:
            await stream.reset()


def bounded(load: Load) -> Load:
    """A load as far as it can be one: what a peer says of itself is a hint, and never more."""
    return Load(in_flight=min(max(0, load.in_flight), MOST_LOAD), queued=min(max(0, load.queued), MOST_LOAD))
