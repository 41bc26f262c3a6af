"""The answering side of the inference protocol: reads a peer's stream, and writes what the loop answers."""

from collections.abc import Callable
from typing import Any, Protocol

import trio

from uia_lab.domain import events
from uia_lab.domain.errors import BackendFailed, InferenceError, QueueFull
from uia_lab.p2p import messages
from uia_lab.p2p.calls import WINDOW, Answer
from uia_lab.p2p.frames import MAX_WHOLE, FrameError, pack
from uia_lab.p2p.outbox import Outbox
from uia_lab.p2p.streams import FrameStream, StreamGone
from uia_lab.p2p.wire import chunk_frame, end_frames, error_frame

MOST_REQUESTS = 64
MOST_LABEL = 128
MOST_WAITING = MOST_REQUESTS * (WINDOW + 4)
"""Frames that wait to be written: as many as all answers at once may have on their way."""


class Answers(Protocol):
    """Who answers, on the loop; its functions are called there."""

    def begin(self, peer_id: str, frame: messages.Request, answer: Answer) -> None:
        """Begins to answer a request."""

    def cancel(self, answer: Answer) -> None:
        """Nobody waits for an answer any more."""


class Answering:
    """One stream of requests of a peer. Belongs to the trio thread.

    Args:
        stream: The stream of libp2p.
        peer_id: Who asks.
        answers: Who answers.
        tell: Calls a function on the loop, soon.
        post: Calls a function in trio, soon.
    """

    def __init__(
        self,
        stream: Any,
        peer_id: str,
        answers: Answers,
        tell: Callable[..., None],
        post: Callable[..., Any],
    ) -> None:
        self._stream: FrameStream[messages.ToServer] = FrameStream(stream, messages.ToServer)
        self._peer_id = peer_id
        self._answers = answers
        self._tell = tell
        self._outbox: Outbox[tuple[Answer | None, Any]] = Outbox(post)
        self._open: dict[str, Answer] = {}

    async def run(self) -> None:
        """Serves the stream until it ends, or the peer breaks the protocol; then all of it is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                while True:
                    for frame in await self._stream.batch():
                        self._take(frame)
        except* (StreamGone, FrameError):
            pass
        finally:
            for answer in self._open.values():
                self._tell(self._answers.cancel, answer)
            self._open.clear()
            await self._stream.reset()

    def _take(self, frame: messages.ToServer) -> None:
        answer = self._open.get(frame.id)
        match frame:
            case messages.Request():
                if answer is not None or not 0 < len(frame.id) <= MOST_LABEL:
                    raise FrameError("a request with a label that is in use or too long")
                self._begin(frame)
            case messages.Ack() if answer is not None:
                self._tell(answer.ack, frame.seq)
            case messages.Cancel() if answer is not None:
                del self._open[frame.id]
                self._tell(self._answers.cancel, answer)

    def _begin(self, frame: messages.Request) -> None:
        if len(self._outbox) > MOST_WAITING:
            # Each request is answered, if only by a refusal: whoever reads none must not ask for more.
            raise FrameError(f"{MOST_WAITING} answers were not read")
        if len(self._open) >= MOST_REQUESTS:
            error = QueueFull(f"{MOST_REQUESTS} of your requests are under way here", retry_after=1.0)
            self._outbox.put((None, error_frame(frame.id, error)))
            return
        # Whoever tells no window says nothing of what it has taken: then what is written counts as taken.
        window = WINDOW if frame.window is None else min(max(1, frame.window), WINDOW)
        answer = Answer(frame.id, window, self._outbox.put)
        answer.acks_itself = frame.window is None
        self._open[frame.id] = answer
        self._tell(self._answers.begin, self._peer_id, frame, answer)

    async def _write(self) -> None:
        while True:
            items = await self._outbox.drain()
            await self._stream.write(b"".join(self._packed(answer, item) for answer, item in items))
            for answer in {answer for answer, _ in items if answer is not None and answer.acks_itself}:
                self._tell(answer.ack, answer.written)

    def _packed(self, answer: Answer | None, item: Any) -> bytes:
        if answer is None:
            return pack(item)
        if self._open.get(answer.label) is not answer:
            # It was cancelled by the peer, or has ended.
            return b""
        label = answer.label
        match item:
            case events.Chunk():
                try:
                    data = pack(chunk_frame(label, answer.written, item))
                except FrameError:
                    self._tell(self._answers.cancel, answer)
                    return self._packed(answer, _too_large())
                answer.written += 1
                return data
            case events.Finished():
                del self._open[label]
                return b"".join(map(pack, end_frames(label, answer.written, item)))
            case InferenceError():
                del self._open[label]
                return pack(error_frame(label, item))
        return pack(item)


def _too_large() -> BackendFailed:
    return BackendFailed(f"a piece of the answer is larger than the {MAX_WHOLE:,} bytes a peer is sent")
