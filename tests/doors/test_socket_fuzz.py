"""Whatever is sent, the server answers or closes, serves the others, and keeps nothing."""

import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import struct
from urllib.parse import urlsplit

import psutil
import pytest

from tests.doors.conftest import KEYS

TYPES = ("subscribe", "unsubscribe", "inference", "cancel", "status", "ping", "register", "result", "chunk",
         "complete", "fail", "dance", "", None, 7)  # fmt: skip
FIELDS = ("topics", "request_id", "model", "task", "inputs", "parameters", "stream", "routing", "details",
          "backend", "result", "chunk", "index", "usage", "finish_reason", "error", "code")  # fmt: skip
VALUES = (None, True, 0, -1, 10**400, 1e308, -0.0, "", "echo", "text-generation", "\ud800", "x" * 5000, [],
          {}, [[]], {"a": {"b": [1, {}]}}, ["status"], ["status", 7], {"id": "w"},
          {"id": "w", "task": "chat"}, [{"role": "user", "content": None}], {"via": [1]}, {"n": 129},
          {"temperature": "x"}, {"priority": 10**30})  # fmt: skip


class Raw:
    """A connection whose frames are written by hand."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, house, key="admin"):
        address = urlsplit(house.server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        nonce = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /ws/fuzz?token={KEYS[key]} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0]
        return cls(reader, writer)

    async def frame(self, opcode, data=b"", *, fin=True, mask=True, flags=0, length=None):
        size = len(data) if length is None else length
        first = bytes([(0x80 if fin else 0) | flags | opcode])
        bit = 0x80 if mask else 0
        if size < 126:
            head = bytes([bit | size])
        elif size < 2**16:
            head = bytes([bit | 126]) + struct.pack("!H", size)
        else:
            head = bytes([bit | 127]) + struct.pack("!Q", size)
        key = os.urandom(4) if mask else b""
        body = bytes(byte ^ key[i % 4] for i, byte in enumerate(data)) if mask else data
        self.writer.write(first + head + key + body)
        await self.writer.drain()

    async def finish(self):
        """Reads what is left until the server closes, or hangs up after a moment."""
        try:
            async with asyncio.timeout(0.2):
                while await self.reader.read(65536):
                    pass
        except (TimeoutError, ConnectionError):
            pass
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def check(house, baseline):
    """It still serves, and nothing of the connections is left."""
    async with house.socket("infer") as ws:
        await ws.send("inference", request_id="r", model="echo", inputs="fine")
        assert (await ws.receive("inference_result"))["result"] == "fine "
    await house.until_idle()
    async with asyncio.timeout(20):
        while len(house.server.application.settings["uia_open_doors"]):
            await asyncio.sleep(0.01)
        while psutil.Process().num_fds() > baseline:
            await asyncio.sleep(0.05)
    report = house.manager.get_backend_status_report()
    ends = ("total_successful", "total_failed", "total_cancelled", "total_rejected")
    assert report["total_requests"] == sum(report[name] for name in ends)


@pytest.fixture
async def baseline(house):
    async with house.socket("infer") as ws:
        await ws.ask("ping")
    return psutil.Process().num_fds() + 2


@pytest.mark.parametrize("seed", range(4))
async def test_random_messages(house, baseline, seed, caplog):
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    async with house.socket("admin") as ws:

        async def read():
            async for message in ws.ws:
                assert json.loads(message.data)["type"]

        reading = asyncio.create_task(read())
        for _ in range(400):
            body = {name: rng.choice(VALUES) for name in rng.sample(FIELDS, rng.randrange(6))}
            if rng.random() < 0.95:
                body["type"] = rng.choice(TYPES)
            text = json.dumps(body)
            if rng.random() < 0.1:
                text = text[: rng.randrange(len(text))]
            if rng.random() < 0.1:
                await ws.ws.send_bytes(text.encode())
            else:
                await ws.ws.send_str(text)
        await ws.send("ping")
        await asyncio.sleep(0.1)
        assert not ws.ws.closed
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert not [record for record in caplog.records if "unexpected" in record.message], caplog.text
    await check(house, baseline)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"type": "inference", "model": "echo", "inputs": ' + "[" * 63 + "]" * 63 + "}",
        '{"type": "inference", "model": "echo", "inputs": ' + "[" * 500 + "]" * 500 + "}",
        '{"type": "ping", "n": ' + "9" * 5000 + "}",
        '{"type": "ping", "n": 1e999}',
        '{"type": "ping", "type": "ping"}',
        "\x00",
        "",
        "null",
    ],
)
async def test_hard_json(house, baseline, text):
    async with house.socket("infer") as ws:
        await ws.ws.send_str(text)
        assert (await ws.receive())["type"]
        await ws.send("ping")
        assert (await ws.receive("pong"))["type"] == "pong"
    await check(house, baseline)


async def test_frames_that_break_the_protocol(house, baseline):
    frames = (
        {"opcode": 0x3, "data": b"reserved opcode"},
        {"opcode": 0x1, "data": b"reserved bits", "flags": 0x70},
        {"opcode": 0x0, "data": b"continues nothing"},
        {"opcode": 0x1, "data": b"\xff\xfe no utf-8"},
        {"opcode": 0x1, "data": b"not masked", "mask": False},
        {"opcode": 0x9, "data": b"x" * 126},
        {"opcode": 0x9, "data": b"x", "fin": False},
        {"opcode": 0x8, "data": b"\x03"},
        {"opcode": 0x8, "data": b"\x03\xe8\xff\xff"},
        {"opcode": 0x1, "data": b"", "length": 2**62},
        {"opcode": 0x1, "data": b"{}", "length": 100},
        {"opcode": 0x2, "data": os.urandom(1000)},
    )
    for frame in frames:
        raw = await Raw.open(house)
        await raw.frame(**frame)
        await raw.finish()
    await check(house, baseline)


async def test_a_message_in_many_fragments_with_pings_in_between(house, baseline):
    raw = await Raw.open(house)
    text = b'{"type": "ping"}'
    for index, byte in enumerate(text):
        first, last = index == 0, index == len(text) - 1
        await raw.frame(0x1 if first else 0x0, bytes([byte]), fin=last)
        await raw.frame(0x9, b"?")
    async with asyncio.timeout(20):
        seen = b""
        while b'"pong"' not in seen:
            seen += await raw.reader.read(65536)
    # A fragment is left open, and the line is cut.
    await raw.frame(0x1, b'{"type"', fin=False)
    raw.writer.transport.abort()
    await check(house, baseline)


@pytest.mark.parametrize("seed", range(3))
async def test_random_bytes(house, baseline, seed):
    rng = random.Random(seed)
    for _ in range(30):
        raw = await Raw.open(house, rng.choice(("read", "infer", "admin")))
        try:
            raw.writer.write(rng.randbytes(rng.randrange(1, 2000)))
            await raw.writer.drain()
        except ConnectionError:
            pass
        if rng.random() < 0.5:
            raw.writer.transport.abort()
        else:
            await raw.finish()
    await check(house, baseline)


async def test_a_hundred_connections_that_come_and_go(house, baseline):
    async def visit(number):
        raw = await Raw.open(house, "admin")
        await raw.frame(0x1, b'{"type": "subscribe", "topics": ["status", "backend", "queue"]}')
        body = {"type": "inference", "model": "endless", "inputs": "x", "stream": True}
        await raw.frame(0x1, json.dumps(body).encode())
        backend = {"id": f"w{number}", "task": "chat", "models": ["none"]}
        await raw.frame(0x1, json.dumps({"type": "register", "backend": backend}).encode())
        await raw.reader.read(1000)
        raw.writer.transport.abort()

    for start in range(0, 100, 20):
        await asyncio.gather(*(visit(number) for number in range(start, start + 20)))
    await check(house, baseline)
    assert all(item.status == "offline" for item in house.manager.list_backends("websocket"))
