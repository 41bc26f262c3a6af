"""An answer put together from its events, for doors that send it whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from uia_lab.dialects.json_body import encode
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Started, Text, ToolCall


@dataclass(slots=True)
class Choice:
    """One of the answers of a request."""

    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The generated text."""
        return "".join(self.pieces)

    def add(self, chunk: Chunk) -> None:
        """Takes in one chunk of this choice."""
        delta = chunk.delta
        if isinstance(delta, Reasoning):
            self.reasoning.append(delta.text)
        elif isinstance(delta, ToolCall):
            call = self.tool_calls.setdefault(
                delta.index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = delta.id or call["id"]
            call["function"]["name"] = delta.name or call["function"]["name"]
            call["function"]["arguments"] += delta.arguments
        else:
            self.pieces.append(delta.text if isinstance(delta, Text) else as_text(delta.value))
        self.logprobs.extend(logprob_entries(chunk.logprobs))


class Answer:
    """Collects the events of one answer.

    Args:
        choices: How many choices were asked for.
    """

    def __init__(self, choices: int = 1) -> None:
        self.choices = [Choice() for _ in range(choices)]
        self.backend_id = ""
        self.chunks: list[Chunk] = []
        self.finished = Finished(None)

    def add(self, event: Event) -> None:
        """Takes in the next event."""
        if isinstance(event, Started):
            self.backend_id = event.backend_id
        elif isinstance(event, Chunk):
            self.chunks.append(event)
            while len(self.choices) <= event.choice:
                self.choices.append(Choice())
            self.choices[event.choice].add(event)
        elif isinstance(event, Finished):
            self.finished = event
            first = self.choices[0]
            # Some adapters give the whole text with the end only.
            if event.result is not None and not (first.pieces or first.tool_calls or first.reasoning):
                first.pieces.append(as_text(event.result))

    def finish_reason(self, choice: int) -> str:
        """Why a choice ended."""
        reasons = self.finished.finish_reasons
        return reasons[choice] if choice < len(reasons) else self.finished.finish_reason


def as_text(value: Any) -> str:
    """A result as the text of a message: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else encode(value).decode()


def logprob_entries(logprobs: Any) -> list[Mapping[str, Any]]:
    """Log probabilities as a list of ``{token, logprob, top_logprobs}``, from either dialect's shape.

    Raises:
        BackendFailed: They have the shape of neither.
    """
    if not logprobs:
        return []
    try:
        found = _entries(logprobs)
        for entry in found:
            _check_entry(entry)
            for top in entry.get("top_logprobs") or ():
                _check_entry(top)
    except (AttributeError, KeyError, TypeError):
        raise BackendFailed("sent log probabilities that cannot be read") from None
    return found


def _entries(logprobs: Any) -> list[Mapping[str, Any]]:
    if not isinstance(logprobs, Mapping):
        return list(logprobs)
    if "tokens" not in logprobs:
        return list(logprobs.get("content") or ())
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [{"token": key, "logprob": value} for key, value in (top or {}).items()],
        }
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs.get("token_logprobs") or (), tops, strict=False
        )
    ]


def _check_entry(entry: Any) -> None:
    if not isinstance(entry["token"], str) or not isinstance(entry["logprob"], (int, float, NoneType)):
        raise TypeError
