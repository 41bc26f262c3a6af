"""The HTTP adapter asks a server of our own, in every dialect that both directions speak."""

import contextlib

import pytest

from tests.doors.conftest import KEYS, Scripted
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.audio import Audio
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    ModelNotFound,
    NoBackendAvailable,
    RateLimited,
    Unauthenticated,
)
from uia_lab.domain.events import Chunk, Finished, Reasoning, Result, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest

DIALECTS = ("openai", "anthropic", "openai-responses")
LOOK = {"name": "look", "description": "Looks", "parameters": {"type": "object", "properties": {}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]},
    {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "user", "content": "So?"},
]  # fmt: skip
SCRIPT = [
    Chunk(0, Reasoning("Hm… ")),
    Chunk(1, Text("Grü")),
    Chunk(2, Text("ße")),
    Chunk(3, ToolCall(0, "call_1", "look")),
    Chunk(4, ToolCall(0, arguments='{"a":')),
    Chunk(5, ToolCall(0, arguments=" 1}")),
    Chunk(6, ToolCall(1, "call_2", "look", "{}")),
    Finished("Grüße", Usage(30, 12, cached_tokens=0), "tool_calls"),
]


@pytest.fixture
async def far(scripted):
    """Builds the adapter that asks the house."""
    secrets = Secrets(environ={"FAR_KEY": KEYS["infer"], "BAD_KEY": "uia-not-a-key-of-that-house"})
    factory = BackendFactory(secrets, EndpointPolicy(), "uia-elsewhere")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(factory.close)

        async def build(dialect, key="FAR_KEY", tasks=None):
            backend = factory.build(
                BackendDescription(
                    id="far",
                    type="api",
                    endpoint=scripted.server.url + "v1",
                    dialect=dialect,
                    api_key_env=key,
                    tasks=tasks,
                )
            )
            await backend.start()
            stack.push_async_callback(backend.stop)
            return backend

        yield build


def ask(model="scripted", **parameters):
    return InferenceRequest("text-generation", model, messages=CHAT, parameters=parameters, stream=True)


async def events(backend, request):
    async with contextlib.aclosing(backend.infer(request)) as stream:
        return [event async for event in stream]


def joined(chunks):
    """What was said, thought and called."""
    text = "".join(chunk.delta.text for chunk in chunks if isinstance(chunk.delta, Text))
    thought = "".join(chunk.delta.text for chunk in chunks if isinstance(chunk.delta, Reasoning))
    calls = {}
    for chunk in chunks:
        if isinstance(call := chunk.delta, ToolCall):
            known = calls.setdefault(call.index, [None, None, ""])
            known[:] = [call.id or known[0], call.name or known[1], known[2] + call.arguments]
    return text, thought, calls


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_question_and_its_answer(scripted, far, dialect):
    scripted.script = SCRIPT
    backend = await far(dialect)
    assert backend.capabilities.features >= {"tools", "vision"}
    _, *chunks, end = await events(
        backend,
        ask(
            tools=[{"type": "function", "function": LOOK}],
            tool_choice="required",
            temperature=0.5,
            max_tokens=9,
            response_format={"type": "json_schema", "json_schema": {"name": "output", "schema": {}}},
        ),
    )
    assert joined(chunks) == joined(SCRIPT[:-1])
    assert (end.result, end.finish_reason) == ("Grüße", "tool_calls")
    assert (end.usage.input_tokens, end.usage.output_tokens, end.usage.estimated) == (30, 12, False)
    (asked,) = scripted.asked
    system, seen, said, result, last = asked.messages
    assert (system["content"], last["content"]) == ("Be brief.", "So?")
    assert seen["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert (said["content"], said["tool_calls"]) == ("I look.", CHAT[2]["tool_calls"])
    assert (result["role"], result["tool_call_id"], result["content"]) == ("tool", "c1", "one")
    given = asked.parameters
    assert given["tools"][0]["function"]["name"] == "look"
    assert (given["tool_choice"], given["temperature"]) == ("required", 0.5)
    assert 9 in (given.get("max_tokens"), given.get("max_completion_tokens"))
    assert given["response_format"]["json_schema"]["schema"] == {}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_errors_stay_what_they_are(scripted, far, dialect):
    # Registered anew each time, or it would rest for as long as its last error asks.
    backend = await far(dialect)
    with pytest.raises(ModelNotFound):
        await events(backend, ask("nobody's"))
    for told in (
        RateLimited("slow down", retry_after=7),
        NoBackendAvailable("busy"),
        BackendFailed("broken"),
    ):
        scripted.manager.register_backend("scripted", "gpu", "Scripted", Scripted(scripted))
        scripted.script = [told]
        with pytest.raises(type(told), match=told.message):
            await events(backend, ask())
    scripted.manager.register_backend("scripted", "gpu", "Scripted", Scripted(scripted))
    scripted.script = [Chunk(0, Text("begun ")), BackendFailed("the wheel came off")]
    stream = backend.infer(ask())
    assert [type(await anext(stream)).__name__ for _ in range(2)] == ["Started", "Chunk"]
    with pytest.raises(BackendFailed, match="wheel"):
        await anext(stream)
    with pytest.raises(Unauthenticated):
        await events(await far(dialect, "BAD_KEY"), ask())


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_leaving_frees_the_slot_there(scripted, far, dialect):
    hello = [{"role": "user", "content": "hi"}]
    stream = (await far(dialect)).infer(InferenceRequest("text-generation", "endless", messages=hello))
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    await scripted.until_idle(10.0)
    assert scripted.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_images_and_transcripts(scripted, far):
    def paint(inputs):
        return [{"b64_json": "aGk=", "revised_prompt": inputs}]

    def hear(inputs, parameters):
        return f"{len(inputs.data)} bytes of {inputs.filename} in {parameters['language']}"

    for task, function in (("image-generation", paint), ("audio-transcription", hear)):
        name = function.__name__
        capabilities = BackendCapabilities({task}, {name})
        scripted.manager.register_backend(name, "gpu", name, function, capabilities)
    backend = await far("openai", tasks=("image-generation", "audio-transcription"))
    made = await events(backend, InferenceRequest("image-generation", "paint", inputs="a cat"))
    assert made[1].delta == Result([{"b64_json": "aGk=", "revised_prompt": "a cat"}])
    for wanted in ("json", "text"):
        request = InferenceRequest(
            "audio-transcription",
            "hear",
            inputs=Audio(b"\r\n--" * 1000, "ä\r\n b.wav", "audio/wav"),
            parameters={"language": "en", "response_format": wanted},
        )
        assert (await events(backend, request))[-1].result == "4000 bytes of ä b.wav in en"
