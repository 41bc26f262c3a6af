"""Messages between the server and a worker process: a u32 length, big-endian, then msgpack."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from uia_lab.domain.tasks import TEXT_GENERATION

MAX_FRAME = 64 << 20
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The other side broke the protocol: a frame too large, or one that cannot be read."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load a model; the first message to a worker.

    Args:
        engine: ``llamacpp`` or ``transformers``.
        path: The weights file, or the folder it lies in.
        model: The model's name.
        concurrency: Requests worked on at once.
        context_length: Tokens one request may use.
        task: The task it is loaded for.
        device: Where it computes, as torch names it.
        dtype: Number format of weights and cache: ``float32``, ``bfloat16``, ``float16``.
        cache_bytes: Memory for keys and values of running generations; 0 for what fits all of them.
    """

    engine: str
    path: str
    model: str
    concurrency: int
    context_length: int
    task: str = TEXT_GENERATION
    device: str = "cpu"
    dtype: str = "float32"
    cache_bytes: int = 0


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Work on a request; exactly one of ``inputs`` and ``messages`` is given."""

    rid: str
    task: str
    model: str
    inputs: Any = None
    messages: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] = {}


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop working on a request; nothing more needs to come for it."""

    rid: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Say how you are."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is ready; ``seconds`` is what loading took inside the worker."""

    seconds: float


class Piece(msgspec.Struct, frozen=True, tag="piece", omit_defaults=True):
    """A part of an answer.

    Args:
        rid: The request.
        choice: Which of its answers.
        text: Generated text.
        value: Rows of little-endian float32, one after the other.
        width: Numbers a row of ``value`` has.
        result: Result of a task that gives neither text nor vectors, JSON-ready.
        logprobs: Log probabilities of the text's tokens, each in the OpenAI chat shape.
    """

    rid: str
    choice: int = 0
    text: str | None = None
    value: bytes | None = None
    width: int = 0
    result: Any = None
    logprobs: list[Any] | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The proper end of an answer; the token counts are the tokenizer's."""

    rid: str
    input_tokens: int
    output_tokens: int
    finish_reasons: list[str]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A request failed, or loading did (``rid`` is None); ``code`` as in :mod:`uia_lab.domain.errors`."""

    rid: str | None
    code: str
    message: str
    param: str | None = None


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """How the worker is: ``running`` requests, and what its engine adds."""

    stats: dict[str, float]


ToWorker: TypeAlias = Load | Submit | Cancel | Ping | Stop
FromWorker: TypeAlias = Loaded | Piece | Done | Failed | Pong
Answer: TypeAlias = Piece | Done | Failed
Emit: TypeAlias = Callable[[FromWorker], None]

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """The bytes of a message on the wire.

    Raises:
        FrameError: It is larger than a frame may be, or holds what msgpack cannot.
    """
    try:
        body = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"cannot be sent to or from a worker: {error}") from error
    return _LENGTH.pack(_bounded(len(body))) + body


async def read(reader: asyncio.StreamReader) -> FromWorker:
    """The next message of a worker.

    Raises:
        asyncio.IncompleteReadError: The worker closed its end.
        FrameError: It sent something that is no message.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    body = await reader.readexactly(_bounded(length))
    try:
        message: FromWorker = _from_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(f"a worker sent something unreadable: {error}") from error
    return message


class Channel:
    """The worker's end of the socket: blocking, written to by many threads, read by one.

    Args:
        sock: A connected stream socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Sends one message.

        Raises:
            OSError: The server has gone.
            FrameError: The message cannot be sent.
        """
        data = encode(message)
        with self._sending:
            self._sock.sendall(data)

    def receive(self) -> ToWorker | None:
        """The next message, or None when the server closed its end.

        Raises:
            FrameError: What came is no message.
        """
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        body = self._exactly(_bounded(_LENGTH.unpack(head)[0]))
        if body is None:
            return None
        try:
            message: ToWorker = _to_worker.decode(body)
        except msgspec.MsgspecError as error:
            raise FrameError(f"the server sent something unreadable: {error}") from error
        return message

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                return None
            view = view[got:]
        return bytes(data)


def _bounded(length: int) -> int:
    if length > MAX_FRAME:
        raise FrameError(f"a frame of {length:,} bytes is over the limit of {MAX_FRAME:,}")
    return length
