import asyncio
import json
import resource
import socket

from tornado.iostream import IOStream

from uia_lab.doors.outflow import taken


async def test_headers_role_text_end(house):
    async with house.chat(stream=True) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["x-uia-backend"] == "echo"
        assert response.headers["x-request-id"].startswith("req-")
        text = await response.text()
    events = [json.loads(part[6:]) for part in text.split("\n\n")[:-2]]
    assert "".join(item["choices"][0]["delta"].get("content", "") for item in events) == "a b c "
    assert text.endswith("data: [DONE]\n\n")


async def test_a_disconnect_mid_stream_cancels(house):
    response = await house.chat("endless", stream=True)
    await response.content.readline()
    response.close()
    await house.until_idle(10.0)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 1
    produced = house.produced
    assert await standstill(house) == produced


async def test_a_disconnect_while_waiting_cancels_streamed_or_not(house):
    for stream in (True, False):
        task = asyncio.ensure_future(house.chat("gated", stream=stream).__aenter__())
        await house.until_running()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await house.until_idle(10.0)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 2


async def standstill(house):
    """Chunks of the endless backend when it has stopped to make more."""
    before = -1
    async with asyncio.timeout(30):
        while before != house.produced:
            before = house.produced
            await asyncio.sleep(0.1)
    return before


async def test_a_slow_reader_holds_its_backend_back_and_is_dropped(house):
    reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port, limit=1024)
    body = json.dumps({"model": "endless", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: uia-test-key-of-infer\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await reader.readline()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    produced = await standstill(house)
    # Sockets and buffers hold a few megabytes at most; a backend that is not held back makes that in no time.
    assert produced < 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 40_000
    await house.until_idle(30.0)
    writer.close()


async def test_an_error_after_the_first_content_is_an_event_without_done(house):
    async with house.chat("breaks", stream=True) as response:
        text = await response.text()
    assert response.status == 200
    assert "begun " in text
    assert "event: error\ndata: " in text
    assert json.loads(text.rstrip().rpartition("data: ")[2])["error"]["code"] == "stream_interrupted"
    assert "[DONE]" not in text


async def test_a_slow_first_token_gets_comments_meanwhile(house):
    async with house.chat("gated", stream=True) as response:
        assert response.status == 200
        assert response.headers["x-uia-backend"] == "gated"
        for _ in range(2):
            assert await response.content.readline() == b": waiting\n"
            assert await response.content.readline() == b"\n"
        house.gate.set()
        text = await response.text()
    assert "open" in text
    assert text.endswith("data: [DONE]\n\n")


async def test_an_error_after_waiting_is_an_event(house):
    async with house.chat("gated", stream=True, uia={"timeout": 0.3}) as response:
        text = await response.text()
    assert response.status == 200
    assert text.startswith(": waiting")
    assert "deadline_exceeded" in text
    assert "[DONE]" not in text


async def test_a_cancelled_request_says_so(house):
    async with house.chat("endless", stream=True) as response:
        await response.content.readline()
        path = f"requests/{response.headers['x-request-id']}"
        async with house.call("DELETE", path, "infer2") as other:
            assert other.status == 404
        async with house.call("DELETE", path, "infer") as mine:
            assert mine.status == 200
        text = await response.text()
    assert '"code":"cancelled"' in text
    async with house.call("DELETE", path) as gone:
        assert gone.status == 404


async def test_many_at_once_stay_apart(house):
    async def one(number):
        async with house.chat(stream=True, text=f"n{number} " * 20) as response:
            return number, await response.text()

    for number, text in await asyncio.gather(*(one(number) for number in range(20))):
        assert text.count(f"n{number} ") == 20
    await house.until_idle()


async def test_whoever_reads_slowly_is_waited_for_and_whoever_stops_is_not():
    here, there = socket.socketpair()
    there.setblocking(False)
    for end, option in ((here, socket.SO_SNDBUF), (there, socket.SO_RCVBUF)):
        end.setsockopt(socket.SOL_SOCKET, option, 8192)
    stream, loop = IOStream(here), asyncio.get_running_loop()
    stream.set_close_callback(lambda: None)
    size, got = 1 << 20, 0

    async def read():
        nonlocal got
        while got < size:
            got += len(await loop.sock_recv(there, 8192))
            await asyncio.sleep(0.01)

    began = loop.time()
    reading = asyncio.create_task(read())
    async with asyncio.timeout(60):
        assert await taken(stream.write(b"x" * size), stream, 0.5)
        assert loop.time() - began > 0.5, "slower than the time in which something has to be taken"
        await reading
        stopped = stream.write(b"x" * size)
        assert not await taken(stopped, stream, 0.5)
    assert not stopped.done(), "the stream is the caller's to close"
    stopped.add_done_callback(lambda done: done.exception())
    stream.close()
    there.close()
