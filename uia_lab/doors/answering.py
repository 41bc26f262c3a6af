"""A door that runs inference and sends the answer, whole or as a stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Protocol

from tornado.iostream import StreamClosedError

from uia_lab.access.principals import INFER
from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.hints import passed_through, routing_hints
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.openai_call import Call
from uia_lab.domain.errors import InferenceError, NoBackendAvailable
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.doors.base import Door, Fault, log
from uia_lab.doors.outflow import taken
from uia_lab.doors.waiting import Waiting

TOUCH_S = 5.0
GIVE_WAY = 16


class Rendering(Protocol):
    """Turns events into the bytes of a dialect's stream."""

    def render(self, event: Event) -> bytes:
        """The bytes of one event, the stream's end included."""


class AnsweringDoor(Door):
    """Base of the inference doors; a dialect supplies the three methods in the middle."""

    scopes: ClassVar[tuple[str, ...]] = (INFER,)
    waiting: ClassVar[bytes] = sse.WAITING
    """What keeps a client waiting that has got nothing yet."""
    _gone = False
    _request: InferenceRequest | None = None
    _touched = 0.0
    _steps = 0
    _backend_id = ""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        raise NotImplementedError

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        raise NotImplementedError

    def rendering(self, call: Call, backend_id: str) -> Rendering:
        """A fresh renderer of the dialect's stream."""
        raise NotImplementedError

    def broken(self, fault: Fault, rendering: Rendering) -> bytes:  # noqa: ARG002 - for dialects that go on counting
        """The bytes that end a stream which has broken; no ``[DONE]`` follows them."""
        return sse.event(self.envelope(fault), "error")

    def written(self, call: Call, answer: Answer) -> bytes:
        """The bytes of an answer that is not streamed; sets its Content-Type where that is not JSON."""
        return encode(self.whole(call, answer))

    async def post(self) -> None:
        """Runs one inference."""
        call = self.parse(self.request.body)
        self._request = call.request(
            self.request_id,
            self.principal.name,
            routing_hints(self.request.headers, call.hints),
            self.principal.via + passed_through(self.request.headers),
        )
        if self._gone:
            return
        if self.open_doors.closing:
            raise NoBackendAvailable("the server is stopping", retry_after=5)
        self._note()
        self.open_doors.enter(self)
        try:
            await (self._stream(call, self._request) if call.stream else self._complete(call, self._request))
        except InferenceError:
            if not self._gone:
                raise
        except StreamClosedError:
            self._gone = True
        finally:
            self.open_doors.leave(self)

    async def _complete(self, call: Call, request: InferenceRequest) -> None:
        answer = Answer(call.choices)
        body = b""
        async with self.manager.open(request) as events:
            try:
                async for event in events:
                    answer.add(event)
                    if isinstance(event, Finished) and not self._gone:
                        # Before the outcome is written down: what cannot be shown has failed.
                        body = self.written(call, answer) if event.last is None else event.last.wire[1]
                    self._note()
                    await self._give_way()
            except Exception as error:
                await events.fail(error)
                raise
        if not self._gone:
            self.set_header("x-uia-backend", answer.backend_id)
            self._tell_limits()
            self.finish(body)

    async def _stream(self, call: Call, request: InferenceRequest) -> None:
        rendering: Rendering | None = None
        async with self.manager.open(request) as events:
            try:
                first = await self._first(events)
                rendering = self.rendering(call, self._backend_id)
                self._open()
                await self._send(rendering.render(first))
                async for event in events:
                    if piece := rendering.render(event):
                        await self._send(piece)
            except StreamClosedError:
                raise
            except Exception as error:
                await events.fail(error)
                if not self._headers_written or self._gone:
                    raise
                await self._send(self._failure(error, rendering or self.rendering(call, self._backend_id)))
        if not self._gone:
            self.finish()

    async def _first(self, events: AsyncIterator[Event]) -> Event:
        """The first event with content; while it does not come, comments keep the client waiting."""
        waiting = Waiting(self._say_waiting, self.timings.hold_s, self.timings.waiting_s)
        try:
            return await self._content(events)
        finally:
            waiting.stop()

    def _say_waiting(self) -> None:
        if self._gone:
            return
        self._note()
        self._open()
        self.write(self.waiting)
        # Whoever has left meanwhile is noticed by the connection's end.
        self.flush().add_done_callback(lambda sent: sent.exception())

    async def _content(self, events: AsyncIterator[Event]) -> Event:
        async for event in events:
            if not isinstance(event, Started):
                return event
            self._backend_id = event.backend_id
        raise RuntimeError("the answer had neither content nor an end")

    def _open(self) -> None:
        """Fixes status and headers; from here on an error is an event of the stream."""
        if self._headers_written:
            return
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None and not stream.closed():
            # Small pieces go out at once, instead of waiting for the acknowledgement of the last.
            stream.set_nodelay(True)
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        self.set_header("Cache-Control", "no-cache, no-store")
        # Proxies such as nginx would otherwise collect the stream before passing it on.
        self.set_header("X-Accel-Buffering", "no")
        self._tell_limits()
        # Before the first content only the manager knows whom it is trying.
        running = self.manager.running.get(self.request_id)
        backend_id = self._backend_id or (running.backend_id if running is not None else None)
        if backend_id:
            self.set_header("x-uia-backend", backend_id)

    def _tell_limits(self) -> None:
        for name, value in self.service.limits.headers(self.principal.name).items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """An error, with what the key has left."""
        if hasattr(self, "principal"):
            self._tell_limits()
        super().write_error(status_code, **kwargs)

    async def _send(self, piece: bytes) -> None:
        """Writes and waits until the client has room for more.

        Raises:
            StreamClosedError: The client is gone, or has not read for too long.
        """
        if self._gone:
            raise StreamClosedError
        self._note()
        self.write(piece)
        sent = self.flush()
        if sent.done():
            await sent
            await self._give_way()
            return
        # The error of one that nobody waits for any more is no news either.
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())
        stream = getattr(self.request.connection, "stream", None)
        if not await taken(sent, stream, self.timings.stalled_s):
            log.info("%s: the client has not read for %g s", self.request_id, self.timings.stalled_s)
            self._drop()
        await sent

    async def _give_way(self) -> None:
        """Lets others run now and then, since a backend that never waits would keep the loop to itself."""
        self._steps += 1
        if self._steps % GIVE_WAY == 0:
            await asyncio.sleep(0)

    def _drop(self) -> None:
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.close()
        self._gone = True
        raise StreamClosedError

    def _failure(self, error: Exception, rendering: Rendering) -> bytes:
        if not isinstance(error, InferenceError):
            log.error("unexpected error in the stream of %s", self.request_id, exc_info=error)
        return self.broken(self.fault(error), rendering)

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._touched > TOUCH_S:
            self._touched = now
            self.touch()

    def hang_up(self) -> None:
        """Cancels the request under way."""
        self.manager.cancel(self.request_id)

    def on_connection_close(self) -> None:
        """Cancels the request at once, whether it waits, runs or streams."""
        self._gone = True
        if self._request is not None:
            self.manager.cancel(self.request_id)
        super().on_connection_close()
