"""What a client may send, how slowly, and for how long an answer may go on."""

import asyncio
import io
import json

import pytest

from tests.doors.conftest import KEYS
from uia_lab.doors.application import STRANGERS_BODY, HttpServer
from uia_lab.doors.base import MAX_BODY, Timings


@pytest.fixture
async def hasty(house):
    """A second server over the same house that waits for nobody."""
    server = HttpServer(house.service, "127.0.0.1", 0, Timings(body_s=0.3, idle_s=0.3))
    await server.start()
    yield server
    await server.stop()


def head(path="v1/chat/completions", key="infer", length=None, extra=""):
    lines = [f"POST /{path} HTTP/1.1", "Host: x"]
    lines += [f"Authorization: Bearer {KEYS.get(key, key)}"] if key else []
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode()


async def said(port, *pieces):
    """What the server says to these bytes until it closes."""
    async with asyncio.timeout(50):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def test_a_body_that_is_too_large_is_told_so(house):
    body = b'{"model": "echo", "messages": "' + b"x" * MAX_BODY + b'"}'
    async with house.call("POST", "v1/chat/completions", "infer", data=io.BytesIO(body)) as response:
        error = (await response.json())["error"]
    assert response.status == 413
    assert "16 MiB" in error["message"]
    async with house.chat() as response:
        assert response.status == 200


async def test_far_larger_ones_are_not_read_at_all(house):
    answer = await said(house.server.port, head(length=10**10))
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""


@pytest.mark.parametrize("key", [None, "uia-a-key-that-opens-nothing"])
async def test_of_strangers_little_is_read(house, key):
    answer = await said(house.server.port, head(key=key, length=STRANGERS_BODY + 1))
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""
    body = b"x" * 1000
    small = head(key=key, length=len(body), extra="Connection: close\r\n") + body
    assert (await said(house.server.port, small)).startswith(b"HTTP/1.1 401")


async def test_headers_are_bounded(house):
    answer = await said(house.server.port, head(length=0, extra=f"x-long: {'a' * 70_000}\r\n"))
    assert b"200 OK" not in answer
    async with house.chat() as response:
        assert response.status == 200


async def test_slow_headers_and_slow_bodies_are_not_waited_for(hasty):
    assert await said(hasty.port, b"POST /v1/chat/completions HTTP/1.1\r\nHost:") == b""
    assert await said(hasty.port, head(length=100), b'{"model": ') == b""


async def test_a_small_body_of_millions_of_parts_is_refused_before_it_is_work(house):
    body = b'{"model": "echo", "messages": [' + b"[]," * 2_000_000 + b"[]]}"
    async with house.call("POST", "v1/chat/completions", "infer", data=io.BytesIO(body)) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert "lists and objects" in error["message"]


async def test_an_answer_ends_at_the_houses_deadline_whatever_the_caller_asks(house):
    house.manager.configure({"request_timeout": 0.5})
    async with asyncio.timeout(30):
        async with house.chat("endless", stream=True, headers={"x-uia-timeout": "1000"}) as response:
            text = await response.text()
        assert "deadline_exceeded" in text
        assert "[DONE]" not in text
        async with house.chat("gated") as response:
            assert response.status == 504
            assert json.loads(await response.text())["error"]["code"] == "deadline_exceeded"
