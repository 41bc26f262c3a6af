import asyncio

import pytest

from uia_lab.traffic_replay import ASSUMPTIONS


async def replayed(house, body=None, key="admin", status=200):
    async with house.call("POST", "replay", key, json=body or {}) as response:
        answer = await response.json()
        assert response.status == status, answer
    return answer


async def ask(house, count=1, **options):
    for _ in range(count):
        async with house.chat(**options) as response:
            await response.read()


async def test_what_happened_beside_what_another_strategy_makes_of_it(house):
    await ask(house, 4, key="infer")
    await ask(house, 1, key="infer", model="nobody")
    report = await replayed(house, {"strategy": "round_robin"})
    assert (report["requests"], report["left_out"]) == (4, {"model_not_found": 1})
    for name, strategy in (("happened", None), ("baseline", "best_performance"), ("replay", "round_robin")):
        assert report[name]["strategy"] == strategy
        assert report[name]["ok"] == 4
        assert report[name]["share"] == {"echo": 1.0}
        assert 0 < report[name]["p50_ms"] <= report[name]["p99_ms"]
    assert report["replay"]["p50_ms"] == pytest.approx(report["happened"]["p50_ms"], rel=0.9)
    assert report["assumptions"] == list(ASSUMPTIONS)
    assert report["since"] <= report["until"]
    assert house.manager.get_backend("echo").metrics.total_requests == 4


async def test_each_key_replays_its_own(house):
    await ask(house, 2, key="infer")
    assert (await replayed(house, key="infer"))["requests"] == 2
    for key in ("infer2", "read"):
        error = (await replayed(house, key=key, status=400))["error"]
        assert "nothing to replay" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"strategy": "fastest"}, "strategy"),
        ({"strategy": 1}, "strategy"),
        ({"since": "soon"}, "since"),
        ({"limit": 0}, "limit"),
        ({"limit": 20_001}, "limit"),
        ({"seed": 1}, "seed"),
        ({"since": "2099-01-01"}, "since"),
    ],
)
async def test_a_bad_field_is_named(house, body, param):
    await ask(house)
    assert (await replayed(house, body, status=400))["error"]["param"] == param


async def test_one_at_a_time_and_not_longer_than_somebody_waits(house, monkeypatch):
    await ask(house)
    begun, looked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(records, house, present, chosen, ended):
        loop.call_soon_threadsafe(begun.set)
        assert ended.wait(50)
        loop.call_soon_threadsafe(looked.set)

    monkeypatch.setattr("uia_lab.traffic_replay._replayed", endless)
    first = asyncio.create_task(replayed(house))
    await begun.wait()
    error = (await replayed(house, status=429))["error"]
    assert "another replay" in error["message"]
    first.cancel()
    await looked.wait()
    monkeypatch.undo()
    async with asyncio.timeout(50):
        while house.service.replay._busy:
            await asyncio.sleep(0.01)
    await replayed(house)


async def test_it_has_a_deadline(house, monkeypatch):
    await ask(house, 40)
    monkeypatch.setattr("uia_lab.traffic_replay.LONGEST_S", 0.0)
    assert "fewer requests" in (await replayed(house, status=504))["error"]["message"]
