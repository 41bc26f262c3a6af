"""What is remembered of one finished request."""

from typing import Any

import msgspec

from uia_lab.domain.events import Attempted


class RequestRecord(msgspec.Struct, frozen=True):
    """One finished request, as the log keeps it and people read it.

    Args:
        id: The request's id.
        instance_id: Who served it.
        principal: Name of who asked.
        task: Its task.
        model: The model that answered, or that was asked for.
        stream: Whether it was streamed.
        outcome: ``ok``, ``failed``, ``cancelled`` or ``rejected``; empty while it runs.
        error: Code of the error, if it ended with one.
        message: Text of the error.
        backend_id: Who served the last attempt, if anyone did.
        began_at: Seconds since the epoch.
        latency_s: Seconds from the first step to the end.
        queued_s: Seconds of these in the queue.
        first_token_s: Seconds to the first content, if any came.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens generated, as far as known.
        estimated: Whether the token counts are an estimate.
        chunks: Pieces delivered.
        input_bytes: Size of the inputs as JSON.
        input_sha256: Digest of the inputs as JSON, to find repeated prompts without keeping them.
        decision: Why the last backend was chosen.
        attempts: Every backend tried, in order.
        inputs: The inputs themselves; only with ``log_prompts``.
        result: The answer itself; only with ``log_prompts``.
    """

    id: str
    instance_id: str
    principal: str
    task: str
    model: str | None
    stream: bool
    outcome: str
    began_at: float
    latency_s: float
    error: str | None = None
    message: str | None = None
    backend_id: str | None = None
    queued_s: float = 0.0
    first_token_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    chunks: int = 0
    input_bytes: int = 0
    input_sha256: str = ""
    decision: dict[str, Any] = {}
    attempts: tuple[Attempted, ...] = ()
    inputs: Any = None
    result: Any = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form, with the token counts under ``usage``."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        counts = {name: plain.pop(name) for name in ("input_tokens", "output_tokens", "estimated")}
        return plain | {"usage": counts | {"total_tokens": self.input_tokens + self.output_tokens}}
