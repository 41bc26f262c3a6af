import asyncio
import json

import aiohttp
import pytest

from uia_lab.doors import websocket
from uia_lab.doors.feeds import Feeds
from uia_lab.doors.updates import Updates
from uia_lab.manager.topics import Topics

TOKEN = "uia-test-key-of-read"


@pytest.fixture
async def ws(house):
    async with house.session.ws_connect(f"{house.server.url}ws/me?token={TOKEN}") as ws:
        yield ws


async def receive(ws, kind=None, seconds=3.0):
    """The next message, or the next one of a type."""
    async with asyncio.timeout(seconds):
        while True:
            message = await ws.receive_json()
            assert isinstance(message["timestamp"], float)
            if kind in (None, message["type"]):
                return message


async def ask(ws, **message):
    await ws.send_json(message)
    return await receive(ws)


async def test_greeting_ping_status(house, ws):
    hello = await receive(ws)
    assert (hello["type"], hello["status"], hello["client_id"]) == ("connection", "connected", "me")
    assert hello["instance_id"] == house.service.instance_id
    assert {"connection_id", "version"} <= set(hello)
    assert (await ask(ws, type="ping"))["type"] == "pong"
    summary = await ask(ws, type="status")
    assert (summary["type"], summary["detail_level"]) == ("status", "summary")
    assert "backends" not in summary["backend_status"]
    full = await ask(ws, type="status", details="full")
    assert len(full["backend_status"]["backends"]) == 6


async def test_bad_messages_get_an_error_and_the_socket_stays_open(ws, monkeypatch):
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 1000)
    await receive(ws)
    for raw, code in (
        ("no json", "bad_request"),
        ("[1]", "bad_request"),
        ("[" * 900, "bad_request"),
        ("x" * 2000, "bad_request"),
        ('{"type": 3}', "unknown_message"),
        ('{"type": "dance", "request_id": "r"}', "unknown_message"),
        ('{"type": "inference", "request_id": "r"}', "not_allowed"),
        ('{"type": "register"}', "not_allowed"),
        ('{"type": "status", "details": "some"}', "bad_request"),
        ('{"type": "subscribe"}', "bad_request"),
        ('{"type": "subscribe", "topics": ["status", "weather"]}', "bad_request"),
    ):
        await ws.send_str(raw)
        error = await receive(ws)
        assert (error["type"], error["code"]) == ("error", code), raw
        assert error.get("request_id") == ("r" if '"r"' in raw else None)
    assert (await ask(ws, type="ping"))["type"] == "pong"


async def test_subscriptions_give_a_snapshot_then_changes(house, ws):
    await receive(ws)
    subscribed = await ask(ws, type="subscribe", topics=["status", "queue", "inference", "backend", "status"])
    assert subscribed["topics"] == ["status", "queue", "inference", "backend"]
    first = {}
    while len(first) < 4:
        update = await receive(ws, "update")
        first.setdefault(update["topic"], update)
    assert {item["sequence"] for item in first.values()} == {0}
    async with house.chat() as response:
        await response.read()
    async with asyncio.timeout(30):
        while True:
            update = await receive(ws, "update")
            if update["topic"] == "status" and update["data"]["total_successful"] == 1:
                break
    assert update["sequence"] >= 1
    await ws.send_json({"type": "unsubscribe", "topics": ["status", "queue", "inference", "backend"]})
    assert len((await receive(ws, "unsubscribed"))["topics"]) == 4
    async with house.chat() as response:
        await response.read()
    async with asyncio.timeout(30):
        while any(task.get_name().startswith("uia-update-") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
    assert (await ask(ws, type="ping"))["type"] == "pong", "no update comes in between"


async def test_two_sockets_may_use_one_id(house, ws):
    await receive(ws)
    async with house.session.ws_connect(f"{house.server.url}ws/me?token={TOKEN}") as other:
        await receive(other)
        assert (await ask(other, type="ping"))["type"] == "pong"
        assert (await ask(ws, type="ping"))["type"] == "pong"


async def test_closing_ends_the_subscriptions(house, ws):
    await receive(ws)
    await ask(ws, type="subscribe", topics=["status", "backend"])
    await ws.close()
    doors = house.server.application.settings["uia_open_doors"]
    async with asyncio.timeout(20):
        while len(doors):
            await asyncio.sleep(0.01)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-update")]


async def test_the_newest_state_wins_for_a_slow_reader():
    states, sent, room = asyncio.Queue(), [], asyncio.Event()

    async def subscribe(topic):
        while True:
            yield {"n": await states.get()}

    async def send(message):
        fields = json.loads(message)
        sent.append((fields["sequence"], fields["data"]["n"]))
        await room.wait()

    updates = Updates(Feeds(subscribe), send)
    updates.add(["status"])
    for number in range(50):
        states.put_nowait(number)
        await asyncio.sleep(0)
    room.set()
    async with asyncio.timeout(30):
        while not states.empty() or sent[-1][1] != 49:
            await asyncio.sleep(0)
    assert len(sent) <= 3
    assert sent[-1][1] == 49
    assert [sequence for sequence, _ in sent] == list(range(len(sent)))
    await updates.close()


async def test_the_door_can_be_switched_off(house):
    house.service.config.enable_websocket = False
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.session.ws_connect(f"{house.server.url}ws/me?token={TOKEN}")
    assert caught.value.status == 404


async def test_a_page_elsewhere_may_connect_with_a_key(house):
    headers = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    url = f"{house.server.url}ws/me?token={TOKEN}"
    async with house.session.ws_connect(url, headers=headers) as ws:
        assert json.loads((await ws.receive()).data)["type"] == "connection"


async def test_one_sample_and_one_encoding_for_all_and_a_snapshot_for_each():
    states, samples = asyncio.Queue(), 0

    async def subscribe(topic):
        nonlocal samples
        samples += 1
        yield {"n": "snapshot"}
        while True:
            yield {"n": await states.get()}

    feeds = Feeds(subscribe)
    seen = [[] for _ in range(40)]
    listeners = [lambda _, raw, number=number: seen[number].append(raw) for number in range(40)]
    for listener in listeners[:20]:
        feeds.join("status", listener)
    async with asyncio.timeout(20):
        while not all(seen[:20]):
            await asyncio.sleep(0)
        for listener in listeners[20:]:
            # One after the other, each while the one before is being greeted.
            feeds.join("status", listener)
            await asyncio.sleep(0)
        while not all(seen):
            await asyncio.sleep(0)
        assert samples < 40
        states.put_nowait("change")
        while not all(each[-1] == b'{"n":"change"}' for each in seen):
            await asyncio.sleep(0)
    assert len({id(each[-1]) for each in seen}) == 1, "the same bytes for everybody"
    ended = [feeds.leave("status", listener) for listener in listeners]
    assert ended[:-1] == [None] * 39
    await ended[-1]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-update")]


async def test_a_state_that_was_there_before_is_news_to_those_who_came_in_between():
    state = {"depth": 0}
    topics = Topics(lambda _: dict(state))
    feeds, old, new = Feeds(topics.subscribe), [], []
    hears_old, hears_new = (lambda _, raw: old.append(raw)), (lambda _, raw: new.append(raw))

    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)

    feeds.join("queue", hears_old)
    await until(lambda: old)
    topics.changed()
    for _ in range(10):
        await asyncio.sleep(0)
    # It has just published, and pauses: the state changes, somebody comes, and it changes back.
    state["depth"] = 1
    topics.changed()
    feeds.join("queue", hears_new)
    await until(lambda: new)
    assert new[0] == b'{"depth":1}'
    state["depth"] = 0
    topics.changed()
    await until(lambda: new[-1] == b'{"depth":0}')
    assert old[-1] == b'{"depth":0}'
    for listener in (hears_old, hears_new):
        if (ended := feeds.leave("queue", listener)) is not None:
            await ended
    await topics.end()
