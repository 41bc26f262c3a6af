"""Requests, events and errors of the domain as frames, and back."""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec

from uia_lab.dialects.hints import instance_ids
from uia_lab.dialects.upstream_errors import open_to_others
from uia_lab.dialects.websocket_answers import error_of
from uia_lab.domain import events
from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
)
from uia_lab.domain.peers import PEER_PRINCIPAL
from uia_lab.domain.requests import InferenceRequest, Resumed, RoutingHints
from uia_lab.domain.texts import one_line
from uia_lab.p2p import messages

LONGEST_WORDS = 500
LONGEST_NAME = 4096
MOST_TOKENS = 2**53
_BYTES, _AUDIO = "$bytes", "$audio"


def request_frame(
    request: InferenceRequest, label: str, via: tuple[str, ...], window: int
) -> messages.Request:
    """The frame that asks a peer for a request's answer.

    Args:
        request: The request.
        label: Its id on the stream.
        via: Instances it has passed when it gets there.
        window: Chunks that may be on their way.
    """
    resumed = request.resumed
    return messages.Request(
        id=label,
        task=request.task,
        model=request.model,
        inputs=_plain(request.inputs),
        messages=None if request.messages is None else [dict(item) for item in request.messages],
        parameters=dict(request.parameters),
        stream=request.stream,
        via=via,
        window=window,
        session_id=request.routing.session_id,
        deadline_s=request.routing.deadline_s,
        resumed=None
        if resumed is None
        else messages.ResumedFrom(text=resumed.text, tokens=resumed.tokens, digest=resumed.digest),
    )


def request_of(frame: messages.Request, peer_id: str) -> InferenceRequest:
    """The request that a peer asks for.

    Raises:
        BadRequest: A field is wrong; it is named.
    """
    for name in ("task", "model", "session_id"):
        if len(getattr(frame, name) or "") > LONGEST_NAME:
            raise BadRequest(f"{name} must be a string of at most {LONGEST_NAME} characters", param=name)
    resumed = frame.resumed
    if resumed is not None and not 0 <= resumed.tokens <= MOST_TOKENS:
        # They are taken off what the answer has cost.
        raise BadRequest("resumed.tokens must not be negative", param="resumed.tokens")
    return InferenceRequest(
        frame.task,
        frame.model,
        _given(frame.inputs),
        frame.messages,
        frame.parameters,
        stream=frame.stream,
        principal=f"{PEER_PRINCIPAL}{peer_id}",
        via=instance_ids(frame.via, "via"),
        routing=RoutingHints(session_id=frame.session_id, deadline_s=frame.deadline_s),
        resumed=None if resumed is None else Resumed(resumed.text, resumed.tokens, resumed.digest),
    )


def chunk_frame(label: str, seq: int, chunk: events.Chunk) -> messages.Chunk:
    """The frame of a chunk."""
    delta = chunk.delta
    if isinstance(delta, events.Text):
        return messages.Chunk(
            id=label, seq=seq, text=delta.text, choice=chunk.choice, logprobs=chunk.logprobs
        )
    return messages.Chunk(id=label, seq=seq, delta=delta, choice=chunk.choice, logprobs=chunk.logprobs)


def end_frames(label: str, chunks: int, end: events.Finished) -> Iterator[messages.Frame]:
    """The frames of a proper end."""
    usage = end.usage
    yield messages.Usage(
        id=label,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        estimated=usage.estimated,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
    yield messages.Done(
        id=label,
        chunks=chunks,
        finish_reason=end.finish_reason,
        finish_reasons=end.finish_reasons,
        stop_sequence=end.stop_sequence,
    )


def error_frame(label: str, error: InferenceError) -> messages.Failed:
    """The frame of an error."""
    return messages.Failed(
        id=label,
        code=error.code,
        message=error.message[:LONGEST_WORDS],
        param=error.param,
        retry_after=error.retry_after,
    )


class AnswerReader:
    """Turns the frames of one answer into events.

    Args:
        request: What was asked: a peer that goes on with an answer counts what came before as well.
    """

    def __init__(self, request: InferenceRequest) -> None:
        self._resumed = request.resumed
        self._pieces: list[Any] = []
        self._count = 0
        self._usage: events.Usage = events.Usage(estimated=True)

    def feed(self, frame: messages.ToClient) -> Iterator[events.Event]:
        """The events of a frame; the last of an answer is ``Finished``.

        Raises:
            InferenceError: The peer failed, or broke the protocol.
        """
        match frame:
            case messages.Accepted():
                yield events.Started("")
            case messages.Chunk():
                yield self._chunk(frame)
            case messages.Usage():
                self._usage = self._counted(frame)
            case messages.Done():
                if frame.chunks != self._count:
                    raise BackendFailed(f"{self._count} chunks came of {frame.chunks}")
                yield events.Finished(
                    self._whole(),
                    self._usage,
                    frame.finish_reason,
                    finish_reasons=frame.finish_reasons,
                    stop_sequence=frame.stop_sequence,
                )
            case messages.Failed():
                raise error_from(frame)

    def _chunk(self, frame: messages.Chunk) -> events.Chunk:
        if frame.seq != self._count:
            raise BackendFailed(f"chunk {frame.seq} came where {self._count} was due")
        delta: events.Delta
        if frame.delta is not None:
            delta = frame.delta
        elif frame.text is not None:
            delta = events.Text(frame.text)
        else:
            raise BackendFailed("a chunk without content")
        if not 0 <= frame.choice < 128:
            raise BackendFailed("a chunk of a choice that nobody asked for")
        if frame.choice == 0:
            if isinstance(delta, events.Text):
                self._pieces.append(delta.text)
            elif isinstance(delta, events.Result):
                self._pieces.append(delta.value)
        self._count += 1
        return events.Chunk(self._count - 1, delta, frame.choice, frame.logprobs)

    def _counted(self, frame: messages.Usage) -> events.Usage:
        before = self._resumed.tokens if self._resumed is not None else 0
        return events.Usage(
            _count(frame.input_tokens + before),
            _count(frame.output_tokens - before),
            frame.estimated or before > 0,
            _count(frame.cached_tokens),
            reasoning_tokens=_count(frame.reasoning_tokens),
        )

    def _whole(self) -> Any:
        if all(isinstance(piece, str) for piece in self._pieces):
            return "".join(self._pieces)
        return self._pieces[0] if len(self._pieces) == 1 else self._pieces


def error_from(frame: messages.Failed | messages.Refused) -> InferenceError:
    """A peer's error, as it counts here, where the request may go on at another one."""
    body: dict[str, Any] = {"code": frame.code, "message": one_line(frame.message[:LONGEST_WORDS])}
    if isinstance(frame, messages.Failed):
        body |= {
            name: value
            for name, value in (("param", frame.param), ("retry_after", frame.retry_after))
            if value is not None
        }
    error = error_of(body)
    if isinstance(error, Cancelled):
        return BackendFailed(f"it was cancelled there: {error.message}")
    if isinstance(error, DeadlineExceeded):
        return BackendTimeout(f"it took too long there: {error.message}")
    return open_to_others(error)


def _count(value: int) -> int:
    return min(max(value, 0), MOST_TOKENS)


def _plain(inputs: Any) -> Any:
    """Inputs that JSON has: files as base64 under a name of their own."""
    match inputs:
        case bytes():
            return {_BYTES: base64.b64encode(inputs).decode()}
        case Audio():
            data = base64.b64encode(inputs.data).decode()
            return {_AUDIO: {"data": data, "filename": inputs.filename, "content_type": inputs.content_type}}
    return inputs


def _given(inputs: Any) -> Any:
    if not isinstance(inputs, dict) or len(inputs) != 1:
        return inputs
    try:
        if _BYTES in inputs:
            return base64.b64decode(inputs[_BYTES], validate=True)
        if _AUDIO in inputs:
            audio = msgspec.convert(inputs[_AUDIO], _Recording)
            return Audio(audio.data, audio.filename, audio.content_type)
    except (binascii.Error, msgspec.MsgspecError, TypeError, ValueError):
        raise BadRequest("inputs are no file in base64", param="inputs") from None
    return inputs


class _Recording(msgspec.Struct):
    data: bytes
    filename: str
    content_type: str
