"""The HTTP adapter: what it sends, what it makes of what comes, and what it never gives away."""

import asyncio
import contextlib
import gc
import logging

import pytest

from tests.backends.conftest import KEY, chat, events
from tests.upstreams.scripted_api import ScriptedApi, sse, words
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.backends import Backend, BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    InferenceError,
    ModelNotFound,
    NotAllowed,
    RateLimited,
    Unauthenticated,
)
from uia_lab.domain.events import Chunk, Finished, Started, Usage

CHAT = ("POST", "/v1/chat/completions")
MODELS = ("GET", "/v1/models")


async def test_an_answer_and_what_was_sent(api, build):
    api.answers[CHAT] = (200, words("a ", "b"))
    backend = await build(api, api_key_env="MY_KEY")
    assert isinstance(backend, Backend)
    started, *chunks, end = await events(backend, chat(via=("uia-first",), parameters={"temperature": 0}))
    assert isinstance(started, Started)
    assert [chunk.delta.text for chunk in chunks] == ["a ", "b"]
    assert end == Finished("a b", Usage(3, 2), "stop")
    (asked,) = api.asked
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["x-uia-via"] == "uia-first,uia-me"
    assert asked.headers["Accept-Encoding"] == "identity"
    assert (asked.json["model"], asked.json["temperature"]) == ("m", 0)


async def test_one_connection_serves_request_after_request(api, build):
    api.answers[CHAT] = (200, words("a"))
    ports = set()

    async def answer(request, response):
        ports.add(request.transport.get_extra_info("peername")[1])
        for piece in words("a", "b"):
            await response.write(piece)

    api.answers[CHAT] = (200, answer)
    backend = await build(api)
    for _ in range(5):
        assert (await events(backend, chat()))[-1].result == "ab"
    assert len(ports) == 1


async def test_a_connection_that_was_closed_while_idle_fails_nobody(api, build):
    """The server closes as the next call goes out: never taken up, it goes out once more."""
    calls = []

    async def answer(request, response):
        calls.append(request.transport)
        for piece in words("a"):
            await response.write(piece)

    api.answers[CHAT] = (200, answer)
    backend = await build(api)
    for _ in range(3):
        assert (await events(backend, chat()))[-1].result == "a"
        # Closed, and nobody here has had a turn of the loop to notice.
        calls[-1].close()
    assert len(calls) == 3
    # A fresh connection that breaks is a failure, and is not tried again.
    api.drops = True
    calls.clear()
    fresh = await build(api, endpoint=f"http://localhost:{api.port}/v1")
    with pytest.raises(BackendFailed, match="connection broke"):
        await events(fresh, chat())
    assert sum(asked.path == CHAT[1] for asked in api.asked) == 4


@pytest.mark.parametrize(("computed_s", "sent"), [(0.3, 1), (0, 2)])
async def test_a_call_that_was_taken_up_is_not_sent_again(api, build, computed_s, sent):
    """Over kept connections, of which each would look as if it had been closed while it lay idle."""
    together = asyncio.Barrier(3)

    async def answer(request, response):
        await together.wait()
        for piece in words("a"):
            await response.write(piece)

    async def dies(request):
        await asyncio.sleep(computed_s)
        request.transport.abort()

    api.answers[CHAT] = (200, answer)
    backend = await build(api)
    await asyncio.gather(*(events(backend, chat()) for _ in range(3)))
    api.before = dies
    api.asked.clear()
    with pytest.raises(BackendFailed, match="connection broke"):
        await events(backend, chat())
    assert len(api.asked) == sent


async def test_azure_headers_query_and_fields(api, build, factory):
    api.answers["POST", "/openai/v1/chat/completions"] = (200, words("a"))
    options = {
        "provider": "azure",
        "headers": {"x-tenant": "t"},
        "query": {"api-version": "preview"},
        "body": {"store": False},
    }
    backend = await build(api, None, "/openai/v1", api_key_env="MY_KEY", options=options)
    await events(backend, chat(parameters={"max_tokens": 5}))
    (asked,) = api.asked
    assert asked.headers["api-key"] == KEY
    assert "Authorization" not in asked.headers
    assert asked.headers["x-tenant"] == "t"
    assert asked.query == {"api-version": "preview"}
    assert (asked.json["store"], asked.json["max_completion_tokens"]) == (False, 5)
    assert "max_tokens" not in asked.json


async def test_leaving_closes_the_connection(api, build):
    async def answer(request, response):
        await response.write(words("a")[0])
        await api.hold()

    api.answers[CHAT] = (200, answer)
    backend = await build(api)
    async with contextlib.aclosing(backend.infer(chat())) as stream:
        async for event in stream:
            if isinstance(event, Chunk):
                break
    async with asyncio.timeout(10):
        await api.left.wait()


async def test_cancelling_before_the_headers_closes_the_connection(api, build):
    came = asyncio.Event()

    async def silent(request, response):
        came.set()
        await api.hold()

    api.answers[CHAT] = (200, silent)
    backend = await build(api)
    task = asyncio.create_task(events(backend, chat()))
    await asyncio.wait_for(came.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(api.left.wait(), 10)


async def test_stopping_ends_running_answers_with_an_error(api, build):
    async def answer(request, response):
        await response.write(words("a")[0])
        await api.hold()

    api.answers[CHAT] = (200, answer)
    backend = await build(api)
    stream = backend.infer(chat())
    while not isinstance(await anext(stream), Chunk):
        pass
    rest = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await backend.stop()
    with pytest.raises(BackendFailed, match="connection broke"):
        await rest


async def test_stopping_ends_the_wait_for_an_answer_too(api, build):
    came = asyncio.Event()

    async def silent(request, response):
        await api.hold()

    async def slow_headers(request):
        came.set()
        await api.hold()

    api.answers[CHAT] = (200, silent)
    api.before = slow_headers
    backend = await build(api)
    task = asyncio.create_task(events(backend, chat()))
    await asyncio.wait_for(came.wait(), 10)
    await backend.stop()
    with pytest.raises(BackendFailed, match="was stopped"):
        await asyncio.wait_for(task, 10)
    await asyncio.wait_for(api.left.wait(), 10)


@pytest.mark.parametrize("where", ["http://[", "http://u:secret@h:99999/", "//"])
async def test_a_redirect_to_nowhere(api, build, where):
    api.answers[CHAT] = (302, b"", {"Location": where})
    backend = await build(api)
    with pytest.raises(BackendFailed, match="not followed") as caught:
        await events(backend, chat())
    assert "secret" not in caught.value.message


def test_a_factory_survives_the_loop_it_began_on():
    factory = BackendFactory(Secrets(environ={}), EndpointPolicy(), "uia-me")

    async def ask():
        async with ScriptedApi() as api:
            api.answers[CHAT] = (200, words("a"))
            backend = factory.build(BackendDescription(id="x", type="api", endpoint=f"{api.url}/v1"))
            return (await events(backend, chat()))[-1].result

    async def close():
        await factory.close()

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["a", "a"]
    asyncio.run(close())


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_an_error_and_the_other_host_sees_nothing(api, other, build, status):
    target = f"{other.url}/v1/chat/completions?token=abc"
    api.answers[CHAT] = api.answers[MODELS] = (status, b"", {"Location": target})
    other.answers[CHAT] = (200, words("a"))
    backend = await build(api, api_key_env="MY_KEY")
    with pytest.raises(BackendFailed, match="not followed") as caught:
        await events(backend, chat())
    assert f"{other.url}/v1/chat/completions" in caught.value.message
    assert "abc" not in caught.value.message
    found = await backend.probe()
    assert found.status is BackendStatus.UNHEALTHY
    assert "not followed" in found.reason
    assert other.asked == []


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, {}, Unauthenticated),
        (402, {"error": {"message": "pay"}}, {}, NotAllowed),
        (403, {"error": {"message": "no"}}, {}, NotAllowed),
        (404, {"error": {"message": "the model m does not exist"}}, {}, ModelNotFound),
        (429, {"error": {"message": "slow down"}}, {"retry-after-ms": "1500"}, RateLimited),
        (400, {"error": {"message": f"{KEY} {KEY}", "param": "n"}}, {}, BadRequest),
        (500, b"x" * 1_000_000, {}, BackendFailed),
    ],
)
async def test_refusals_are_typed_and_never_repeat_the_key(api, build, status, body, headers, kind):
    api.answers[CHAT] = (status, body, headers)
    backend = await build(api, api_key_env="MY_KEY")
    with pytest.raises(InferenceError) as caught:
        await events(backend, chat())
    error = caught.value
    assert type(error) is kind
    assert KEY not in f"{error!r} {error} {error.message} {error.args}"
    assert error.retry_after == (1.5 if kind is RateLimited else None)
    assert len(error.message) < 1000


async def test_the_key_is_in_no_repr_and_no_log(api, build, caplog):
    caplog.set_level(logging.DEBUG)
    api.answers[CHAT] = (200, [f"data: {KEY}\n\n".encode()])
    backend = await build(api, api_key_env="MY_KEY")
    with pytest.raises(BackendFailed, match="malformed") as caught:
        await events(backend, chat())
    assert KEY not in caught.value.message
    await backend.probe()
    held = [item for item in (vars(backend)) if KEY in repr(vars(backend)[item])]
    assert held == []
    assert KEY not in repr(backend) + caplog.text


async def test_a_key_that_was_changed_is_found_again(api, build, factory):
    api.answers[CHAT] = (401, {"error": {"message": "wrong key"}})
    backend = await build(api, api_key_env="MY_KEY")
    with pytest.raises(Unauthenticated):
        await events(backend, chat())
    factory.secrets._environ["MY_KEY"] = "sk-new"
    api.answers[CHAT] = (200, words("a"))
    await events(backend, chat())
    assert api.asked[-1].headers["Authorization"] == "Bearer sk-new"


async def test_without_its_key_nothing_is_sent(api, build):
    backend = await build(api, api_key_env="NOT_SET")
    with pytest.raises(Unauthenticated, match="NOT_SET is not set"):
        await events(backend, chat())
    found = await backend.probe()
    assert found.status is BackendStatus.UNHEALTHY
    assert "NOT_SET" in found.reason
    assert api.asked == []


async def test_a_stream_that_breaks(api, build):
    async def cut(request, response):
        await response.write(words("a")[0])
        request.transport.close()

    async def huge(request, response):
        for _ in range(10):
            await response.write(b"x" * (1 << 20))

    backend = await build(api)
    for content, message in (
        (cut, "connection broke"),
        (huge, "8 MiB"),
        (words("a")[:1], "without its end"),
        (sse({"error": {"message": "oom", "code": 500}}), "oom"),
        ([b"data: {\n\n"], "malformed"),
    ):
        api.answers[CHAT] = (200, content)
        with pytest.raises(BackendFailed, match=message):
            await events(backend, chat())


async def test_a_server_that_holds_the_connection_after_the_end_delays_nobody(api, build):
    async def holds(request, response):
        for piece in words("a"):
            await response.write(piece)
        await api.hold()

    api.answers[CHAT] = (200, holds)
    backend = await build(api)
    async with asyncio.timeout(10):
        assert (await events(backend, chat()))[-1].result == "a"
        await api.left.wait()


async def test_a_probe_lists_models_and_tells_how_it_is(api, build):
    backend = await build(api)
    found = await backend.probe()
    assert (found.status, found.models) == (BackendStatus.UNHEALTHY, None)
    for answer, status, words_ in (
        ((503, {"error": {"message": "Loading model", "code": 503}}), "initializing", "Loading model"),
        ((401, {"error": {"message": "no"}}), "unhealthy", "wants a key"),
        ((500, b"oops"), "unhealthy", "500"),
        ((200, {"data": []}), "unhealthy", "no models"),
        ((200, b"[" * 1000), "unhealthy", "no models"),
    ):
        api.answers[MODELS] = answer
        found = await backend.probe()
        assert (found.status.value, found.models) == (status, None)
        assert words_ in found.reason
    api.lists("a", "b")
    found = await backend.probe()
    assert (found.status, found.models) == (BackendStatus.HEALTHY, {"a", "b"})
    assert {asked.method for asked in api.asked} == {"GET"}
    api.answers[CHAT] = (200, words("x"))
    await events(backend, chat(model=None))
    assert api.asked[-1].json["model"] == "a"


async def test_a_probe_of_nobody(api, build):
    backend = await build(api, endpoint="http://127.0.0.1:9/v1")
    found = await backend.probe()
    assert found.status is BackendStatus.OFFLINE
    with pytest.raises(BackendFailed, match="connection broke"):
        await events(backend, chat())


async def test_models_that_were_named_stay(api, build):
    api.lists("a")
    backend = await build(api, models=("a", "gpt-*", "z"))
    found = await backend.probe()
    assert (found.status.value, found.models) == ("healthy", {"a", "gpt-*", "z"})
    assert "does not list z" in found.reason
    del api.answers[MODELS]
    assert (await backend.probe()).status is BackendStatus.HEALTHY
    nameless = await build(api)
    with pytest.raises(BadRequest, match="no default model"):
        await events(nameless, chat(model=None))


async def test_nothing_is_left_open(api, build, factory):
    api.answers[CHAT] = (200, words("a"))
    backend = await build(api)
    await events(backend, chat())
    await backend.stop()
    await factory.close()
    del backend
    gc.collect()
    assert all(not task.get_name().startswith("uia") for task in asyncio.all_tasks())
    # It opens again at the next use, on whichever loop.
    again = await build(api)
    assert (await events(again, chat()))[-1].result == "a"
