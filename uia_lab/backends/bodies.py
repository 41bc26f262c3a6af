"""Bodies of HTTP calls: forms, bounded reading, and what they say."""

import asyncio
import io
from typing import TYPE_CHECKING, Any

import msgspec

from uia_lab.dialects.upstream import Outgoing
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    import aiohttp

# How long after the last event a connection may take to become free for the next request.
DRAIN_S = 0.1


def form_of(outgoing: Outgoing) -> "aiohttp.FormData":
    """The multipart form of a call that has files; it can be sent only once."""
    import aiohttp

    # Names of files as they are: servers show them, and tell the format by their ending.
    form = aiohttp.FormData(quote_fields=False)
    for name, value in outgoing.body.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            form.add_field(name, str(item))
    for name, file in outgoing.files.items():
        # As a file: aiohttp would complain of large bytes, which it writes at once.
        form.add_field(name, io.BytesIO(file.data), filename=file.filename, content_type=file.content_type)
    return form


def is_compressed(response: "aiohttp.ClientResponse") -> bool:
    """Whether a body is compressed, which nobody asked for; a small one may unfold to any size."""
    return response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


async def drain(response: "aiohttp.ClientResponse") -> None:
    """Reads the end of a body that is whole, so that its connection serves again; never for long."""
    if response.content.at_eof():
        return
    try:
        async with asyncio.timeout(DRAIN_S):
            await response.content.readany()
    except Exception:  # noqa: BLE001 - the answer is whole; only the connection is lost
        return


async def read(response: "aiohttp.ClientResponse", most: int, *, whole: bool = True) -> bytes:
    """A body of at most so many bytes, or its beginning.

    Raises:
        BackendFailed: ``whole`` was asked for and there is more, or it is compressed.
    """
    if is_compressed(response):
        if whole:
            raise compressed()
        return b""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > most:
            if whole:
                raise BackendFailed(f"answered with more than {most >> 20} MiB")
            break
    return bytes(body[:most])


def compressed() -> BackendFailed:
    """The error of an answer that is compressed."""
    return BackendFailed("compressed its answer, though none was asked to be")


def json_of(body: bytes) -> Any:
    """The JSON of a body, or None."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def said(body: bytes) -> str:
    """The message of a body that is an error, in whichever shape."""
    value = json_of(body)
    inner = value.get("error", value) if isinstance(value, dict) else value
    message = inner.get("message") if isinstance(inner, dict) else inner
    return one_line(str(message or "")[:200]) or "it does not say what"


def described(error: BaseException) -> str:
    """An exception in one short line."""
    return one_line(f"{type(error).__name__}: {error}".rstrip(": ")[:300])
