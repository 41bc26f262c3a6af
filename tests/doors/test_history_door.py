"""The last quarter of an hour over HTTP and over the socket, and what went wrong at one backend."""


async def test_both_doors_tell_the_same(house):
    async with house.chat("echo") as response:
        assert response.status == 200
    house.service.history.take()
    async with house.call("GET", "history", "read") as response:
        told = await response.json()
    assert told["instance_id"] == house.service.instance_id
    assert [sample["number"] for sample in told["samples"]] == list(range(1, told["taken"] + 1))
    assert sum(sample["backends"].get("echo", [0])[0] for sample in told["samples"]) == 1
    async with house.socket("read") as socket:
        again = await socket.ask("history")
        assert again["samples"][: len(told["samples"])] == told["samples"]
        later = await socket.ask("history", after=again["taken"], limit=1)
        assert len(later["samples"]) <= 1


async def test_wrong_numbers_are_refused(house):
    for query in ("after=-1", "limit=x", "after=" + "9" * 40):
        async with house.call("GET", f"history?{query}", "read") as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] in ("after", "limit")
    async with house.socket("read") as socket:
        answer = await socket.ask("history", after="now")
        assert (answer["type"], answer["code"]) == ("error", "bad_request")


async def test_a_backend_tells_its_last_errors(house):
    async with house.chat("breaks") as response:
        assert response.status == 502
    async with house.call("GET", "backends/breaks", "read") as response:
        backend = await response.json()
    assert backend["errors"][0]["message"] == "the wheel came off"
    assert backend["transitions"][0]["status"] == "degraded"
    async with house.call("GET", "backends/echo", "read") as response:
        assert (await response.json())["errors"] == []
