"""One answer of a server as it streams: the body of ``POST /infer``, and its events."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self

from uia_lab.dialects import sse
from uia_lab.domain import errors
from uia_lab.domain.events import (
    Attempted,
    Chunk,
    Delta,
    Event,
    Finished,
    Reasoning,
    Result,
    Started,
    Switched,
    Text,
    ToolCall,
    Usage,
)
from uia_lab.domain.requests import InferenceRequest
from uia_lab.notebook.http_errors import error_of

if TYPE_CHECKING:
    import aiohttp

# The server says ": waiting" every 10 s, so three missed in a row mean that nobody is there any more.
SILENCE_S = 35.0


class HttpStream:
    """One answer of ``POST /infer`` as domain events.

    Args:
        request: What to ask.
        asked: Sends a request to the server; an asynchronous context manager of its answer.
        attempts: Tells who was tried for the request of an id.
        where: In words, who serves.
    """

    def __init__(
        self,
        request: InferenceRequest,
        asked: Callable[..., AbstractAsyncContextManager["aiohttp.ClientResponse"]],
        attempts: Callable[[str | None], Awaitable[tuple[Attempted, ...]]],
        where: str,
    ) -> None:
        self.request_id: str | None = None
        self._request = request
        self._asked = asked
        self._attempts = attempts
        self._where = where
        self._events = self._run()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Hangs up, which ends the request at the server."""
        await self._events.aclose()

    def _head(self, headers: Mapping[str, str]) -> None:
        self.request_id = headers.get("x-request-id")

    async def _run(self) -> AsyncGenerator[Event, None]:
        pieces: list[str] = []
        usage, reason, result = Usage(), "stop", None
        async with self._asked(
            "POST",
            "infer",
            json=body_of(self._request),
            headers=headers_of(self._request),
            read_s=SILENCE_S,
            head=self._head,
        ) as response:
            yield Started(response.headers.get("x-uia-backend", ""))
            async for name, data in sse.events(response.content):
                if data == "[DONE]":
                    attempts = await self._attempts(self.request_id)
                    yield Finished("".join(pieces) if result is None else result, usage, reason, attempts)
                    return
                payload = json.loads(data)
                if name == "error" or "error" in payload:
                    raise error_of(502, payload, self._where)
                if name == "complete":
                    usage = _usage(payload.get("usage") or {})
                    reason = payload.get("finish_reason") or reason
                elif name == "switched":
                    yield Switched(
                        payload["from"], payload["to"], payload["reason"], payload.get("at_index", 0)
                    )
                elif name == "chunk" and (delta := _delta(payload)) is not None:
                    if isinstance(delta, Text) and payload["choice"] == 0:
                        pieces.append(delta.text)
                    elif isinstance(delta, Result):
                        result = delta.value
                    yield Chunk(payload["index"], delta, payload["choice"], payload.get("logprobs"))
        raise errors.StreamInterrupted(f"the stream from {self._where} ended before the answer did")


def _delta(payload: Mapping[str, Any]) -> Delta | None:
    match payload:
        case {"text": text}:
            return Text(text)
        case {"reasoning": text}:
            return Reasoning(text)
        case {"tool_call": call}:
            return ToolCall(call["index"], call["id"], call["name"], call["arguments"])
        case {"result": value}:
            return Result(value)
    return None


def _usage(raw: Mapping[str, Any]) -> Usage:
    return Usage(
        raw.get("prompt_tokens", 0), raw.get("completion_tokens", 0), bool(raw.get("estimated", False))
    )


def body_of(request: InferenceRequest) -> dict[str, Any]:
    """The call of ``POST /infer`` that asks for a request's answer.

    OpenAI's dialect has no word for a switch of backends in the middle of an answer; this door has.
    """
    hints = request.routing
    body: dict[str, Any] = {
        "task": request.task,
        "model": request.model,
        "parameters": dict(request.parameters),
        "stream": True,
        "routing": {"exclude": sorted(hints.excluded_backends)} if hints.excluded_backends else None,
    }
    if request.messages is None:
        body["inputs"] = request.inputs
    else:
        body["messages"] = [dict(message) for message in request.messages]
    return {name: value for name, value in body.items() if value is not None}


def headers_of(request: InferenceRequest) -> dict[str, str]:
    """The routing hints of a request."""
    hints = request.routing
    headers = {
        "x-request-id": request.id,
        "x-uia-backend": hints.backend_id,
        "x-uia-prefer": ",".join(hints.preferred_types),
        "x-uia-session": hints.session_id,
        "x-uia-timeout": f"{hints.deadline_s:g}" if hints.deadline_s else None,
        "Accept": "text/event-stream",
    }
    return {name: value for name, value in headers.items() if value}
