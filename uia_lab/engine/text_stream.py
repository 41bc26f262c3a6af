"""From token ids to text that can be sent: whole characters only, and nothing beyond a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]


class TextStream:
    """The text of one answer as its tokens come.

    Args:
        decode: Turns token ids into text.
        stops: Strings that end the answer and are not part of it.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._ids: list[int] = []
        # Tokens up to _read have become text. A tokenizer decodes a token by its neighbours, so a few
        # tokens before it are decoded again each time.
        self._prefix = 0
        self._read = 0
        self._held = ""
        self.stopped = False

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that can be sent now that these tokens have come."""
        self._ids.extend(tokens)
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        # A replacement character at the end is the beginning of one whose other bytes come with later tokens.
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self._without_stop(after[len(before) :])

    def end(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._prefix : self._read])
        rest = self._without_stop(self._decode(self._ids[self._prefix :])[len(before) :])
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _without_stop(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        # The longest end of the text that a stop string begins with waits for what comes next.
        keep = 0
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                keep = size
                break
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
