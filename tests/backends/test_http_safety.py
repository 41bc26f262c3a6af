"""The HTTP adapter between a request and a server that both mean ill."""

import asyncio
import contextlib
import gzip
import json

import msgspec
import pytest

from tests.backends.conftest import KEY, chat, events
from tests.upstreams.scripted_api import sse, words
from uia_lab.domain.errors import BackendFailed, InferenceError, Unauthenticated, Unsupported
from uia_lab.domain.events import Chunk
from uia_lab.domain.requests import Wire

CHAT = ("POST", "/v1/chat/completions")
MODELS = ("GET", "/v1/models")


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama", "openai-responses"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"via": ("a\r\nX-Injected: 1",)},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": 5}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"messages": [5]},
        {"parameters": {"tools": 5, "response_format": 5}},
    ],
)
async def test_what_cannot_be_translated_is_no_fault_of_the_backend(api, build, dialect, wrong):
    """Anything but a typed error counts against the backend, until it is out for everybody."""
    api.answers[CHAT] = (400, {"error": {"message": "what is that"}})
    backend = await build(api, dialect)
    request = msgspec.structs.replace(chat(), **wrong)
    with pytest.raises(InferenceError) as caught:
        await events(backend, request)
    assert 400 <= caught.value.http_status < 500
    if "via" in wrong:
        assert api.asked == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "video_url", "video_url": {"url": "/home/someone/film"}},
        {"type": "image", "image": "https://example.com/a.png"},
        {"type": "image_url", "image_url": 5},
    ],
)
async def test_a_server_of_this_machine_is_sent_to_fetch_nothing(api, build, part):
    backend = await build(api)
    messages = [{"role": "user", "content": [{"type": "text", "text": "what"}, part]}]
    wire = Wire("openai-chat", json.dumps({"model": "m", "messages": messages}).encode())
    for request in (chat(), chat(wire=wire)):
        with pytest.raises(Unsupported, match="data: address") as caught:
            await events(backend, msgspec.structs.replace(request, messages=messages))
        assert caught.value.param == "messages"
    assert api.asked == []
    messages[0]["content"][1] = {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,aGk="}}
    api.answers[CHAT] = (200, words("a"))
    await events(backend, msgspec.structs.replace(chat(), messages=messages))
    assert api.asked[0].json["messages"] == messages


async def test_a_key_that_another_call_lost_is_in_no_error(api, build):
    """The 401 of one call makes the next look the key up anew; a call under way still knows what it sent."""
    late = asyncio.Event()

    async def echo(request, response):
        await response.write(words("a")[0])
        await asyncio.wait_for(late.wait(), 10)
        await response.write(sse({"error": {"message": f"it was {KEY}", "param": KEY}})[0])

    backend = await build(api, api_key_env="MY_KEY")
    api.answers[CHAT] = (200, echo)
    async with contextlib.aclosing(backend.infer(chat())) as stream:
        while not isinstance(await anext(stream), Chunk):
            pass
        api.answers[CHAT] = (401, {"error": {"message": "wrong key"}})
        with pytest.raises(Unauthenticated):
            await events(backend, chat())
        late.set()
        with pytest.raises(BackendFailed, match="it was <key>") as caught:
            await anext(stream)
    assert KEY not in repr(vars(caught.value))


@pytest.mark.parametrize("status", [503, 500, 200])
async def test_a_probe_never_repeats_the_key(api, build, status):
    api.answers[MODELS] = (status, {"data": [{"id": KEY}], "error": {"message": f"loading for {KEY}"}})
    backend = await build(api, api_key_env="MY_KEY")
    found = await backend.probe()
    assert KEY not in repr(found)
    assert found.models in (None, {"<key>"})


async def test_a_compressed_answer_is_refused_as_it_is(api, build):
    """A kilobyte of it may unfold to a gigabyte."""
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    bomb = gzip.compress(b" " * (1 << 20))
    backend = await build(api)
    for status, kind in ((200, BackendFailed), (401, Unauthenticated)):
        api.answers[CHAT] = (status, [bomb], packed)
        with pytest.raises(kind) as caught:
            await events(backend, chat())
        assert caught.value.message in (
            "compressed its answer, though none was asked to be",
            "answered 401: nothing that explains it",
        )
    api.answers[MODELS] = (200, [bomb], packed)
    assert "compressed" in (await backend.probe()).reason


async def test_what_a_server_says_moves_no_cursor(api, build):
    api.answers[MODELS] = (503, {"error": {"message": "soon\nINFO forged \x1b[2J"}})
    api.answers[CHAT] = (500, "boom\nINFO forged\x1b[31m")
    backend = await build(api)
    assert (await backend.probe()).reason == "is loading: soon INFO forged �[2J"
    with pytest.raises(BackendFailed, match="boom INFO forged") as caught:
        await events(backend, chat())
    assert caught.value.message.isprintable()
    api.lists("m\nWARNING forged", "m", "\x1b[2J")
    assert (await backend.probe()).models == {"m"}
