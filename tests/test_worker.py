"""The worker client against a real server: what a function can be, and what happens when things break."""

import asyncio
import contextlib

import numpy as np
import pytest
from aiohttp import web

from tests.upstreams.uia_server import KEY
from uia_lab import worker as worker_module
from uia_lab.domain.errors import BackendFailed, BadRequest, ContextTooLong, NotAllowed, Unauthenticated
from uia_lab.domain.events import Chunk
from uia_lab.worker import Worker


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def working(server, function, model="m", **options):
    worker = Worker(server.url, KEY, function, model=model, **options)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(20):
            await worker.ready()
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def whole(inputs):
    return inputs.upper()


def pieces(inputs):
    for word in inputs.split():
        yield word.upper() + " "


async def whole_async(inputs, parameters):
    await asyncio.sleep(0)
    return inputs.upper() * parameters.get("times", 1)


async def pieces_async(request):
    for word in request.inputs.split():
        yield word.upper() + " "


@pytest.mark.parametrize(
    ("function", "streams", "answer"),
    [
        (whole, False, "A B"),
        (pieces, True, "A B "),
        (whole_async, False, "A BA B"),
        (pieces_async, True, "A B "),
    ],
)
async def test_any_kind_of_function_serves(make_server, function, streams, answer):
    server = await make_server()
    async with working(server, function, name="Mine") as worker:
        info = server.manager.get_backend(worker.registration.id)
        assert (info.type, info.status, info.name) == ("websocket", "healthy", "Mine")
        assert (info.models, info.max_concurrency) == ({"m"}, 4)
        assert info.capabilities.supports_streaming is streams
        assert worker.connected
        result = await server.manager.infer("chat", "m", "a b", {"times": 2})
        assert result.result == answer
        stream = server.manager.stream("chat", "m", "a b", {"times": 2})
        chunks = [event.delta.text async for event in stream if isinstance(event, Chunk)]
        assert "".join(chunks) == answer
        assert len(chunks) == (2 if streams else 1)
    await until(lambda: not server.manager.list_backends("websocket"))


async def test_embeddings_and_chat_messages(make_server):
    server = await make_server()

    def lengths(inputs):
        return np.array([[len(text), 1] for text in inputs], np.float32)

    def last(inputs, model):
        return f"{model} heard {inputs[-1]['content']}"

    async with working(server, lengths, "lengths", task="embedding"), working(server, last, "last"):
        result = await server.manager.infer("embedding", "lengths", ["a", "bcd"])
        assert result.result == [[1.0, 1.0], [3.0, 1.0]]
        result = await server.manager.infer("chat", "last", messages=[{"role": "user", "content": "me"}])
        assert result.result == "last heard me"


async def test_what_a_function_raises_is_its_owner_s_to_see(make_server):
    server = await make_server()
    seen = []

    def broken(inputs):
        match inputs:
            case "exit":
                raise SystemExit("leave")
            case "long":
                raise ContextTooLong("too long by far")
        raise ZeroDivisionError("secret detail")

    async with working(server, broken, on_error=lambda request, error: seen.append((request.inputs, error))):
        for inputs in ("x", "exit"):
            with pytest.raises(BackendFailed, match="its owner has the traceback") as caught:
                await server.manager.infer("chat", "m", inputs, max_attempts=1)
            assert "secret" not in str(caught.value)
        with pytest.raises(ContextTooLong, match="too long by far"):
            await server.manager.infer("chat", "m", "long")
    assert [(inputs, type(error)) for inputs, error in seen] == [
        ("x", ZeroDivisionError),
        ("exit", SystemExit),
    ]


async def test_an_abort_ends_the_call(make_server):
    server = await make_server()
    ended = asyncio.Event()

    async def endless():
        try:
            while True:
                yield "x"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async with working(server, endless) as worker:
        async with server.manager.stream("chat", "m", "x") as stream:
            async for event in stream:
                if isinstance(event, Chunk):
                    break
        async with asyncio.timeout(20):
            await ended.wait()
        await until(lambda: not worker._calls)


async def test_it_comes_back_when_its_server_does(make_server):
    server = await make_server()
    async with working(server, whole) as worker:
        await server.stop()
        await until(lambda: not worker.connected)
        again = await make_server(server.port)
        await until(lambda: worker.connected, 60)
        assert (await again.manager.infer("chat", "m", "a")).result == "A"


async def test_what_is_refused_is_said(make_server):
    server = await make_server(scopes=("infer",))
    for worker, error in (
        (Worker(server.url, "uia-not-a-key-of-theirs", whole, model="m"), Unauthenticated),
        (Worker(server.url, KEY, whole, model="m"), NotAllowed),
    ):
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(20):
            with pytest.raises(error):
                await worker.ready()
            with pytest.raises(error):
                await running
        assert not worker.connected
    taken = await make_server()
    nowhere = Worker(taken.url + "elsewhere/", KEY, whole, model="m")
    with pytest.raises(BackendFailed, match="no WebSocket door"):
        await nowhere.run()
    worker = Worker(taken.url, KEY, whole, model="m", backend_id="echo")
    with pytest.raises(BadRequest, match="is that of a gpu backend"):
        await worker.run()
    for options in ({"max_concurrency": 0}, {"task": "dancing"}, {"model": ""}):
        with pytest.raises(BadRequest):
            Worker(server.url, KEY, whole, **{"model": "m", **options})
    with pytest.raises(BadRequest, match="needs 'weather'"):
        Worker(server.url, KEY, lambda weather: weather, model="m")
    assert KEY not in repr(worker)


async def test_a_result_without_a_form_is_an_error_of_its_request(make_server):
    server = await make_server()

    def circle(inputs):
        around = []
        around.append(around)
        return around if inputs == "round" else inputs

    async with working(server, circle), asyncio.timeout(20):
        with pytest.raises(BackendFailed, match="could not give its answer"):
            await server.manager.infer("chat", "m", "round", max_attempts=1)
        assert (await server.manager.infer("chat", "m", "straight")).result == "straight"


async def test_a_refusal_for_now_is_no_refusal_for_good():
    statuses, asked = [429, 408, 404], []

    async def refuse(request):
        asked.append(request.path)
        return web.Response(status=statuses[len(asked) - 1])

    application = web.Application()
    application.router.add_get("/ws/{id}", refuse)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    worker = Worker(f"http://127.0.0.1:{runner.addresses[0][1]}/", KEY, whole, model="m")
    async with asyncio.timeout(40):
        with pytest.raises(BackendFailed, match="status 404"):
            await worker.run()
    assert len(asked) == 3
    await runner.cleanup()


async def test_one_that_is_replaced_ends(make_server):
    server = await make_server()
    old = Worker(server.url, KEY, lambda: "old", model="m", backend_id="w")
    running = asyncio.create_task(old.run())
    await old.ready()
    async with working(server, lambda: "new", backend_id="w"):
        async with asyncio.timeout(20):
            await running
        assert (await server.manager.infer("chat", "m", "x")).result == "new"
        assert len(server.manager.list_backends("websocket")) == 1


async def test_one_that_is_taken_out_ends(make_server):
    server = await make_server()
    worker = Worker(server.url, KEY, whole, model="m", backend_id="w")
    running = asyncio.create_task(worker.run())
    await worker.ready()
    server.manager.unregister_backend("w")
    async with asyncio.timeout(20):
        await running


async def test_an_answer_above_the_limit_is_an_error_of_its_request(make_server, monkeypatch):
    monkeypatch.setattr(worker_module, "MOST_BYTES", 1000)
    server = await make_server()
    async with working(server, lambda inputs: "x" * int(inputs)):
        with pytest.raises(BadRequest, match="in one piece"):
            await server.manager.infer("chat", "m", "2000")
        assert len((await server.manager.infer("chat", "m", "200")).result) == 200
