"""A request under way: what others may see of it, how it can be ended, and what is remembered of it."""

import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec

from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Attempted, Chunk, Relayed, Text, Usage
from uia_lab.domain.records import RequestRecord
from uia_lab.domain.requests import CHARACTERS_A_TOKEN, InferenceRequest
from uia_lab.manager.watch import Alarm, Watch
from uia_lab.routing.figures import Ending
from uia_lab.routing.turns import Attempt

KEPT_CHARACTERS = 262_144
KEPT_BYTES = 262_144

T = TypeVar("T")


class Running(msgspec.Struct, eq=False):
    """A request under way, as others may see it and end it.

    Attributes:
        request: The request as it came.
        began_at: When it began, on the manager's clock.
        alarm: The timer of its waits.
        wall: When it began, seconds since the epoch.
        backend_id: Who serves it now.
        model: The model after defaults and aliases.
        decision: Why this backend.
        chunks: Pieces delivered.
        queued_s: Seconds it has waited for backends.
        first_at: When the first piece came, on the manager's clock.
        usage: Token counts, once they are known.
        attempts: Attempts that have ended.
        cancelled: Whether somebody ended it.
        left: Whether its caller left, or its time was over, while a backend worked on it.
    """

    request: InferenceRequest
    began_at: float
    alarm: Alarm = msgspec.field(default_factory=Alarm)
    wall: float = msgspec.field(default_factory=time.time)
    backend_id: str | None = None
    model: str | None = None
    decision: dict[str, Any] = msgspec.field(default_factory=dict)
    chunks: int = 0
    queued_s: float = 0.0
    first_at: float | None = None
    usage: Usage | None = None
    attempts: list[Attempted] = msgspec.field(default_factory=list)
    cancelled: bool = False
    left: bool = False
    _plain: bool = True
    _text: list[str] = msgspec.field(default_factory=list)
    _characters: int = 0
    _relayed: bytearray = msgspec.field(default_factory=bytearray)
    _decode: Callable[[bytes], Iterable[Chunk]] | None = None
    _watches: set[Watch] = msgspec.field(default_factory=set)

    @property
    def text(self) -> str:
        """The text delivered so far."""
        self._take_in()
        return "".join(self._text)

    @property
    def plain(self) -> bool:
        """Whether all of it so far is text of one answer, as only that can be continued elsewhere."""
        self._take_in()
        return self._plain

    @property
    def charged(self) -> Usage:
        """What the request has cost so far; of one that failed before its first content nobody knows."""
        if self.usage is not None:
            return self.usage
        if not self.chunks and not self.left:
            return Usage()
        return self.estimate(max(self.chunks, math.ceil(self._characters / CHARACTERS_A_TOKEN)))

    def take(self, attempt: Attempt) -> None:
        """Notes who serves it now, and why."""
        self.backend_id = attempt.backend.backend_id
        self.model = attempt.decision.model
        self.decision = attempt.told

    def deliver(self, chunk: Chunk, now: float) -> Chunk:
        """Notes a piece, and numbers it in the whole answer."""
        if self.first_at is None:
            self.first_at = now
        index, self.chunks = self.chunks, self.chunks + 1
        if self._relayed:
            self._take_in()
        self._note(chunk)
        return chunk if chunk.index == index else msgspec.structs.replace(chunk, index=index)

    def relay(self, relayed: Relayed, now: float) -> Relayed:
        """Notes pieces in the upstream's bytes, and numbers them in the whole answer."""
        index, self.chunks = self.chunks, self.chunks + relayed.count
        if relayed.count:
            if self.first_at is None:
                self.first_at = now
            self._decode = relayed.decode
            if len(self._relayed) + len(relayed.wire[1]) <= KEPT_BYTES:
                self._relayed += relayed.wire[1]
            else:
                self._plain = False
        return relayed if relayed.index == index else msgspec.structs.replace(relayed, index=index)

    def _take_in(self) -> None:
        """Decodes the bytes that were passed on, now that somebody needs to know what they say."""
        data = bytes(self._relayed)
        self._relayed.clear()
        if not data or self._decode is None:
            return
        try:
            for chunk in self._decode(data):
                self._note(chunk)
        except InferenceError:
            self._plain = False

    def _note(self, chunk: Chunk) -> None:
        if isinstance(chunk.delta, Text) and chunk.choice == 0:
            self._characters += len(chunk.delta.text)
            if self._characters <= KEPT_CHARACTERS:
                self._text.append(chunk.delta.text)
                return
        self._plain = False

    def cancel(self) -> None:
        """Ends the waits that are under way; the stream then raises Cancelled. On the loop only."""
        self.cancelled = True
        for watch in self._watches:
            watch.cancel()

    def watch(self) -> Watch:
        """A watch over the waits of one task, which ``cancel`` ends too; give it to :meth:`unwatch`."""
        watch = Watch(self.alarm, cancelled=self.cancelled)
        self._watches.add(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """From now on ``cancel`` does not reach it, for what has to be tidied up all the same."""
        self._watches.discard(watch)
        watch.cancelled = False

    async def wait(self, step: Callable[[], Awaitable[T]], seconds: float, late: InferenceError) -> T:
        """Takes one step with a deadline that ``cancel`` can bring forward.

        Raises:
            Cancelled: Somebody cancelled the request.
            InferenceError: ``late``, when the time is over.
        """
        watch = self.watch()
        try:
            with watch.within(seconds, lambda: late):
                return await step()
        finally:
            self.unwatch(watch)
            watch.close()

    def estimate(self, pieces: int) -> Usage:
        """Token counts where nobody told them: a token a piece, and a prompt as long as it looks."""
        return Usage(self.request.prompt_estimate, pieces, estimated=True)

    def summary(self, instance_id: str, now: float) -> RequestRecord:
        """What can be told of it by now; its outcome is empty while it runs.

        Args:
            instance_id: Who serves it.
            now: Time on the manager's clock.
        """
        request = self.request
        usage = self.charged
        return RequestRecord(
            id=request.id,
            instance_id=instance_id,
            principal=request.principal,
            task=request.task,
            model=self.model or request.model,
            stream=request.stream,
            outcome="",
            began_at=self.wall,
            latency_s=now - self.began_at,
            backend_id=self.backend_id,
            queued_s=self.queued_s,
            first_token_s=None if self.first_at is None else self.first_at - self.began_at,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            estimated=usage.estimated,
            chunks=self.chunks,
            decision=self.decision,
            attempts=tuple(self.attempts),
        )

    def record(
        self,
        instance_id: str,
        ending: Ending,
        error: InferenceError | None,
        now: float,
        *,
        with_prompts: bool,
    ) -> RequestRecord:
        """What the log keeps of it, now that it has ended.

        Args:
            instance_id: Who served it.
            ending: How it ended.
            error: The error it ended with, if any.
            now: Time on the manager's clock.
            with_prompts: Whether inputs and result are kept too.
        """
        said = self.request.inputs if self.request.messages is None else list(self.request.messages)
        raw = msgspec.json.encode(said, enc_hook=str)
        return msgspec.structs.replace(
            self.summary(instance_id, now),
            outcome=ending,
            error=error.code if error is not None else None,
            message=error.message if error is not None else None,
            input_bytes=len(raw),
            input_sha256=hashlib.sha256(raw).hexdigest(),
            inputs=said if with_prompts else None,
            result=self.text if with_prompts else None,
        )
