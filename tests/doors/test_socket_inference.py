"""Inference over a real socket: every message, good and bad, and many at once."""

import asyncio
import time

import pytest

from uia_lab.dialects.websocket_parameters import parameters_of
from uia_lab.domain.events import Chunk, Finished, Text
from uia_lab.doors import socket_inference, websocket
from uia_lab.doors.websocket import MESSAGES

ENDS = ("inference_complete", "inference_result", "inference_cancelled", "inference_error")


async def test_a_whole_answer(house):
    async with house.socket("infer") as ws:
        await ws.send(
            "inference", request_id="r", model="echo", inputs="a b c", parameters={"max_length": 50}
        )
        started = await ws.receive()
        assert (started["type"], started["request_id"]) == ("inference_started", "r")
        assert (started["model"], started["task"], started["backend"]) == ("echo", "text-generation", "echo")
        result = await ws.receive()
        assert (result["type"], result["request_id"], result["result"]) == ("inference_result", "r", "a b c ")
        assert (result["model"], result["task"], result["backend"]) == ("echo", "text-generation", "echo")
        assert result["usage"]["completion_tokens"] == 3
        async with house.call("GET", f"requests/{started['id']}") as response:
            record = await response.json()
    assert (record["principal"], record["outcome"]) == ("infer", "ok")


async def test_a_stream(house):
    async with house.socket("infer") as ws:
        await ws.send("inference", request_id="r", model="echo", inputs="a b c", stream=True)
        messages = [await ws.receive()]
        while messages[-1]["type"] not in ENDS:
            messages.append(await ws.receive())
    types = [message["type"] for message in messages]
    assert types == ["inference_started", *["inference_chunk"] * 3, "inference_complete"]
    assert [message["chunk"] for message in messages[1:-1]] == ["a ", "b ", "c "]
    assert [message["index"] for message in messages[1:-1]] == [0, 1, 2]
    assert {message["request_id"] for message in messages} == {"r"}
    end = messages[-1]
    assert (end["backend"], end["finish_reason"], end["usage"]["total_tokens"]) == ("echo", "stop", 6)
    assert [attempt["outcome"] for attempt in end["attempts"]] == ["ok"]


async def test_chat_messages_embeddings_and_a_label_of_the_server(house):
    async with house.socket("infer") as ws:
        await ws.send("inference", model="echo", inputs=[{"role": "user", "content": "said in chat"}])
        result = await ws.receive("inference_result")
        assert result["result"] == "said in chat "
        assert result["request_id"].startswith("req-")
        await ws.send("inference", request_id="e", task="embedding", inputs=["one", "three"])
        result = await ws.receive("inference_result")
        assert result["result"] == [[3.0, 1.0, 0.5], [5.0, 1.0, 0.5]]
        assert result["task"] == "text-embedding"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "inputs"),
        ({"inputs": "x", "task": "dancing"}, "task"),
        ({"inputs": "x", "task": 7}, "task"),
        ({"inputs": "x", "model": ["echo"]}, "model"),
        ({"inputs": "x", "parameters": "hot"}, "parameters"),
        ({"inputs": "x", "parameters": {"temperature": "hot"}}, "parameters.temperature"),
        ({"inputs": "x", "parameters": {"max_tokens": 10**30}}, "parameters.max_tokens"),
        ({"inputs": "x", "stream": "yes"}, "stream"),
        ({"inputs": "x", "routing": []}, "routing"),
        ({"inputs": "x", "routing": {"colour": "red"}}, "routing.colour"),
        ({"inputs": "x", "routing": {"via": ["x" * 200]}}, "routing.via"),
        ({"inputs": "x", "routing": {"via": ["a\r\nX-Injected: 1"]}}, "routing.via"),
        ({"inputs": "x", "parameters": {"best_of": 500}}, "parameters.best_of"),
        ({"inputs": "x", "parameters": {"tools": 5}}, "parameters.tools"),
        ({"inputs": ["x"] * 100, "parameters": {"n": 100}}, "parameters.n"),
        ({"inputs": 7}, "inputs"),
        ({"inputs": "x", "routing": {"preferred_types": ["steam"]}}, "routing.preferred_types"),
        ({"inputs": [{"role": "king", "content": "x"}]}, "inputs[0]"),
        ({"inputs": [{"role": "user", "content": 7}]}, "inputs[0]"),
        ({"inputs": [{"role": "user", "content": [7]}]}, "inputs[0].content"),
        ({"inputs": [{"role": "assistant", "tool_calls": 5}]}, "inputs[0].tool_calls"),
    ],
)
async def test_a_bad_request_is_named(house, fields, param):
    async with house.socket("infer") as ws:
        error = await ws.ask("inference", request_id="r", **fields)
        assert (error["type"], error["code"], error["param"]) == ("error", "bad_request", param)
        assert error["request_id"] == "r"
        assert (await ws.ask("ping"))["type"] == "pong"


async def test_a_backend_gets_the_parameters_that_the_http_doors_know(scripted):
    scripted.script[:] = [Chunk(0, Text("x")), Finished("x")]
    given = {
        "seed": 7, "max_new_tokens": 9, "parallel_tool_calls": False, "tool_choice": "auto",
        "tools": [{"type": "function", "function": {"name": "f"}}], "response_format": {"type": "text"},
        "models": ["forbidden/expensive"], "route": "fallback", "service_tier": "priority",
        "web_search_options": {}, "model": "another", "best_of": 1,
    }  # fmt: skip
    chat = [{"role": "user", "content": "hi"}]
    async with scripted.socket("infer") as ws:
        for parameters in (given, {"max_length": 5}, {"max_length": 5, "max_tokens": 6}):
            await ws.send("inference", model="scripted", inputs=chat, parameters=parameters)
            await ws.receive("inference_result")
    assert [dict(request.parameters) for request in scripted.asked] == [
        {name: given[name] for name in ("seed", "parallel_tool_calls", "tool_choice", "tools",
                                        "response_format")} | {"max_tokens": 9},
        {"max_tokens": 5},
        {"max_tokens": 6},
    ]  # fmt: skip
    for task, given, known in (
        ("text-embedding", {"dimensions": 3, "models": ["x"]}, {"dimensions": 3}),
        ("image-generation", {"n": 2, "model": "x", "size": "1x1"}, {"n": 2, "size": "1x1"}),
        ("text-classification", {"top_k": 2, "labels": ["a"]}, {"top_k": 2, "labels": ["a"]}),
    ):
        assert parameters_of(task, given, "x") == known


async def test_how_requests_fail(house):
    async with house.socket("infer") as ws:
        error = await ws.ask("inference", request_id="a", model="nothing", inputs="x")
        assert (error["type"], error["code"]) == ("inference_error", "model_not_found")
        assert (error["request_id"], "served here" in error["error"]) == ("a", True)
        await ws.send("inference", request_id="b", model="breaks", inputs="x", stream=True)
        assert (await ws.receive("inference_chunk"))["chunk"] == "begun "
        error = await ws.receive()
        assert (error["type"], error["code"]) == ("inference_error", "stream_interrupted")
        error = await ws.ask("inference", request_id="", inputs="x")
        assert (error["type"], error["param"]) == ("error", "request_id")
        assert (await ws.ask("ping"))["type"] == "pong"


async def test_a_ping_is_answered_at_once_while_twenty_run(house):
    async with house.socket("infer") as ws:
        for number in range(20):
            await ws.send("inference", request_id=f"r{number}", model="gated", inputs="x", stream=True)
        async with asyncio.timeout(20):
            while len(house.manager.running) < 20:
                await asyncio.sleep(0)
        began = time.monotonic()
        assert (await ws.ask("ping"))["type"] == "pong"
        assert time.monotonic() - began < 1
        house.gate.set()
        ended = [(await ws.receive("inference_complete"))["request_id"] for _ in range(20)]
        assert sorted(ended) == sorted(f"r{number}" for number in range(20))


async def test_a_thousand_requests_on_one_socket(house):
    async with house.socket("infer") as ws:

        async def ask():
            for number in range(1000):
                await ws.send("inference", request_id=str(number), model="echo", inputs=f"n{number}")

        asking = asyncio.create_task(ask())
        results = {}
        while len(results) < 1000:
            message = await ws.receive(*ENDS)
            assert message["type"] == "inference_result", message
            assert message["request_id"] not in results
            results[message["request_id"]] = message["result"]
        await asking
    assert results == {str(number): f"n{number} " for number in range(1000)}
    report = house.manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"], report["in_flight"]) == (1000, 1000, 0)


async def test_cancelling(house):
    async with house.socket("infer") as ws:
        await ws.send("inference", request_id="r", model="gated", inputs="x")
        await house.until_running()
        error = await ws.ask("inference", request_id="r", model="echo", inputs="x")
        assert (error["type"], error["code"], error["request_id"]) == ("error", "bad_request", "r")
        cancelled = await ws.ask("cancel", request_id="r")
        assert (cancelled["type"], cancelled["request_id"]) == ("inference_cancelled", "r")
        assert (await ws.ask("cancel", request_id="r"))["code"] == "bad_request"
        assert (await ws.ask("cancel"))["param"] == "request_id"
        # The label is free again.
        await ws.send("inference", request_id="r", model="echo", inputs="again")
        assert (await ws.receive("inference_result"))["result"] == "again "
    report = house.manager.get_backend_status_report()
    assert (report["total_cancelled"], report["total_successful"]) == (1, 1)


async def test_only_its_owner_or_an_administrator_cancels_by_the_server_s_id(house):
    async with (
        house.socket("infer") as ws,
        house.socket("infer2") as stranger,
        house.socket("infer") as same,
        house.socket("admin") as admin,
    ):
        for canceller in (same, admin):
            await ws.send("inference", request_id="mine", model="gated", inputs="x")
            await house.until_running()
            (request_id,) = house.manager.running
            for label in (request_id, "mine"):
                error = await stranger.ask("cancel", request_id=label)
                assert (error["type"], error["code"]) == ("error", "bad_request")
            assert list(house.manager.running) == [request_id]
            assert (await canceller.ask("cancel", request_id=request_id))["type"] == "inference_cancelled"
            assert (await ws.receive())["request_id"] == "mine"
            await house.until_idle()


async def test_two_sockets_with_one_client_id_have_labels_of_their_own(house):
    async with house.socket("infer") as one, house.socket("infer") as two:
        assert one.hello["client_id"] == two.hello["client_id"] == "me"
        assert one.hello["connection_id"] != two.hello["connection_id"]
        for ws, word in ((one, "first"), (two, "second")):
            await ws.send("inference", request_id="r", model="gated" if ws is one else "echo", inputs=word)
        assert (await two.receive("inference_result"))["result"] == "second "
        await two.ws.close()
        house.gate.set()
        assert (await one.receive("inference_result"))["result"] == "open"


async def test_closing_the_socket_cancels_its_requests(house):
    async with house.socket("infer") as ws:
        for number in range(5):
            await ws.send("inference", request_id=str(number), model="gated", inputs="x")
        await ws.send("inference", model="endless", inputs="x", stream=True)
        await ws.receive("inference_chunk")
    await house.until_idle(10)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 6
    async with asyncio.timeout(20):
        while len(house.server.application.settings["uia_open_doors"]):
            await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-socket")]


async def test_a_reader_that_stops_is_dropped_and_its_backend_was_slowed_down(house):
    async with house.socket("infer") as ws:
        ws.ws._response.connection.transport.pause_reading()
        await ws.send("inference", model="endless", inputs="x", stream=True)
        await house.until_running()
        async with house.socket("infer") as other:
            assert (await other.ask("ping"))["type"] == "pong"
        await house.until_idle(20)
        # A piece is 1000 characters: what the kernel's buffers hold, and not what a second of it makes.
        assert house.produced < 40_000
        assert house.manager.get_backend_status_report()["total_cancelled"] == 1
        ws.ws._response.connection.transport.abort()


async def test_requests_of_one_socket_are_bounded(house, monkeypatch):
    monkeypatch.setattr(socket_inference, "MOST", 5)
    async with house.socket("infer") as ws:
        for number in range(5):
            await ws.send("inference", request_id=str(number), model="gated", inputs="x")
        error = await ws.ask("inference", request_id="5", model="gated", inputs="x")
        assert (error["code"], error["request_id"], error["retry_after"]) == ("queue_full", "5", 1.0)
        house.gate.set()
        for _ in range(5):
            await ws.receive("inference_result")


async def test_a_request_that_has_been_here_is_refused(house):
    async with house.socket("infer") as ws:
        for via in ([house.service.instance_id], ["a", "b", "c", "d", "e"]):
            error = await ws.ask("inference", model="echo", inputs="x", routing={"via": via})
            assert (error["type"], error["code"]) == ("inference_error", "loop_detected")
        routing = {"via": ["a", "b", "c", "d"], "backend": "echo", "deadline_s": 5, "priority": 3}
        await ws.send("inference", inputs="x", routing=routing)
        assert (await ws.receive("inference_result"))["backend"] == "echo"


@pytest.mark.parametrize("key", ["read", "infer", "admin"])
async def test_each_type_takes_its_scope(house, key):
    fields = {
        "subscribe": {"topics": ["queue"]},
        "unsubscribe": {"topics": ["queue"]},
        "inference": {"model": "echo", "inputs": "x"},
        "cancel": {"request_id": "r"},
        "register": {"backend": {"id": "w", "task": "text-generation"}},
    }
    async with house.socket(key) as ws:
        for name, message in MESSAGES.items():
            await ws.send(name, **fields.get(name, {}))
            answer = await ws.receive("error", "subscribed", "unsubscribed", "status", "history", "pong",
                                      "registered", "inference_result")  # fmt: skip
            refused = answer.get("code") == "not_allowed"
            assert refused == (message.scope not in (None, key) and key != "admin"), name


async def test_a_key_that_is_revoked_closes_its_sockets(house):
    async with house.socket("infer") as ws, house.socket("read") as reader:
        await reader.ask("subscribe", topics=["status"])
        await reader.receive("update")
        await ws.send("inference", request_id="r", model="gated", inputs="x")
        await house.until_running()
        house.service.keys.forget("infer")
        house.service.keys.forget("read")
        assert await ws.closed() == websocket.NOT_KNOWN
        await house.until_idle()
        assert await reader.closed() == websocket.NOT_KNOWN


async def test_with_a_key_that_was_revoked_nothing_is_done_any_more(house):
    async with house.socket("admin") as ws:
        house.service.keys.forget("admin")
        # What it sends before it has read the close.
        await ws.send("register", backend={"id": "late", "task": "chat", "models": ["m"]})
        await ws.send("inference", request_id="r", model="gated", inputs="x")
        assert await ws.closed() == websocket.NOT_KNOWN
    async with asyncio.timeout(20):
        while len(house.server.application.settings["uia_open_doors"]):
            await asyncio.sleep(0.01)
    assert house.manager.get_backend("late") is None
    assert house.manager.get_backend_status_report()["total_requests"] == 0


async def test_a_message_above_the_limit(house, monkeypatch):
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 2000)
    async with house.socket("infer") as ws:
        for text in ("x" * 2100, "é" * 1100):
            await ws.ws.send_str(f'{{"type": "inference", "model": "echo", "inputs": "{text}"}}')
            error = await ws.receive()
            assert (error["type"], error["code"]) == ("error", "bad_request")
            assert "larger" in error["message"]
        assert (await ws.ask("ping"))["type"] == "pong"


async def test_the_server_that_stops_says_so(house):
    async with house.socket("infer") as ws:
        await ws.send("inference", request_id="r", model="gated", inputs="x")
        await house.until_running()
        stopping = asyncio.create_task(house.server.stop())
        assert await ws.closed() == 1001
        await stopping
    assert not house.manager.running
