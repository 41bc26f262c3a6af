"""The forms in which tools print their answers, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion

Pattern = Mapping[str, Any]
"""What an event must hold, by dotted path; a tuple stands for any of its members."""


@dataclass(frozen=True, slots=True)
class Format:
    """One JSON object a line, each an event. Paths are dotted; a list on the way is taken item by item.

    Args:
        text: Events that hold text of the answer.
        text_at: Where in them.
        pieces: Whether such a text is a piece of a message; otherwise each is a whole message.
        done: The event that says that the answer was whole and went well.
        whole_at: Where that one repeats the whole text, for a tool that printed no pieces.
        failed: Events that say that it did not go well; what is ``done`` is never looked for in them.
        reason_at: Where those say why, the best place first.
        input_at: Where the last event tells the tokens of the prompt; several are added up.
        output_at: Where it tells the tokens of the answer.
        cached_at: Where it tells the tokens of the prompt that came from a cache.
    """

    text: Pattern
    text_at: str
    pieces: bool
    done: Pattern
    failed: tuple[Pattern, ...]
    reason_at: tuple[str, ...]
    whole_at: str | None = None
    input_at: tuple[str, ...] = ()
    output_at: str | None = None
    cached_at: str | None = None


TEXT = "text"
"""The answer is all that is printed, and exit status 0 says that it was whole."""

FORMATS: Mapping[str, Format] = {
    "claude": Format(
        text={"type": "stream_event", "event.type": "content_block_delta", "event.delta.type": "text_delta"},
        text_at="event.delta.text",
        pieces=True,
        done={"type": "result", "subtype": "success", "is_error": False},
        failed=({"type": "result", "is_error": True},),
        reason_at=("error.message", "result", "subtype"),
        whole_at="result",
        input_at=(
            "usage.input_tokens", "usage.cache_read_input_tokens", "usage.cache_creation_input_tokens",
        ),
        output_at="usage.output_tokens",
        cached_at="usage.cache_read_input_tokens",
    ),
    "codex": Format(
        # An item of type "error" comes with answers that are well, too.
        text={"type": "item.completed", "item.type": "agent_message"},
        text_at="item.text",
        pieces=False,
        done={"type": "turn.completed"},
        failed=({"type": "turn.failed"},),
        reason_at=("error.message",),
        input_at=("usage.input_tokens",),
        output_at="usage.output_tokens",
        cached_at="usage.cached_input_tokens",
    ),
    "gemini": Format(
        # The prompt is repeated in the same form, as the user's.
        text={"type": "message", "role": "assistant"},
        text_at="content",
        pieces=True,
        done={"type": "result", "status": "success"},
        failed=({"type": "result", "status": "error"},),
        reason_at=("error.message", "error.type"),
        input_at=("stats.input_tokens",),
        output_at="stats.output_tokens",
        cached_at="stats.cached",
    ),
    "opencode": Format(
        text={"type": "text"},
        text_at="part.text",
        pieces=False,
        done={"type": "step_finish", "part.reason": ("stop", "length")},
        failed=({"type": "error"},),
        reason_at=("error.data.message", "error.name"),
        input_at=("part.tokens.input", "part.tokens.cache.read", "part.tokens.cache.write"),
        output_at="part.tokens.output",
        cached_at="part.tokens.cache.read",
    ),
    "copilot": Format(
        text={"type": "assistant.message_delta"},
        text_at="data.deltaContent",
        pieces=True,
        done={"type": "result", "exitCode": 0},
        failed=({"type": "session.error"},),
        reason_at=("data.message",),
    ),
    "goose": Format(
        text={"type": "message", "message.role": "assistant"},
        text_at="message.content.text",
        pieces=True,
        done={"type": "complete"},
        failed=({"type": "error"},),
        reason_at=("error", "message"),
    ),
}  # fmt: skip


def known_format(name: str) -> str:
    """The name of a format, checked.

    Raises:
        BadRequest: There is none of that name.
    """
    if name != TEXT and name not in FORMATS:
        raise BadRequest(
            f"dialect: {name!r} is no form in which tools answer.{suggestion(name, [TEXT, *FORMATS])}",
            param="dialect",
        )
    return name
