"""One request to a peer, as whoever asks reads it on the loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from uia_lab.dialects.json_body import encode
from uia_lab.domain.errors import BackendTimeout
from uia_lab.domain.events import Event, Finished
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p import messages
from uia_lab.p2p.calls import WINDOW, Inbox
from uia_lab.p2p.wire import AnswerReader, request_frame

if TYPE_CHECKING:
    from uia_lab.p2p.hub import Hub
    from uia_lab.p2p.thread import TrioThread

ACCEPT_S = 3.0
"""How long a peer may take to say that it works on a request; until then another one takes over silently."""


async def answer(
    parts: "Callable[[], tuple[Hub, TrioThread]]", peer_id: str, request: InferenceRequest, instance_id: str
) -> AsyncGenerator[Event, None]:
    """The events of a peer's answer; closing it cancels the request there.

    Args:
        parts: Gives the running node.
        peer_id: Whom it asks.
        request: What it asks for.
        instance_id: Id of this service, which goes along.
    """
    from uia_lab.p2p.asking import Call

    hub, thread = parts()
    via = (*request.via, instance_id) if instance_id else request.via
    inbox: Inbox[messages.ToClient] = Inbox(thread.tell, size=_size)
    call = Call(inbox, request_frame(request, "", via, WINDOW))
    reader = AnswerReader(request)
    ended = False
    taken = acked = 0
    try:
        if not thread.post(hub.ask, peer_id, call):
            raise thread.stopped()
        try:
            async with asyncio.timeout(ACCEPT_S):
                frame = await inbox.get()
        except TimeoutError:
            raise BackendTimeout(
                f"the peer {peer_id[-8:]} did not accept the request within {ACCEPT_S:g} s"
            ) from None
        while True:
            ended = isinstance(frame, (messages.Done, messages.Failed))
            for event in reader.feed(frame):
                yield event
                if isinstance(event, Finished):
                    return
            if isinstance(frame, messages.Chunk):
                taken += 1
                if taken - acked >= WINDOW // 2:
                    acked = taken
                    thread.post(call.ack, taken)
            frame = await inbox.get()
    finally:
        if not ended:
            thread.post(call.cancel)


def _size(frame: messages.ToClient) -> int:
    """About the bytes that a frame keeps."""
    if not isinstance(frame, messages.Chunk):
        return 0
    plain = len(frame.text or "") if frame.delta is None else len(encode(frame.delta))
    return plain if frame.logprobs is None else plain + len(encode(frame.logprobs))
