"""Frames on a stream: a u32 length, big-endian, then JSON; 1 MiB at most."""

import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from uia_lab.dialects.json_body import encode as encode_json
from uia_lab.p2p.messages import Frame, Part

MAX_FRAME = 1 << 20
MAX_WHOLE = 32 << 20
"""Bytes of a message that came in parts."""
MOST_ASSEMBLED = 64 << 20
"""Bytes of all messages in parts on one stream."""
MOST_PARTIAL = 64
"""Messages of which some parts have come, on one stream."""
LONGEST_LABEL = 128
# A character of JSON text is six bytes at most once it is escaped in a frame.
PART_CHARACTERS = 128 << 10
_LENGTH = struct.Struct(">I")

T = TypeVar("T")


class FrameError(Exception):
    """The other side broke the protocol: a frame too large, no JSON, or of a shape that is not known."""


def pack(frame: Frame) -> bytes:
    """The bytes of a frame on the wire; in parts where it is too large for one, for frames with an ``id``.

    Raises:
        FrameError: It is larger than MAX_WHOLE, or has no id to be put together by.
    """
    body = encode_json(frame)
    if len(body) <= MAX_FRAME:
        return _LENGTH.pack(len(body)) + body
    label = getattr(frame, "id", None)
    if label is None or len(body) > MAX_WHOLE:
        raise FrameError(f"a message of {len(body):,} bytes is over the limit of {MAX_WHOLE:,}")
    text = body.decode()
    starts = range(0, len(text), PART_CHARACTERS)
    return b"".join(
        pack(Part(id=label, text=text[at : at + PART_CHARACTERS], last=at == starts[-1])) for at in starts
    )


class Splitter(Generic[T]):
    """Cuts what comes from a stream into frames, and puts parts together; it holds a bounded amount.

    Args:
        kinds: Union of the frames that may come.
    """

    def __init__(self, kinds: Any) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kinds)
        self._buffer = bytearray()
        self._parts: dict[str, bytearray] = {}
        self._assembled = 0

    def feed(self, data: bytes) -> Iterator[T]:
        """The whole frames that these bytes complete.

        Raises:
            FrameError: The other side broke the protocol; nothing more can be read.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length:,} bytes is over the limit of {MAX_FRAME:,}")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            frame = self._decoded(bytes(memoryview(buffer)[at + _LENGTH.size : end]))
            at = end
            if isinstance(frame, Part):
                whole = self._put(frame)
                if whole is not None:
                    yield whole
            else:
                yield frame
        del buffer[:at]

    def _decoded(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise FrameError(f"a frame that cannot be read: {error!s:.200}") from None

    def _put(self, part: Part) -> T | None:
        if not (part.text or part.last):
            # Such parts could come for ever and would count as nothing.
            raise FrameError("a part without text")
        pieces = self._parts.get(part.id)
        if pieces is None:
            if len(self._parts) >= MOST_PARTIAL or len(part.id) > LONGEST_LABEL:
                raise FrameError(f"more than {MOST_PARTIAL} messages in parts, or one with too long a label")
            pieces = self._parts[part.id] = bytearray()
        before = len(pieces)
        pieces += part.text.encode(errors="surrogatepass")
        self._assembled += len(pieces) - before
        if self._assembled > MOST_ASSEMBLED or len(pieces) > MAX_WHOLE:
            raise FrameError(f"a message in parts is over the limit of {MAX_WHOLE:,} bytes")
        if not part.last:
            return None
        del self._parts[part.id]
        self._assembled -= len(pieces)
        whole = self._decoded(bytes(pieces))
        if isinstance(whole, Part):
            raise FrameError("a part of parts")
        return whole
