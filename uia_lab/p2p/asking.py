"""The asking side of the inference protocol: many requests on one long-lived stream of a connection."""

import itertools
from typing import Any

import msgspec
import trio

from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError
from uia_lab.p2p import messages
from uia_lab.p2p.calls import Inbox
from uia_lab.p2p.frames import FrameError, pack
from uia_lab.p2p.outbox import Outbox
from uia_lab.p2p.streams import FrameStream, StreamGone, open_stream


class Call:
    """One request on its way, between whoever reads it on the loop and the stream.

    Args:
        inbox: Where its frames go.
        frame: What asks for it; its id is given when it is sent.
    """

    def __init__(self, inbox: Inbox[messages.ToClient], frame: messages.Request) -> None:
        self.inbox = inbox
        self.frame = frame
        self.label = frame.id
        self.asking: Asking | None = None

    def ack(self, seq: int) -> None:
        """In trio: chunks before ``seq`` have been taken."""
        if self.asking is not None:
            self.asking.ack(self, seq)

    def cancel(self) -> None:
        """In trio: nobody waits for the answer any more."""
        if self.asking is not None:
            self.asking.cancel(self)


class Asking:
    """The requests to one peer over one connection. Belongs to the trio thread.

    Args:
        connection: A connection of libp2p.
        nursery: Where its stream is read and written.
        words: What the peer is called in errors.
    """

    def __init__(self, connection: Any, nursery: trio.Nursery, words: str) -> None:
        self._connection = connection
        self._nursery = nursery
        self._words = words
        self._calls: dict[str, Call] = {}
        self._outbox: Outbox[bytes] | None = None
        self._numbers = itertools.count(1)
        self._closed: InferenceError | None = None
        self.heard_at = 0.0

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, call: Call) -> None:
        """Sends a request; how it ends, the call's inbox hears."""
        if self._closed is not None:
            call.inbox.fail(type(self._closed)(self._closed.message))
            return
        call.label = str(next(self._numbers))
        try:
            data = pack(msgspec.structs.replace(call.frame, id=call.label))
        except FrameError as error:
            call.inbox.fail(BadRequest(f"the request cannot be sent to a peer: {error}", param="inputs"))
            return
        self._calls[call.label] = call
        if self._outbox is None:
            self._outbox = Outbox()
            self._nursery.start_soon(self._run, self._outbox)
        self._outbox.put(data)

    def cancel(self, call: Call) -> None:
        """Nobody waits for an answer any more."""
        if self._calls.get(call.label) is call:
            del self._calls[call.label]
            self._send(messages.Cancel(id=call.label))

    def ack(self, call: Call, seq: int) -> None:
        """Chunks before ``seq`` have been taken."""
        if self._calls.get(call.label) is call:
            self._send(messages.Ack(id=call.label, seq=seq))

    def close(self, error: InferenceError) -> None:
        """Every answer has broken off, and no more requests are taken."""
        self._closed = error
        self._fail(error.message)

    def _send(self, frame: messages.Frame) -> None:
        if self._outbox is not None:
            self._outbox.put(pack(frame))

    def _fail(self, why: str) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            # Each its own: an error that is raised in many places collects all their tracebacks.
            call.inbox.fail(BackendFailed(why))

    async def _run(self, outbox: Outbox[bytes]) -> None:
        """The stream from its opening to its end; the next request after that opens another."""
        why = f"{self._words} closed the stream"
        stream: FrameStream[messages.ToClient] | None = None
        try:
            raw = await open_stream(self._connection, messages.INFERENCE)
            stream = FrameStream(raw, messages.ToClient)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, stream, outbox)
                await self._read(stream)
        except* (StreamGone, FrameError) as group:
            why = f"{self._words}: {group.exceptions[0]}"
        finally:
            if self._outbox is outbox:
                self._outbox = None
            self._fail(why)
            if stream is not None:
                await stream.reset()

    async def _write(self, stream: FrameStream[messages.ToClient], outbox: Outbox[bytes]) -> None:
        while True:
            await stream.write(b"".join(await outbox.drain()))

    async def _read(self, stream: FrameStream[messages.ToClient]) -> None:
        while True:
            for frame in await stream.batch():
                self._take(frame)
            self.heard_at = trio.current_time()

    def _take(self, frame: messages.ToClient) -> None:
        call = self._calls.get(frame.id)
        if call is None:
            # It was cancelled a moment ago.
            return
        if isinstance(frame, (messages.Done, messages.Failed)):
            del self._calls[frame.id]
        if not call.inbox.put(frame):
            self.cancel(call)
