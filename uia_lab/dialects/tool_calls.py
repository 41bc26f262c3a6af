"""Tool calls one after the other, for dialects in which each is whole before the next begins."""

from collections.abc import Iterable, Iterator

import msgspec

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, ToolCall


def gathered(chunks: Iterable[Chunk]) -> list[Chunk]:
    """The chunks of the first choice, with each tool call in one piece where it began."""
    found: list[Chunk] = []
    calls: dict[int, tuple[int, _Pieces]] = {}
    for chunk in chunks:
        if chunk.choice:
            continue
        delta = chunk.delta
        if not isinstance(delta, ToolCall):
            found.append(chunk)
        elif delta.index in calls:
            calls[delta.index][1].add(delta)
        else:
            calls[delta.index] = len(found), _Pieces(delta)
            found.append(chunk)
    for place, pieces in calls.values():
        found[place] = msgspec.structs.replace(found[place], delta=pieces.whole())
    return found


class InTurn:
    """Puts the pieces of tool calls that come at once into an order that a stream can show.

    The first call goes on as it comes. Pieces of later ones wait until its arguments are a whole object, or
    until :meth:`rest` is asked for.
    """

    def __init__(self) -> None:
        self._open: int | None = None
        self._object = _Object()
        self._waiting: dict[int, _Pieces] = {}
        self._ended: set[int] = set()

    def take(self, piece: ToolCall) -> Iterator[ToolCall]:
        """The pieces to show now that this one has come.

        Raises:
            BackendFailed: It belongs to a call that was shown as whole already.
        """
        if piece.index in self._ended:
            if piece.arguments.strip():
                raise BackendFailed("the backend went on with a tool call after it had begun something else")
            return
        if self._open is None:
            self._open, self._object = piece.index, _Object()
        if piece.index == self._open:
            self._object.add(piece.arguments)
            yield piece
        elif piece.index in self._waiting:
            self._waiting[piece.index].add(piece)
        else:
            self._waiting[piece.index] = _Pieces(piece)
        while self._waiting and self._object.is_whole():
            yield self._next()

    def rest(self) -> Iterator[ToolCall]:
        """The pieces that wait, call by call; none of those that began may go on then."""
        while self._waiting:
            yield self._next()
        if self._open is not None:
            self._ended.add(self._open)
            self._open = None

    def _next(self) -> ToolCall:
        if self._open is not None:
            self._ended.add(self._open)
        self._open = next(iter(self._waiting))
        piece = self._waiting.pop(self._open).whole()
        self._object = _Object()
        self._object.add(piece.arguments)
        return piece


class _Pieces:
    """One call, put together."""

    def __init__(self, first: ToolCall) -> None:
        self._first = first
        self._arguments = [first.arguments]

    def add(self, piece: ToolCall) -> None:
        first = self._first
        self._first = ToolCall(first.index, first.id or piece.id, first.name or piece.name)
        self._arguments.append(piece.arguments)

    def whole(self) -> ToolCall:
        return msgspec.structs.replace(self._first, arguments="".join(self._arguments))


class _Object:
    """Says when a JSON object is whole, each character looked at once and only if somebody asks."""

    def __init__(self) -> None:
        self._unseen: list[str] = []
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self._whole = False

    def add(self, text: str) -> None:
        self._unseen.append(text)

    def is_whole(self) -> bool:
        for character in "".join(self._unseen):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._whole = self._whole or self._depth <= 0
        self._unseen.clear()
        return self._whole
