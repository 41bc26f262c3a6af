"""OpenAI's official client against the door of Responses, as its users and the codex CLI would use it."""

import json

import openai
import pytest

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Finished, Reasoning, Text, ToolCall, Usage

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Changes files",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/s"},
}
SEARCH = {"type": "web_search", "external_web_access": False}
MCP = {
    "type": "namespace",
    "name": "mcp__notes__",
    "description": "Notes",
    "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}],
}
TOLD = [
    Chunk(0, Reasoning("Let me ")),
    Chunk(1, Reasoning("look.", "openai-responses:rs_1|sealed")),
    Chunk(2, Text("I look ")),
    Chunk(3, Text("it up.")),
    Chunk(4, ToolCall(0, "call_1", "weather")),
    Chunk(5, ToolCall(0, arguments='{"city": "Ri')),
    Chunk(6, ToolCall(0, arguments='ga"}')),
    Chunk(7, ToolCall(1, "call_2", "apply_patch", '{"input": "*** Begin')),
    Chunk(8, ToolCall(1, arguments=' Patch"}')),
    Chunk(9, ToolCall(2, "call_3", "mcp__notes__add", "{}")),
    Finished("I look it up.", Usage(30, 12, cached_tokens=20, reasoning_tokens=4), "tool_calls"),
]
MIXED = [
    Chunk(0, ToolCall(0, "call_1", "weather", '{"city":')),
    Chunk(1, ToolCall(1, "call_2", "weather", '{"city":')),
    Chunk(2, ToolCall(0, arguments='"Riga"}')),
    Chunk(3, ToolCall(1, arguments='"Oslo"}')),
    Finished("", Usage(30, 12), "tool_calls"),
]


@pytest.fixture
async def client(house):
    url = house.server.url + "v1"
    async with openai.AsyncOpenAI(api_key="uia-test-key-of-admin", base_url=url, max_retries=0) as client:
        yield client


async def test_a_response(client):
    raw = await client.responses.with_raw_response.create(model="echo", input="one two", instructions="Brief")
    response = raw.parse()
    assert response.output_text == "one two "
    assert (response.status, response.model, response.store) == ("completed", "echo", False)
    assert response.instructions == "Brief"
    assert response.usage.output_tokens == 2
    assert response.usage.total_tokens == response.usage.input_tokens + 2
    assert response.id.removeprefix("resp_") == raw.headers["x-request-id"].removeprefix("req-")
    assert raw.headers["x-uia-backend"] == "echo"


async def test_a_stream_of_text(client):
    stream = await client.responses.create(model="echo", input="one two", stream=True)
    events = [event async for event in stream]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == "one two "
    assert events[-1].response.output_text == "one two "
    assert events[-1].response.usage.output_tokens == 2
    assert events[0].response.output == []


def check(response):
    thought, message, weather, patch, note = response.output
    assert thought.summary[0].text == "Let me look."
    assert thought.encrypted_content == "rs_1|sealed"
    assert message.content[0].text == "I look it up."
    assert (weather.type, weather.call_id, weather.name) == ("function_call", "call_1", "weather")
    assert json.loads(weather.arguments) == {"city": "Riga"}
    assert (patch.type, patch.call_id, patch.name) == ("custom_tool_call", "call_2", "apply_patch")
    assert patch.input == "*** Begin Patch"
    assert (note.name, note.namespace, note.call_id) == ("add", "mcp__notes__", "call_3")
    assert response.usage.input_tokens_details.cached_tokens == 20
    assert response.usage.output_tokens_details.reasoning_tokens == 4
    assert [tool.type for tool in response.tools] == ["function", "custom", "namespace"]
    assert len({item.id for item in response.output}) == 5


async def test_what_codex_sends_whole_and_streamed(client, scripted):
    scripted.script = TOLD
    fields = {
        "model": "scripted",
        "instructions": "You are a coding agent. " * 800,
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Do it"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": None},
            {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c1"},
            {"type": "custom_tool_call", "name": "apply_patch", "input": "***", "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "12 degrees"},
            {
                "type": "custom_tool_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "Done"}],
            },
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        ],
        "tools": [WEATHER, PATCH, SEARCH, MCP],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199",
        "text": {"verbosity": "low"},
        "extra_body": {"client_metadata": {"a": "b"}},
    }
    check(await client.responses.create(**fields))
    async with client.responses.stream(**fields) as stream:
        check(await stream.get_final_response())
    for asked in scripted.asked:
        system, task, said, first, second = asked.messages
        assert (system["role"], task["content"]) == ("system", "Do it")
        assert system["content"].endswith("agent. \n\nRules")
        assert said["reasoning_content"] == "hm"
        names = [call["function"]["name"] for call in said["tool_calls"]]
        assert names == ["weather", "apply_patch"]
        assert json.loads(said["tool_calls"][1]["function"]["arguments"]) == {"input": "***"}
        assert first == {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"}
        assert second == {"role": "tool", "tool_call_id": "c2", "content": "Done"}
        tools = [tool["function"]["name"] for tool in asked.parameters["tools"]]
        assert tools == ["weather", "apply_patch", "mcp__notes__add"]
        assert "lark" not in str(asked.parameters["tools"][0])
        assert "start: /.+/s" in asked.parameters["tools"][1]["function"]["description"]
        assert (asked.parameters["reasoning_effort"], asked.parameters["verbosity"]) == ("medium", "low")
        assert asked.parameters["parallel_tool_calls"] is False


async def test_calls_whose_pieces_come_mixed(client, scripted):
    scripted.script = MIXED
    fields = {"model": "scripted", "input": "Where?", "tools": [WEATHER]}
    whole = await client.responses.create(**fields)
    async with client.responses.stream(**fields) as stream:
        streamed = await stream.get_final_response()
    for response in (whole, streamed):
        calls = [(item.call_id, item.arguments) for item in response.output]
        assert calls == [("call_1", '{"city":"Riga"}'), ("call_2", '{"city":"Oslo"}')]


async def test_structured_output_an_image_and_limits(client, scripted):
    scripted.script = [Chunk(0, Text('{"a"')), Finished('{"a"', Usage(1, 2), "length")]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response = await client.responses.create(
        model="scripted",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"},
                ],
            }
        ],
        text={"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}},
        max_output_tokens=2,
        metadata={"run": "7"},
    )
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.metadata == {"run": "7"}
    (asked,) = scripted.asked
    assert asked.parameters["response_format"]["json_schema"]["schema"] == schema
    assert asked.parameters["max_completion_tokens"] == 2
    assert asked.messages[0]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"input": []}, openai.BadRequestError, "bad_request", "input"),
        ({"store": True}, openai.BadRequestError, "unsupported_parameter", "store"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "unsupported_parameter", None),
        ({"tools": [SEARCH]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        ({"tools": [WEATHER]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        ({"text": {"format": {"type": "json_object"}}}, openai.BadRequestError, None, "text.format"),
        ({"max_output_tokens": 0}, openai.BadRequestError, "bad_request", "max_output_tokens"),
        ({"model": "crashes"}, openai.InternalServerError, "backend_failed", None),
    ],
)
async def test_errors_are_the_typed_ones(client, fields, kind, code, param):
    with pytest.raises(kind) as caught:
        await client.responses.create(**({"model": "echo", "input": "x"} | fields))
    assert code in (None, caught.value.code)
    assert param in (None, caught.value.param)


async def test_a_broken_stream_says_so_and_is_failed(client, scripted):
    scripted.script = [Chunk(0, Text("begun ")), BackendFailed("the wheel came off")]
    stream = await client.responses.create(model="scripted", input="x", stream=True)
    events = [event async for event in stream]
    error, failed = events[-2:]
    assert (error.type, error.code) == ("error", "stream_interrupted")
    assert "wheel" in error.message
    assert (failed.type, failed.response.status) == ("response.failed", "failed")
    assert failed.response.error.code == "stream_interrupted"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_an_error_after_waiting_is_a_failed_response(house):
    body = {"model": "gated", "input": "x", "stream": True, "uia": {"timeout": 0.3}}
    async with house.call("POST", "v1/responses", json=body) as response:
        text = await response.text()
    assert response.status == 200
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert names == ["response.created", "response.in_progress", "error", "response.failed"]
    assert "deadline_exceeded" in text
    assert "[DONE]" not in text


async def test_closing_a_stream_frees_its_backend(house, client):
    stream = await client.responses.create(model="endless", input="x", stream=True)
    async for _ in stream:
        break
    await stream.close()
    await house.until_idle(10.0)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 1
