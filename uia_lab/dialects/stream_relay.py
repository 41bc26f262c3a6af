"""A stream in OpenAI's dialect in the upstream's own bytes, of which only the least is decoded.

The head is decoded up to the first content, since until then another backend can take over. From there on
whole events are passed on as they came, all that one read brought at once; only those are decoded that may
tell of an error, of usage or of an end.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from uia_lab.dialects import sse
from uia_lab.dialects.upstream_reader import BodyReader
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.domain.events import Chunk, Event, Finished, Relayed

_BLANK, _BLANK_CR = b"\n\n", b"\n\r\n"


class _Frame(msgspec.Struct):
    choices: list[Any] | None = None
    usage: Any = None


_FRAME = msgspec.json.Decoder(_Frame)


class StreamRelay:
    """Reads a stream that is passed on.

    Args:
        wire: Name of the form of the dialect.
        make: Makes a reader that decodes it.
        choices: How many choices were asked for; of several all chunks are decoded, to see that each ends.
        usage_asked: Whether the caller asked for the chunk of usage, which is dropped otherwise.
    """

    def __init__(
        self, wire: str, make: Callable[[], BodyReader], choices: int = 1, *, usage_asked: bool
    ) -> None:
        self._wire = wire
        self._make = make
        self._reader = make()
        self._usage_asked = usage_asked
        self._choices = choices
        self._several = choices > 1
        self._at_once = False
        self._begun = False
        self._chunks = 0
        self._rest = b""
        self._held: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that became complete with these bytes.

        Raises:
            InferenceError: The upstream told of an error, or sent what is none of its dialect.
        """
        if self._reader.complete:
            return
        if self._at_once:
            yield from self._reader.feed(data)
            return
        known = max(0, len(self._rest) - len(_BLANK_CR))
        if self._rest:
            data = self._rest + data
        if not self._begun and not self._held and data.lstrip()[:1] in (b"{", b"["):
            # An upstream that does not stream after all.
            self._at_once = True
            yield from self._reader.feed(data)
            return
        cut = _last_end(data, known)
        self._rest = data[cut:]
        if len(self._rest) > sse.MAX_EVENT:
            raise BackendFailed(f"sent one event of more than {sse.MAX_EVENT >> 20} MiB")
        if cut:
            yield from self._passed(data[:cut])

    def end(self) -> Iterator[Event]:
        """The events of a body that came at once; nothing where the stream has told its end already.

        Raises:
            BackendFailed: The body ended before the answer did.
        """
        if self._at_once:
            yield from self._reader.end()
        elif not self._reader.complete and self._reader.answer.has_ended(self._choices):
            # Some upstreams leave the mark of the end out; the caller is to have it.
            for finished in self._reader.event("message", b"[DONE]"):
                last = self._relayed(b"".join(self._held) + sse.DONE, 0)
                yield msgspec.structs.replace(finished, result=None, last=last)
        elif not self._reader.complete:
            if not self._chunks and not self._held and not self._rest.strip():
                raise BackendFailed("ended its answer before anything of it came")
            raise BackendFailed(f"the stream ended after {self._chunks} chunks without its end")

    def _passed(self, data: bytes) -> Iterator[Event]:
        """The events of some whole frames."""
        if self._begun and not self._several and (count := _plain(data)):
            yield self._relayed(data, count)
            return
        count, kept = 0, self._held
        try:
            for frame in _frames(data):
                chunks, finished = self._decoded(frame)
                count += chunks
                if not self._dropped(frame):
                    kept.append(frame)
                if finished is not None:
                    self._held = []
                    last = self._relayed(b"".join(kept), count)
                    yield msgspec.structs.replace(finished, result=None, last=last)
                    return
        except InferenceError:
            if self._begun and kept:
                self._held = []
                yield self._relayed(b"".join(kept), count)
            raise
        # Until something of the answer is there, another backend may give all of it.
        self._begun = self._begun or count > 0
        if self._begun:
            self._held = []
            if kept:
                yield self._relayed(b"".join(kept), count)

    def _decoded(self, frame: bytes) -> tuple[int, Finished | None]:
        """How many chunks a frame holds, and the end of the answer if it is that."""
        if self._begun and not self._several and _plain(frame):
            return 1, None
        count = 0
        for name, text in sse.Parser().feed(frame):
            for event in self._reader.event(name, text):
                if isinstance(event, Finished):
                    return count, event
                count += 1
        return count, None

    def _dropped(self, frame: bytes) -> bool:
        """Whether it is the chunk of usage that we asked for and the caller did not."""
        if self._usage_asked or b'"usage"' not in frame:
            return False
        for _, text in sse.Parser().feed(frame):
            found = _FRAME.decode(text)
            return found.usage is not None and not found.choices
        return False

    def _relayed(self, data: bytes, count: int) -> Relayed:
        index, self._chunks = self._chunks, self._chunks + count
        return Relayed(index, count, (self._wire, data), self._decode)

    def _decode(self, data: bytes) -> Iterator[Chunk]:
        reader = self._make()
        for name, text in sse.Parser().feed(data):
            if text == b"[DONE]":
                return
            for event in reader.event(name, text):
                if isinstance(event, Chunk):
                    yield event


def _plain(frames: bytes) -> int:
    """How many frames there are, where each is one line of JSON that tells nothing but content; else 0.

    A quote inside of a JSON string is escaped, so no text passes for the name of a field.
    """
    count = frames.count(_BLANK)
    plain = (
        frames.count(b"\n") == 2 * count
        and frames.count(b"data: {") == frames.count(b"}\n\n") == count
        and b'"error"' not in frames
        and _all_null(frames, b'"finish_reason"')
        and not tells_usage(frames)
    )
    return count if plain else 0


def tells_usage(frames: bytes) -> bool:
    """Whether a frame may tell of usage; many upstreams write a null into each."""
    return not _all_null(frames, b'"usage"')


def _all_null(frames: bytes, name: bytes) -> bool:
    count = frames.count(name)
    return not count or count == frames.count(name + b":null") + frames.count(name + b": null")


def _last_end(data: bytes, start: int) -> int:
    """Where the last whole frame ends; 0 if there is none.

    Args:
        data: What has come.
        start: Nothing ends before it.
    """
    at = data.rfind(_BLANK, start)
    end = at + len(_BLANK) if at >= 0 else 0
    if b"\r" in data:
        at = data.rfind(_BLANK_CR, start)
        end = max(end, at + len(_BLANK_CR) if at >= 0 else 0)
    return end


def _frames(data: bytes) -> Iterator[bytes]:
    """Whole frames, one by one, with the blank lines behind them."""
    start = end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        if line in (b"\n", b"\r\n"):
            yield data[start:end]
            start = end
