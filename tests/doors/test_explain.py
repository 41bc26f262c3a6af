"""``POST /explain`` previews a decision over the wire."""

import pytest


async def test_each_candidate_is_kept_or_told_why_not(house):
    async with house.call("POST", "explain", "read", json={"model": "echo"}) as response:
        assert response.status == 200
        told = await response.json()
    assert told["winner"] == "echo"
    reasons = {item["backend_id"]: (item["kept"], item["reason"]) for item in told["candidates"]}
    assert reasons["echo"] == (True, "")
    assert reasons["endless"] == (False, "model: does not serve echo")
    assert house.manager.get_backend("echo").metrics.total_requests == 0


async def test_hints_are_taken(house):
    body = {"task": "embeddings", "preferred_types": ["gpu"], "required_protocols": ["carrier-pigeon"]}
    async with house.call("POST", "explain", "read", json=body) as response:
        told = await response.json()
    assert (told["winner"], told["task"]) == (None, "text-embedding")


@pytest.mark.parametrize(
    ("body", "param"),
    [({"task": "dance"}, "task"), ({"preferred_types": ["tpu"]}, "preferred_types"), ({"model": 7}, "model")],
)
async def test_a_bad_field_is_named(house, body, param):
    async with house.call("POST", "explain", "read", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param
