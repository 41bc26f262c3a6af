"""Another uia_lab's ``/ws`` as a backend: one connection, many requests, and what happens when it breaks."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.upstreams.uia_server import KEY
from uia_lab.access.secrets import Secret
from uia_lab.backends.socket_link import socket_address
from uia_lab.backends.websocket import WebSocketBackend
from uia_lab.domain.errors import BackendFailed, BadRequest, LoopDetected, ModelNotFound, NotAllowed
from uia_lab.domain.events import Chunk, Started, Switched
from uia_lab.domain.requests import InferenceRequest


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def registered(manager, url, key=KEY, backend_id="there", **options):
    backend = WebSocketBackend(url, lambda: Secret(key), instance_id=manager.instance_id, **options)
    manager.register_backend(backend_id, "websocket", "There", backend, endpoint=backend.endpoint)
    return backend


async def test_it_answers_in_pieces_and_whole(make_server, local_manager):
    there = await make_server()
    registered(local_manager, there.url)
    info = await local_manager.probe("there")
    assert (info.status, info.models) == ("healthy", {"echo", "gated", "vectors"})
    assert there.manager.instance_id in info.reason
    assert info.capabilities.supported_tasks == {"text-generation", "text-embedding"}

    events = [event async for event in local_manager.stream("chat", "echo", "a b c")]
    assert isinstance(events[0], Started)
    assert [event.delta.text for event in events if isinstance(event, Chunk)] == ["a ", "b ", "c "]
    assert (events[-1].result, events[-1].usage.output_tokens) == ("a b c ", 3)
    result = await local_manager.infer(
        "chat", "echo", messages=[{"role": "user", "content": "in chat"}], parameters={"max_tokens": 9}
    )
    assert (result.result, result.backend_id) == ("in chat ", "there")
    result = await local_manager.infer("embedding", "vectors", ["one", "three"])
    assert result.result == [[3.0, 1.0], [5.0, 1.0]]
    assert there.manager.get_backend_status_report()["total_successful"] == 3


async def test_many_requests_share_one_connection(make_server, local_manager):
    there = await make_server()
    registered(local_manager, there.url)
    await local_manager.probe("there")
    results = await asyncio.gather(*(local_manager.infer("chat", "echo", f"n{i}") for i in range(100)))
    assert [item.result for item in results] == [f"n{i} " for i in range(100)]
    assert len(there.server.application.settings["uia_open_doors"]) == 1


async def test_leaving_an_answer_cancels_it_there(make_server, local_manager):
    there = await make_server()
    registered(local_manager, there.url)
    await local_manager.probe("there")
    async with local_manager.stream("chat", "gated", "x") as events:
        async for event in events:
            if isinstance(event, Chunk):
                break
    await until(lambda: not there.manager.running)
    assert there.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_errors_keep_their_type(make_server, local_manager):
    there = await make_server()
    registered(local_manager, there.url, models={"nothing", "echo"})
    await local_manager.probe("there")
    with pytest.raises(ModelNotFound, match="nothing"):
        await local_manager.infer("chat", "nothing", "x")
    with pytest.raises(BadRequest, match="temperature"):
        await local_manager.infer("chat", "echo", "x", {"temperature": "hot"})


async def silent():
    await asyncio.Event().wait()
    yield ""


def silence(there):
    """Its echo says nothing from now on."""
    capabilities = there.manager.get_backend("echo").capabilities
    there.manager.register_backend("echo", "gpu", "echo", silent, capabilities)


async def test_what_is_cancelled_there_goes_on_elsewhere(make_server, local_manager):
    there, other = await make_server(), await make_server()
    registered(local_manager, there.url)
    await local_manager.probe("there")
    silence(there)
    asked = asyncio.create_task(local_manager.infer("chat", "echo", "x y"))
    await until(lambda: there.manager.running)
    registered(local_manager, other.url, backend_id="other")
    await local_manager.probe("other")
    there.manager.cancel(next(iter(there.manager.running)))
    result = await asked
    assert (result.result, result.backend_id) == ("x y ", "other")
    assert "cancelled there" in result.attempts[0].message


async def test_a_server_that_restarts_is_found_again(make_server, local_manager):
    there = await make_server()
    backend = registered(local_manager, there.url)
    await local_manager.probe("there")
    stream = local_manager.stream("chat", "gated", "x")
    async for event in stream:
        if isinstance(event, Chunk):
            break
    await there.stop()
    with pytest.raises(Exception, match="broke off after 1 chunks"):
        async for _ in stream:
            pass
    info = await local_manager.probe("there")
    assert (info.status, info.routable) == ("offline", False)
    assert "cannot connect" in info.reason
    with pytest.raises(BackendFailed):
        await anext(backend.infer(InferenceRequest("chat", "echo", "x")))
    await make_server(there.port)
    async with asyncio.timeout(60):
        while not (await local_manager.probe("there")).routable:
            await asyncio.sleep(0.05)
    assert (await local_manager.infer("chat", "echo", "back")).result == "back "


async def test_what_it_refuses_another_one_may_have(make_server, local_manager):
    there, other = await make_server(), await make_server()
    there.manager.unregister_backend("echo")
    for server, backend_id in ((there, "there"), (other, "other")):
        registered(local_manager, server.url, backend_id=backend_id, models={"echo"})
        await local_manager.probe(backend_id)
    local_manager.set_strategy("round_robin")
    for _ in range(2):
        assert (await local_manager.infer("chat", "echo", "x")).backend_id == "other"


async def test_before_the_first_piece_a_cut_goes_unnoticed(make_server, local_manager):
    there, other = await make_server(), await make_server()
    registered(local_manager, there.url)
    await local_manager.probe("there")
    silence(there)
    stream = local_manager.stream("chat", "echo", "a b")
    reading = asyncio.create_task(_all(stream))
    await until(lambda: there.manager.running)
    registered(local_manager, other.url, backend_id="other")
    await local_manager.probe("other")
    await there.stop()
    events = await reading
    assert events[-1].result == "a b "
    assert [item.backend_id for item in events[-1].attempts] == ["there", "other"]
    assert not [event for event in events if isinstance(event, Switched)]


async def _all(stream):
    return [event async for event in stream]


async def test_two_that_lead_to_each_other_are_no_loop(make_server):
    one, two = await make_server(), await make_server()
    for here, there in ((one, two), (two, one)):
        here.manager.unregister_backend("echo")
        registered(here.manager, there.url, models={"m"}, tasks={"chat"})
    await one.manager.probe("there")
    await two.manager.probe("there")
    with pytest.raises(LoopDetected, match="leads back"):
        await one.manager.infer("chat", "m", "x", max_attempts=1)
    report = one.manager.get_backend_status_report()
    # Asked twice: the one that came in here has failed, the one that came back was refused.
    assert report["total_requests"] == 2
    assert (report["total_failed"], report["total_rejected"], report["in_flight"]) == (1, 1, 0)


async def test_itself_is_no_backend(make_server):
    here = await make_server()
    registered(here.manager, here.url)
    info = await here.manager.probe("there")
    assert (info.status, "this very instance" in info.reason) == ("offline", True)


@pytest.mark.parametrize(("key", "word"), [("uia-not-a-key-of-theirs", "does not take the key"), (KEY, "")])
async def test_what_a_key_may(make_server, local_manager, key, word):
    there = await make_server(scopes=("infer",))
    backend = registered(local_manager, there.url, key)
    info = await local_manager.probe("there")
    if word:
        assert (info.status, word in info.reason) == ("offline", True)
    else:
        assert info.status == "healthy"
        assert "its status cannot be read" in info.reason
        assert (await local_manager.infer("chat", "echo", "x", backend_id="there")).result == "x "
    assert key not in repr(backend) + str(info)


async def test_what_is_no_uia_lab(local_manager):
    async def greet(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("welcome")
        async for _ in socket:
            pass
        return socket

    async def away(request):
        raise web.HTTPFound("http://169.254.169.254/latest")

    application = web.Application()
    application.router.add_get("/chat/ws/{id}", greet)
    application.router.add_get("/moved/ws/{id}", away)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    for path, word in (("chat", "it is not uia_lab"), ("moved", "redirects"), ("none", "status 404")):
        registered(local_manager, f"http://127.0.0.1:{port}/{path}", backend_id=path)
        info = await local_manager.probe(path)
        assert (info.status, word in info.reason) == ("offline", True), info.reason
    await local_manager.aclose()
    await runner.cleanup()


def test_where_it_dials():
    assert socket_address("http://h:1", "a b") == "ws://h:1/ws/a%20b"
    assert socket_address("wss://h/user/uia/", "x") == "wss://h/user/uia/ws/x"
    assert socket_address("wss://h/uia/ws", "x") == "wss://h/uia/ws/x"
    with pytest.raises(NotAllowed):
        WebSocketBackend("ws://169.254.169.254/ws")
    with pytest.raises(BadRequest):
        WebSocketBackend("ws://user:secret@host/ws")


class Words:
    """The messages of an endpoint that sends plain words."""

    def ask(self, request, request_id, via):
        return {"type": "say", "n": request_id, "text": request.inputs}

    def stop(self, request_id):
        return {"type": "hush", "n": request_id}

    def read(self, message):
        if message.get("type") == "word":
            return message["n"], "chunk", {"chunk": message["word"]}
        return (message["n"], "complete", {}) if message.get("type") == "end" else None


async def test_another_shape_of_messages(local_manager):
    async def talk(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "connection"})
        async for message in socket:
            asked = message.json()
            for word in asked["text"].split():
                await socket.send_json({"type": "word", "n": asked["n"], "word": word})
            await socket.send_json({"type": "end", "n": asked["n"]})
        return socket

    application = web.Application()
    application.router.add_get("/ws/{id}", talk)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    registered(local_manager, f"ws://127.0.0.1:{port}/ws", shape=Words())
    assert (await local_manager.probe("there")).status == "healthy"
    assert (await local_manager.infer("chat", None, "a b", backend_id="there")).result == "ab"
    await local_manager.aclose()
    await runner.cleanup()


async def test_nothing_is_left_when_it_stops(make_server, local_manager):
    there = await make_server()
    backend = registered(local_manager, there.url)
    await local_manager.probe("there")
    local_manager.unregister_backend("there")
    await until(lambda: not len(there.server.application.settings["uia_open_doors"]))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-socket")]
    with pytest.raises(BackendFailed):
        await anext(backend.infer(InferenceRequest("chat", "echo", "x")))


@asynccontextmanager
async def one_that_says(status, answer=None):
    """The address of a server that reports this status, and answers every request so."""

    async def talk(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "connection"})
        async for message in socket:
            asked = message.json()
            if asked["type"] == "status":
                await socket.send_json({"type": "status", "backend_status": status})
            elif asked["type"] == "inference":
                await socket.send_json({"request_id": asked["request_id"], **answer})
        return socket

    application = web.Application()
    application.router.add_get("/ws/{id}", talk)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"ws://127.0.0.1:{runner.addresses[0][1]}/ws"
    await runner.cleanup()


SERVES = {"routable": True, "models": ["m"], "tasks": ["text-generation"]}


@pytest.mark.parametrize(
    ("status", "health", "models", "load"),
    [
        ([1], "unhealthy", set(), None),
        ({"backends": "x"}, "unhealthy", set(), None),
        ({"backends": ["x", 7, {"routable": True, "models": 1, "tasks": [[]]}]}, "healthy", set(), None),
        ({"backends": [SERVES], "in_flight": "many"}, "healthy", {"m"}, None),
        ({"backends": [SERVES], "in_flight": -(10**9)}, "healthy", {"m"}, None),
        ({"backends": [SERVES], "in_flight": 3}, "healthy", {"m"}, 3),
        ({"backends": [{**SERVES, "models": ["m", "x" * 4000, "a\x1b[2J", 7]}]}, "healthy", {"m"}, None),
        ({"backends": [SERVES], "instance_id": "x" * 100_000}, "healthy", {"m"}, None),
    ],
)
async def test_what_a_server_says_of_itself_is_bounded(local_manager, caplog, status, health, models, load):
    async with one_that_says(status) as url:
        backend = registered(local_manager, url)
        info = await local_manager.probe("there")
        assert (info.status, info.models) == (health, models)
        assert len(info.reason) < 200
        assert (await backend.probe()).load == load
        assert "Traceback" not in caplog.text
        await local_manager.aclose()


async def test_an_error_shows_no_key_and_moves_no_cursor(local_manager):
    said = {"type": "inference_error", "code": "bad_request", "error": f"what is {KEY}?\r\n\x1b[2J"}
    async with one_that_says({"backends": [SERVES], "instance_id": f"I am {KEY}"}, said) as url:
        registered(local_manager, url)
        assert (await local_manager.probe("there")).reason == "connected to I am <key>"
        with pytest.raises(BadRequest) as caught:
            await local_manager.infer("chat", "m", "x")
        assert "what is <key>?" in caught.value.message
        assert caught.value.message.isprintable()
        await local_manager.aclose()
