"""Models, hardware and any task over HTTP, with the identities they take."""

import json

import pytest

from uia_lab.dialects import sse


async def test_any_task(house):
    body = {
        "task": "embeddings",
        "model": "org/vectors",
        "inputs": ["a", "bcd"],
        "routing": {"backend": "vectors"},
    }
    async with house.call("POST", "infer", "infer", json=body) as response:
        answer = await response.json()
    assert response.status == 200
    assert answer["result"] == [[1.0, 1.0, 0.5], [3.0, 1.0, 0.5]]
    assert (answer["task"], answer["backend"]) == ("text-embedding", "vectors")
    assert answer["request_id"] == response.headers["x-request-id"]


async def test_any_task_streams(house):
    body = {"task": "chat", "model": "echo", "inputs": "a b c", "stream": True}
    async with house.call("POST", "infer", "infer", json=body) as response:
        events = [(name, data) async for name, data in sse.events(response.content)]
    assert events[-1][1] == "[DONE]"
    pieces = [json.loads(data)["text"] for name, data in events if name == "chunk"]
    assert pieces == ["a ", "b ", "c "]
    end = json.loads(events[-2][1])
    assert (events[-2][0], end["backend"]) == ("complete", "echo")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "task"),
        ({"task": "juggling", "inputs": "a"}, "task"),
        ({"task": "chat"}, "inputs"),
        ({"task": "chat", "inputs": "a", "messages": [{}]}, "inputs"),
        ({"task": "chat", "inputs": "a", "parameters": []}, "parameters"),
        ({"task": "chat", "inputs": "a", "color": "red"}, "color"),
        ({"task": "chat", "inputs": "a", "routing": {"x": 1}}, "uia.x"),
    ],
)
async def test_a_malformed_call_names_its_field(house, body, param):
    async with house.call("POST", "infer", "infer", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_hardware_and_models(house):
    async with house.call("GET", "hardware", "read") as response:
        assert (await response.json())["cores"] >= 1
    house.service.models.offer()
    async with house.call("GET", "models", "read") as response:
        listed = (await response.json())["models"]
    assert {item["state"] for item in listed if item["origin"] == "catalogue"} == {"unloaded"}


async def test_a_load_tells_its_steps_and_an_unload_ends_it(house, models):
    house.service.models.offer()
    headers = {"Accept": "text/event-stream"}
    async with house.call("POST", "models/load", json={"model_id": "smollm2"}, headers=headers) as response:
        events = [(name, json.loads(data)) async for name, data in sse.events(response.content)]
    assert [name for name, _ in events][-1] == "loaded"
    assert {"finding", "loading"} <= {data["stage"] for name, data in events if name == "progress"}
    assert events[-1][1]["state"] == "loaded"
    async with house.call("POST", "models/unload", json={"model_id": "smollm2"}) as response:
        assert (await response.json())["unloaded"] == ["local-smollm2-135m-instruct"]
    async with house.call("POST", "models/load", json={"model_id": "nope"}, headers=headers) as response:
        events = [(name, json.loads(data)) async for name, data in sse.events(response.content)]
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model_id"),
        ({"model_id": "smollm2", "options": {"trust_remote_code": True}}, "options.trust_remote_code"),
        ({"model_id": "smollm2", "options": {"concurrency": 0}}, "options.concurrency"),
        ({"model_id": "smollm2", "options": {"engine": "pickle"}}, "options.engine"),
    ],
)
async def test_a_malformed_load_names_its_field(house, body, param):
    async with house.call("POST", "models/load", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


@pytest.mark.parametrize(
    ("parameters", "param"),
    [({"temperature": 99}, "parameters.temperature"), ({"max_tokens": 0}, "parameters.max_tokens")],
)
async def test_parameters_of_a_text_are_checked_as_those_of_a_chat(house, parameters, param):
    body = {"task": "chat", "model": "echo", "inputs": "a", "parameters": parameters}
    async with house.call("POST", "infer", "infer", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_what_is_to_be_excluded_is(house):
    body = {"task": "chat", "model": "echo", "inputs": "a", "routing": {"exclude": ["echo"]}}
    async with house.call("POST", "infer", "infer", json=body) as response:
        assert response.status == 503
        assert "excluded by the request" in (await response.json())["error"]["message"]
