"""Workers that register over a real socket, each message written by hand."""

import asyncio

import pytest

from uia_lab.backends import inboxes
from uia_lab.dialects.websocket_requests import LEAVING, REPLACED
from uia_lab.doors import socket_worker
from uia_lab.doors.base import Timings
from uia_lab.doors.socket_worker import WorkerSeat

BACKEND = {"id": "w1", "name": "Worker", "task": "text-generation", "models": ["m"], "max_concurrency": 2}


async def registered(ws, **fields):
    answer = await ws.ask("register", backend={**BACKEND, **fields})
    assert answer["type"] == "registered", answer
    return answer["backend_id"]


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_worker_is_a_backend(house):
    async with house.socket() as worker, house.socket("infer") as client:
        assert await registered(worker) == "w1"
        async with house.call("GET", "backends/w1") as response:
            shown = await response.json()
        assert (shown["type"], shown["status"], shown["routable"]) == ("websocket", "healthy", True)
        assert (shown["models"], shown["max_concurrency"]) == (["m"], 2)
        async with house.call("GET", "v1/models") as response:
            assert "m" in [item["id"] for item in (await response.json())["data"]]

        await client.send(
            "inference", request_id="r", model="m", inputs="hi", parameters={"seed": 7}, stream=True
        )
        task = await worker.receive("execute")
        assert (task["task"], task["model"], task["inputs"]) == ("text-generation", "m", "hi")
        assert (task["parameters"], task["stream"]) == ({"seed": 7}, True)
        label = task["request_id"]
        for index, word in enumerate(("one ", "two")):
            await worker.send("chunk", request_id=label, chunk=word, index=index)
            piece = await client.receive("inference_chunk")
            assert (piece["chunk"], piece["index"]) == (word, index)
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        await worker.send("complete", request_id=label, usage=usage, finish_reason="length")
        end = await client.receive("inference_complete")
        assert (end["backend"], end["finish_reason"], end["usage"]["total_tokens"]) == ("w1", "length", 5)

        await client.send("inference", request_id="r", model="m", inputs="hi")
        task = await worker.receive("execute")
        assert task["stream"] is False
        await worker.send("result", request_id=task["request_id"], result="all of it")
        assert (await client.receive("inference_result"))["result"] == "all of it"


async def test_many_at_once_and_no_more_than_it_takes(house):
    async with house.socket() as worker, house.socket("infer") as client:
        await registered(worker)
        for number in range(4):
            await client.send("inference", request_id=str(number), model="m", inputs=str(number))
        first = [await worker.receive("execute") for _ in range(2)]
        assert (await worker.ask("ping"))["type"] == "pong", "two are all it gets"
        for task in reversed(first):
            await worker.send("result", request_id=task["request_id"], result=task["inputs"] + "!")
        for _ in range(2):
            task = await worker.receive("execute")
            await worker.send("result", request_id=task["request_id"], result=task["inputs"] + "!")
        results = [await client.receive("inference_result") for _ in range(4)]
        assert {item["request_id"]: item["result"] for item in results} == {
            str(number): f"{number}!" for number in range(4)
        }


async def test_reasoning_and_tool_calls_pass_through(house):
    async with house.socket() as worker, house.socket("infer") as client:
        await registered(worker)
        await client.send("inference", model="m", inputs="hi", stream=True)
        label = (await worker.receive("execute"))["request_id"]
        await worker.send("chunk", request_id=label, chunk="", reasoning="hmm")
        assert (await client.receive("inference_chunk"))["reasoning"] == "hmm"
        call = {"index": 0, "id": "c", "name": "add", "arguments": "{}"}
        await worker.send("chunk", request_id=label, chunk="", tool_call=call)
        piece = await client.receive("inference_chunk")
        assert (piece["chunk"], piece["tool_call"]["name"]) == ("", "add")
        await worker.send("complete", request_id=label, finish_reason="tool_calls")
        assert (await client.receive("inference_complete"))["finish_reason"] == "tool_calls"


async def test_what_a_worker_fails_with(house):
    async with house.socket() as worker, house.socket("infer") as client:
        await registered(worker)
        for code, told in (
            ("context_length_exceeded", "context_length_exceeded"),
            ("nonsense", "backend_failed"),
            ("invalid_api_key", "backend_failed"),
            (7, "backend_failed"),
        ):
            await client.send("inference", model="m", inputs="hi")
            label = (await worker.receive("execute"))["request_id"]
            await worker.send("fail", request_id=label, error="too long", code=code)
            error = await client.receive("inference_error")
            assert (error["code"], error["error"]) == (told, "too long")
        await registered(worker)  # Anew, with its breaker closed.
        for bad in ({"chunk": None}, {"chunk": "x", "choice": -1}, {"chunk": "", "tool_call": 3}):
            await client.send("inference", model="m", inputs="hi", stream=True)
            label = (await worker.receive("execute"))["request_id"]
            await worker.send("chunk", request_id=label, **bad)
            assert (await client.receive("inference_error"))["code"] == "backend_failed"


async def test_a_cancelled_request_is_aborted_and_what_is_late_is_no_mistake(house):
    async with house.socket() as worker, house.socket("infer") as client:
        await registered(worker)
        await client.send("inference", request_id="r", model="m", inputs="hi", stream=True)
        label = (await worker.receive("execute"))["request_id"]
        await client.ask("cancel", request_id="r")
        assert (await worker.receive("abort"))["request_id"] == label
        await worker.send("chunk", request_id=label, chunk="late")
        await worker.send("complete", request_id=label)
        assert (await worker.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize(
    ("backend", "param"),
    [
        (None, "backend"),
        ("w", "backend"),
        ({"task": "text-generation"}, "backend.id"),
        ({"id": "w"}, "backend.tasks"),
        ({"id": "w", "task": "dancing"}, "task"),
        ({"id": "w", "tasks": [1]}, "backend.tasks"),
        ({"id": "w", "task": "chat", "models": "m"}, "backend.models"),
        ({"id": "w", "task": "chat", "max_concurrency": 0}, "backend.max_concurrency"),
        ({"id": "no spaces", "task": "chat"}, "backend_id"),
        ({"id": "echo", "task": "chat"}, "backend.id"),
    ],
)
async def test_a_bad_registration_is_named(house, backend, param):
    async with house.socket() as ws:
        error = await ws.ask("register", backend=backend)
        assert (error["type"], error["code"], error["param"]) == ("error", "bad_request", param)
        assert (await ws.ask("ping"))["type"] == "pong"
    assert len(house.manager.list_backends("websocket")) == 0


async def test_answers_that_nobody_asked_for(house):
    async with house.socket() as ws:
        for name in ("result", "chunk", "complete", "fail"):
            error = await ws.ask(name, request_id="r")
            assert (error["type"], error["code"], error["request_id"]) == ("error", "bad_request", "r")
            assert "register" in error["message"]
        await registered(ws)
        for name in ("result", "chunk", "complete", "fail"):
            assert "given to this worker" in (await ws.ask(name, request_id="r"))["message"]
            assert (await ws.ask(name))["param"] == "request_id"
        error = await ws.ask("register", backend={**BACKEND, "id": "w2"})
        assert error["param"] == "backend.id"
        assert await registered(ws, models=["m", "n"]) == "w1", "the same one again changes it"
    assert "n" in house.manager.get_backend("w1").models


async def test_gone_is_offline_at_once_and_the_request_goes_on_elsewhere(house):
    async with house.socket() as one, house.socket() as two, house.socket("infer") as client:
        await registered(one, id="one", streaming=True)
        await client.send("inference", request_id="r", model="m", inputs="hi", stream=True)
        await one.receive("execute")
        await registered(two, id="two")
        # As a process that is killed: no farewell.
        one.ws._response.connection.transport.abort()
        task = await two.receive("execute")
        await two.send("result", request_id=task["request_id"], result="from two")
        end = await client.receive("inference_complete")
        assert end["backend"] == "two"
        assert [item["backend"] for item in end["attempts"]] == ["one", "two"]
        shown = house.manager.get_backend("one")
        assert (shown.status, shown.routable) == ("offline", False)
        assert shown.reason == "the worker's connection is closed"


async def test_after_the_first_piece_a_lost_worker_is_an_interrupted_stream(house):
    async with house.socket() as one, house.socket() as two, house.socket("infer") as client:
        await registered(one, id="one")
        await client.send("inference", request_id="r", model="m", inputs="hi", stream=True)
        task = await one.receive("execute")
        await registered(two, id="two")
        await one.send("chunk", request_id=task["request_id"], chunk="begun ")
        assert (await client.receive("inference_chunk"))["chunk"] == "begun "
        await one.ws.close()
        error = await client.receive("inference_error")
        assert error["code"] == "stream_interrupted"
        await until(lambda: house.manager.get_backend("one").status == "offline")


async def test_one_that_comes_back_serves_again_and_one_that_does_not_is_forgotten(house, monkeypatch):
    monkeypatch.setattr(socket_worker, "FORGET_S", 0.3)
    async with house.socket() as ws:
        await registered(ws)
    await until(lambda: house.manager.get_backend("w1").status == "offline")
    async with house.socket() as ws:
        await registered(ws)
        await asyncio.sleep(0.6)
        assert house.manager.get_backend("w1").status == "healthy"
    await until(lambda: house.manager.get_backend("w1") is None)


async def test_one_that_says_that_it_leaves_is_out_of_the_list(house):
    async with house.socket() as ws:
        await registered(ws)
        await ws.ws.close(code=LEAVING)
    await until(lambda: house.manager.get_backend("w1") is None)


async def test_of_two_with_one_id_the_later_one_serves(house):
    async with house.socket() as old, house.socket() as new, house.socket("infer") as client:
        await registered(old)
        await client.send("inference", request_id="r", model="m", inputs="hi")
        await old.receive("execute")
        await registered(new)
        assert await old.closed() == REPLACED
        # The request was the old one's; the new one is another backend with the same id, tried already.
        assert (await client.receive("inference_error"))["code"] == "backend_failed"
        await client.send("inference", request_id="r", model="m", inputs="hi")
        task = await new.receive("execute")
        await new.send("result", request_id=task["request_id"], result="new")
        assert (await client.receive("inference_result"))["result"] == "new"


async def test_a_backend_that_is_taken_out_tells_its_worker(house):
    async with house.socket() as worker:
        await registered(worker)
        assert house.manager.unregister_backend("w1")
        assert await worker.closed() == REPLACED
    assert house.manager.get_backend("w1") is None


async def test_a_worker_that_freezes_is_cut_off(house):
    house.server.application.settings["uia_timings"] = Timings(heartbeat_s=0.1)
    async with house.socket(autoping=False) as worker, house.socket("infer") as client:
        await registered(worker)
        await client.send("inference", request_id="r", model="m", inputs="hi", routing={"max_attempts": 1})
        await worker.receive("execute")
        error = await client.receive("inference_error")
        assert error["code"] == "backend_failed"
        assert house.manager.get_backend("w1").status == "offline"


async def test_a_worker_that_reads_nothing_holds_up_no_deadline_and_no_cancel(house):
    house.server.application.settings["uia_timings"] = Timings(stalled_s=120.0)
    ask = {"model": "m", "inputs": "x" * (12 << 20)}
    async with house.socket(max_msg_size=0) as worker, house.socket("infer") as client:
        await registered(worker)
        worker.ws._response.connection.transport.pause_reading()
        async with asyncio.timeout(10):
            routing = {"deadline_s": 0.5, "max_attempts": 1}
            error = await client.ask("inference", request_id="late", routing=routing, **ask)
            assert (error["type"], error["code"]) == ("inference_error", "deadline_exceeded")
            await client.send("inference", request_id="left", **ask)
            await house.until_running()
            assert (await client.ask("cancel", request_id="left"))["type"] == "inference_cancelled"
            await house.until_idle()
        # What was begun goes out whole, and the worker hears that nobody waits for it any more.
        worker.ws._response.connection.transport.resume_reading()
        task = await worker.receive("execute")
        assert len(task["inputs"]) == 12 << 20
        assert (await worker.receive("abort"))["request_id"] == task["request_id"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uia-socket-stop"]


async def test_a_worker_that_answers_pings_stays(house):
    house.server.application.settings["uia_timings"] = Timings(heartbeat_s=0.05)
    async with house.socket() as worker:
        await registered(worker)
        reading = asyncio.create_task(worker.ws.receive())
        await asyncio.sleep(0.6)
        assert house.manager.get_backend("w1").status == "healthy"
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_a_slow_client_slows_its_worker_down(house, monkeypatch):
    monkeypatch.setattr(inboxes, "MOST_MESSAGES", 4)
    house.server.application.settings["uia_timings"] = Timings(stalled_s=30.0)
    async with house.socket() as worker, house.socket("infer") as client:
        await registered(worker)
        client.ws._response.connection.transport.pause_reading()
        await client.send("inference", request_id="r", model="m", inputs="hi", stream=True)
        label = (await worker.receive("execute"))["request_id"]
        sent = 0

        async def pour():
            nonlocal sent
            while True:
                await worker.send("chunk", request_id=label, chunk="x" * 100_000)
                sent += 1

        pouring = asyncio.create_task(pour())
        seen = -1
        async with asyncio.timeout(30):
            while seen != sent:
                seen = sent
                await asyncio.sleep(0.5)
        assert 4 < sent < 400, "what the buffers of the kernel and of the inbox hold"
        client.ws._response.connection.transport.resume_reading()
        async with asyncio.timeout(30):
            while sent < seen + 100:
                await client.receive("inference_chunk")
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)


async def test_an_answer_that_nobody_reads_is_given_up_for_the_others(house, monkeypatch):
    monkeypatch.setattr(inboxes, "MOST_MESSAGES", 4)
    monkeypatch.setattr(inboxes, "PATIENCE_ALONE_S", 1000.0)
    house.server.application.settings["uia_timings"] = Timings(stalled_s=30.0)
    async with house.socket() as worker, house.socket("infer") as stuck, house.socket("infer") as client:
        await registered(worker)
        stuck.ws._response.connection.transport.pause_reading()
        await stuck.send("inference", request_id="r", model="m", inputs="hi", stream=True)
        label = (await worker.receive("execute"))["request_id"]

        async def pour():
            while True:
                await worker.send("chunk", request_id=label, chunk="x" * 100_000)

        pouring = asyncio.create_task(pour())
        await client.send("inference", request_id="q", model="m", inputs="hi")
        task = await worker.receive("execute")
        async with asyncio.timeout(60):
            # Its worker need not go on either.
            assert (await worker.receive("abort", seconds=60))["request_id"] == label
            await worker.send("result", request_id=task["request_id"], result="not in its way")
            assert (await client.receive("inference_result", seconds=60))["result"] == "not in its way"
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        stuck.ws._response.connection.transport.abort()
    assert house.manager.get_backend("w1").metrics.failed_requests == 0


async def test_one_that_reads_a_little_holds_nobody_up_for_long(monkeypatch):
    monkeypatch.setattr(inboxes, "MOST_MESSAGES", 256)
    stopped = []

    async def stop(request_id):
        stopped.append(request_id)

    boxes = inboxes.Inboxes(stop)
    slow, fast = boxes.open("slow"), boxes.open("fast")

    async def crawl():
        while True:
            await asyncio.sleep(0.2)
            await slow.get()

    crawling = asyncio.create_task(crawl())
    async with asyncio.timeout(10):
        for number in range(1000):
            await boxes.put("slow", ("chunk", {"n": number}), 10)
            assert await boxes.put("fast", ("chunk", {"n": number}), 10)
            assert (await fast.get())[1] == {"n": number}
    await until(lambda: stopped == ["slow"])
    assert boxes.ended("slow")
    assert not await boxes.put("slow", ("chunk", {}), 10)
    crawling.cancel()
    await asyncio.gather(crawling, return_exceptions=True)


async def test_a_socket_that_closes_while_it_registers_leaves_no_heartbeat(house):
    async def send(name, /, **fields):
        del name, fields

    seat = WorkerSeat(house.manager, send, lambda: None, lambda *_: None, lambda: None, 10.0)
    registering = asyncio.create_task(seat.register({"backend": BACKEND}, {}))
    while house.manager.get_backend("w1") is None:
        await asyncio.sleep(0)
    await seat.leave(1006)
    await registering
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uia-worker-heartbeat"]


async def test_the_manager_that_ends_leaves_nothing_of_a_worker(house):
    async with house.socket() as ws:
        await registered(ws)
        await house.server.stop()
        await ws.closed()
    assert not [task for task in asyncio.all_tasks() if "worker" in task.get_name()]
