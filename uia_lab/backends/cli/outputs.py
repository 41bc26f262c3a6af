"""Reads what a tool prints: text as it comes, or events, one a line."""

import codecs
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from uia_lab.backends.cli.formats import FORMATS, TEXT, Format, Pattern
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Usage

MAX_LINE = 8 << 20
MAX_REASON = 600
_LONGEST_TAIL = 1024


class Output(ABC):
    """What one call printed so far. It does no I/O.

    Args:
        errors: Beginnings of answers that are errors, though the tool says that all is well.

    Attributes:
        complete: Whether the tool said that the answer was whole.
        usage: Token counts, where it told them.
    """

    def __init__(self, errors: tuple[str, ...] = ()) -> None:
        self.complete = False
        self.usage: Usage | None = None
        self._errors = errors
        self._held = ""
        self._open = False
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far, without what is held back."""
        return "".join(self._pieces)

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[str]:
        """The pieces of the answer that came with these bytes.

        Raises:
            BackendFailed: The tool told of an error, or printed what is none of its format.
        """

    @abstractmethod
    def end(self) -> Iterator[str]:
        """What is left once nothing comes any more.

        Raises:
            BackendFailed: As for :meth:`feed`, or the answer is an error.
        """

    def _let_through(self, text: str) -> Iterator[str]:
        """The text, once it can be no error and is more than blanks."""
        if not self._open:
            self._held += text
            begun = self._held.lstrip()
            if not begun or any(begun.startswith(item) or item.startswith(begun) for item in self._errors):
                return
            self._open, text, self._held = True, self._held, ""
        if text:
            self._pieces.append(text)
            yield text

    def _release(self) -> Iterator[str]:
        """What was held back to the end."""
        held, self._held = self._held, ""
        begun = held.strip()
        if any(begun.startswith(item) for item in self._errors):
            raise BackendFailed(begun[:MAX_REASON])
        if begun:
            self._pieces.append(held)
            yield held


class TextOutput(Output):
    """All that is printed is the answer, save the line ends behind it; the exit status says how it went."""

    def __init__(self, errors: tuple[str, ...] = ()) -> None:
        super().__init__(errors)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tail = ""

    def feed(self, data: bytes) -> Iterator[str]:
        """The text, with what of a letter came before."""
        text = self._tail + self._decoder.decode(data)
        shown = text.rstrip("\r\n")
        if len(text) - len(shown) > _LONGEST_TAIL:
            shown = text
        self._tail = text[len(shown) :]
        yield from self._let_through(shown)

    def end(self) -> Iterator[str]:
        """The half of a letter, if that is how it ended."""
        yield from self._let_through(self._decoder.decode(b"", final=True))
        yield from self._release()
        self.complete = True


class EventOutput(Output):
    """Events of a format; the one that says that all went well is waited for, whatever the exit status."""

    def __init__(self, form: Format, errors: tuple[str, ...] = ()) -> None:
        super().__init__(errors)
        self._form = form
        self._rest = bytearray()
        self._messages = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """The texts of the events that became whole."""
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                yield from self._line(line)
        if len(self._rest) > MAX_LINE:
            raise BackendFailed(f"printed a line of more than {MAX_LINE >> 20} MiB")

    def end(self) -> Iterator[str]:
        """The text of an event without its line end."""
        yield from self._line(bytes(self._rest))
        yield from self._release()

    def _line(self, data: bytes) -> Iterator[str]:
        if self.complete or not data.strip().startswith(b"{"):
            # Warnings that went to the wrong place are no events.
            return
        try:
            event = json.loads(data.decode(errors="replace"))
        except (ValueError, RecursionError):
            return
        form = self._form
        if any(fits(event, pattern) for pattern in form.failed):
            raise BackendFailed(self._reason(event))
        if fits(event, form.text):
            yield from self._said(_joined(at(event, form.text_at)))
        elif fits(event, form.done):
            if form.whole_at is not None and not self._pieces and not self._held:
                yield from self._said(_joined(at(event, form.whole_at)))
            yield from self._release()
            self.usage = _usage(event, form)
            self.complete = True

    def _said(self, text: str) -> Iterator[str]:
        if not text:
            return
        if not self._form.pieces and self._messages:
            text = f"\n\n{text}"
        self._messages += 1
        yield from self._let_through(text)

    def _reason(self, event: Mapping[str, Any]) -> str:
        for path in self._form.reason_at:
            if (reason := _joined(at(event, path)).strip()) != "":
                return reason[:MAX_REASON]
        return self._held.strip()[:MAX_REASON] or "it failed and did not say why"


def output_of(name: str, errors: tuple[str, ...] = ()) -> Output:
    """A reader of the format of that name."""
    return TextOutput(errors) if name == TEXT else EventOutput(FORMATS[name], errors)


def at(event: Any, path: str) -> Any:
    """What stands at a dotted path of an event; None where nothing does, a list where one is on the way."""
    for index, name in enumerate(names := path.split(".")):
        if isinstance(event, list):
            rest = ".".join(names[index:])
            return [found for item in event if (found := at(item, rest)) is not None]
        event = event.get(name) if isinstance(event, Mapping) else None
    return event


def fits(event: Any, pattern: Pattern) -> bool:
    """Whether an event holds what a pattern asks for."""
    return all(
        found in wanted if isinstance(wanted, tuple) else found == wanted
        for found, wanted in ((at(event, path), wanted) for path, wanted in pattern.items())
    )


def _joined(found: Any) -> str:
    if isinstance(found, list):
        return "".join(map(_joined, found))
    return found if isinstance(found, str) else ""


def _usage(event: Mapping[str, Any], form: Format) -> Usage | None:
    if form.output_at is None or not isinstance(at(event, form.output_at), int):
        return None
    return Usage(
        sum(_count(at(event, path)) for path in form.input_at),
        _count(at(event, form.output_at)),
        cached_tokens=_count(at(event, form.cached_at)) if form.cached_at is not None else 0,
    )


def _count(found: Any) -> int:
    return found if isinstance(found, int) and not isinstance(found, bool) and math.isfinite(found) else 0
