"""The bridge from an ASGI application to a tornado handler, with applications of a few lines."""

import asyncio
import contextlib

import aiohttp
import pytest
from tornado.web import Application, RequestHandler

from uia_lab.doors.asgi import Exchange


class Mount(RequestHandler):
    application_under_test = None
    stalled_s = 5.0
    exchange = None
    log = None

    async def get(self):
        self.exchange = Exchange(self, self.stalled_s)
        try:
            await self.exchange.run(self.application_under_test, extra="of the mount")
        finally:
            self.ended.set()

    post = get

    def on_connection_close(self):
        self.exchange.leave()


@pytest.fixture
async def mount():
    """Serves an application; gives its address, and an event that is set when its run has ended."""
    servers = []

    def mount(application, **settings):
        ended = asyncio.Event()
        attributes = {"application_under_test": staticmethod(application), "ended": ended, **settings}
        handler = type("Mounted", (Mount,), attributes)
        server = Application([("/app/(?:.*)", handler)]).listen(0, "127.0.0.1")
        servers.append(server)
        port = next(iter(server._sockets.values())).getsockname()[1]
        return f"http://127.0.0.1:{port}/app/", ended, handler

    async with aiohttp.ClientSession() as session:
        mount.session = session
        yield mount
    for server in servers:
        server.stop()
        await server.close_all_connections()


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(piece=b"", more=False):
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def test_the_scope_has_the_request_and_no_secret(mount):
    seen = {}

    async def application(scope, receive, send):
        seen.update(scope)
        seen["body"] = (await receive())["body"]
        await send(start(201, (b"content-type", b"text/x-test"), (b"content-length", b"3"), (b"x-own", b"1")))
        await send(body(b"yes"))

    url, _, _ = mount(application)
    headers = {
        "Authorization": "Bearer secret",
        "x-api-key": "secret",
        "Cookie": "a=secret",
        "X-Other": "here",
    }
    async with mount.session.post(url + "a?token=secret", data=b"said", headers=headers) as response:
        assert (response.status, await response.read()) == (201, b"yes")
        assert response.headers["Content-Type"] == "text/x-test"
        assert response.headers["X-Own"] == "1"
    assert "secret" not in str(seen)
    assert (seen["type"], seen["method"], seen["path"]) == ("http", "POST", "/app/a")
    assert (seen["body"], seen["extra"]) == (b"said", "of the mount")
    assert (b"x-other", b"here") in seen["headers"]


async def test_pieces_go_out_as_they_come(mount):
    gate = asyncio.Event()

    async def application(scope, receive, send):
        await send(start())
        await send(body(b"first", more=True))
        await gate.wait()
        await send(body(b"last"))

    url, _, _ = mount(application)
    async with mount.session.get(url) as response:
        assert await response.content.readany() == b"first"
        gate.set()
        assert await response.read() == b"last"


async def test_a_client_that_leaves_is_a_disconnect(mount):
    received = []

    async def application(scope, receive, send):
        await receive()
        await send(start())
        await send(body(b"first", more=True))
        received.append((await receive())["type"])
        with pytest.raises(OSError, match="gone"):
            await send(body(b"more", more=True))

    url, ended, _ = mount(application)
    async with mount.session.get(url) as response:
        assert await response.content.readany() == b"first"
        response.close()
    async with asyncio.timeout(20):
        await ended.wait()
    assert received == ["http.disconnect"]


async def test_a_client_that_reads_nothing_is_dropped(mount):
    async def application(scope, receive, send):
        await send(start())
        while True:
            await send(body(b"x" * 100_000, more=True))

    url, ended, _ = mount(application, stalled_s=0.4)
    host, port = url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(b"GET /app/ HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(20):
        await ended.wait()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert not reader.at_eof()


async def test_whoever_is_told_to_go_gets_an_answer(mount):
    waiting = asyncio.Event()

    async def application(scope, receive, send):
        await receive()
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"

    url, _, handler = mount(application)
    opened = []

    def prepare(self):
        opened.append(self)

    handler.prepare = prepare
    call = asyncio.create_task(mount.session.get(url))
    await waiting.wait()
    opened[0].exchange.leave()
    response = await call
    assert response.status == 503
    response.release()


async def test_an_application_that_breaks_is_an_error(mount):
    async def application(scope, receive, send):
        raise ZeroDivisionError

    url, _, handler = mount(application)
    handler.log_exception = lambda *_: None
    async with mount.session.get(url) as response:
        assert response.status == 500
