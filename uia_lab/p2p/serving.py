"""Answers of this node to its peers, on the loop: quota, then whoever serves, then frames."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeAlias

from uia_lab.domain.errors import BackendFailed, Cancelled, InferenceError, LoopDetected, NotAllowed
from uia_lab.domain.events import Chunk, Event, Finished, Relayed, Usage
from uia_lab.domain.peers import Offer, Quota
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p import messages
from uia_lab.p2p.calls import Answer
from uia_lab.p2p.quotas import Quotas
from uia_lab.p2p.wire import request_of

log = logging.getLogger(__name__)

Serve: TypeAlias = Callable[[InferenceRequest], AsyncIterator[Event]]
STALLED_S = 30.0


class Serving:
    """The requests of all peers. Belongs to the loop of the node; each ends with exactly one end frame.

    Args:
        serve: Answers a request with events.
        quotas: What each peer takes.
        quota_of: What a peer may use; None for one that may use nothing.
        offer: What is lent now.
        instance_id: Id of this service.
    """

    def __init__(
        self,
        serve: Serve,
        quotas: Quotas,
        quota_of: Callable[[str], Quota | None],
        offer: Callable[[], Offer],
        instance_id: str,
    ) -> None:
        self._serve = serve
        self._quotas = quotas
        self._quota_of = quota_of
        self._offer = offer
        self._instance_id = instance_id
        self._tasks: dict[Answer, tuple[str, asyncio.Task[None]]] = {}
        self._closed = False

    def begin(self, peer_id: str, frame: messages.Request, answer: Answer) -> None:
        """Begins to answer a peer's request."""
        if self._closed:
            answer.put(BackendFailed("the node is being stopped"))
            return
        task = asyncio.create_task(self._run(peer_id, frame, answer), name="uia-p2p-answer")
        self._tasks[answer] = peer_id, task
        task.add_done_callback(lambda _: self._tasks.pop(answer, None))

    def cancel(self, answer: Answer) -> None:
        """The peer has gone, or waits no longer."""
        _, task = self._tasks.get(answer, ("", None))
        if task is not None:
            task.cancel()

    def cancel_peer(self, peer_id: str) -> None:
        """A peer may use nothing any more."""
        for owner, task in self._tasks.values():
            if owner == peer_id:
                task.cancel()

    async def close(self) -> None:
        """Ends everything; done when it has ended."""
        self._closed = True
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, peer_id: str, frame: messages.Request, answer: Answer) -> None:
        try:
            answer.put(await self._answered(peer_id, frame, answer))
        except asyncio.CancelledError:
            answer.put(Cancelled("the request was ended by the peer that worked on it"))
            raise
        except InferenceError as error:
            answer.put(error)
        except Exception:
            log.exception("unexpected error in the answer to peer %s", peer_id)
            answer.put(BackendFailed("an internal error, logged where it happened"))

    async def _answered(self, peer_id: str, frame: messages.Request, answer: Answer) -> Finished:
        quota = self._quota_of(peer_id)
        if quota is None:
            raise NotAllowed("this peer lends nothing to you")
        if self._instance_id and self._instance_id in frame.via:
            raise LoopDetected(f"the request has been through {self._instance_id} already")
        request = request_of(frame, peer_id)
        taken = self._quotas.take(peer_id, quota, self._offer(), request)
        pieces = 0
        usage: Usage | None = None
        try:
            answer.put(messages.Accepted(id=answer.label))
            source = self._serve(request)
            async with aclosing(source):  # type: ignore[type-var]
                async for event in source:
                    if isinstance(event, Finished):
                        usage = event.usage
                        return event
                    for chunk in _chunks(event):
                        pieces += 1
                        await answer.send(chunk, STALLED_S)
            raise BackendFailed("the answer ended without saying that it was whole")
        finally:
            # What broke off was worked on all the same.
            taken.finish(usage or Usage(request.prompt_estimate, pieces, estimated=True))


def _chunks(event: Event) -> list[Chunk]:
    if isinstance(event, Chunk):
        return [event]
    return event.chunks() if isinstance(event, Relayed) else []
