"""The doors of the network where there is none; with nodes they are walked in tests/peers."""

import pytest

PEER = "12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE"


async def told(house, method, path, **options):
    async with house.call(method, path, **options) as response:
        return response.status, await response.json()


async def test_without_a_network_readers_see_that_there_is_none(house):
    assert await told(house, "GET", "peers", key="read") == (200, {"node": None, "peers": [], "invites": []})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"peers/{PEER}/trust", {}),
        ("DELETE", f"peers/{PEER}/trust", None),
        ("POST", "peers/invites", {}),
        ("DELETE", "peers/invites/invite-1", None),
        ("POST", "peers/accept", {"link": "uia://x"}),
    ],
)
async def test_without_a_network_nothing_can_be_changed_and_it_is_said_why(house, method, path, body):
    status, answer = await told(house, method, path, json=body)
    assert status == 503
    assert "enable_libp2p" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (f"peers/{PEER}/trust", {"modles": ["a"]}, "modles"),
        (f"peers/{PEER}/trust", {"models": "a"}, "models"),
        (f"peers/{PEER}/trust", {"max_concurrent": 0}, "max_concurrent"),
        (f"peers/{PEER}/trust", {"addresses": [5]}, "addresses"),
        ("peers/invites", {"tokens_per_minute": "many"}, "tokens_per_minute"),
        ("peers/invites", {"expires_in": -1}, "expires_in"),
        ("peers/invites", {"name": "x" * 65}, "name"),
        ("peers/accept", {}, "link"),
        ("peers/accept", {"link": "x", "lend": "yes"}, "lend"),
    ],
)
async def test_a_wrong_field_is_named(house, path, body, name):
    status, answer = await told(house, "POST", path, json=body)
    assert status == 400
    assert name in answer["error"]["message"]
