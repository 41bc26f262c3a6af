"""Every message of the socket with each kind of key: nothing passes that the key is not for."""

import asyncio

import pytest

from tests.doors.conftest import KEYS
from uia_lab.doors.websocket import MESSAGES

INFER, READ, ADMIN, ANY = "infer", "read", "admin", "any"

# What each message takes, written down a second time: a message that is not here fails the test.
TAKES = {
    "subscribe": READ,
    "unsubscribe": READ,
    "status": READ,
    "history": READ,
    "inference": INFER,
    "cancel": INFER,
    "ping": ANY,
    "register": ADMIN,
    "result": ADMIN,
    "chunk": ADMIN,
    "complete": ADMIN,
    "fail": ADMIN,
}


def test_the_table_here_is_the_table_there():
    assert TAKES.keys() == MESSAGES.keys()


@pytest.mark.parametrize("key", ["infer", "read", "admin"])
async def test_each_kind_of_key_may_send_what_it_is_for_and_nothing_else(house, key):
    async with house.session.ws_connect(f"{house.server.url}ws/x?token={KEYS[key]}") as socket:
        assert (await socket.receive_json())["type"] == "connection"
        for name, takes in TAKES.items():
            await socket.send_json({"type": name, "request_id": "r"})
            async with asyncio.timeout(30):
                answer = await socket.receive_json()
            refused = answer["type"] == "error" and answer["code"] == "not_allowed"
            assert refused is not (takes in (key, ANY) or key == ADMIN), (name, answer)


async def test_another_keys_request_cannot_be_cancelled_from_a_socket(house):
    async with house.chat("gated", stream=True) as response:
        request_id = response.headers["x-request-id"]
        await house.until_running()
        async with house.session.ws_connect(f"{house.server.url}ws/x?token={KEYS['infer2']}") as socket:
            await socket.receive_json()
            await socket.send_json({"type": "cancel", "request_id": request_id})
            async with asyncio.timeout(30):
                answer = await socket.receive_json()
        assert answer["type"] == "error"
        assert request_id in house.manager.running
        house.gate.set()
        assert "[DONE]" in await response.text()
