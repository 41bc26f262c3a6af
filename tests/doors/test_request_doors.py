import asyncio

import aiohttp
import pytest

from uia_lab.domain.errors import StoreError
from uia_lab.domain.requests import InferenceRequest
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


async def listed(house, query="", key="admin"):
    async with house.call("GET", f"requests{query}", key) as response:
        body = await response.json()
        assert response.status == 200, body
    return body["requests"]


async def asked(house, **options):
    async with house.chat(**options) as response:
        await response.read()
        return response.headers["x-request-id"]


async def test_a_request_can_be_looked_up_as_soon_as_it_is_answered(house):
    request_id = await asked(house, text="secret words here")
    async with house.call("GET", f"requests/{request_id}", "infer") as response:
        record = await response.json()
    assert response.status == 200
    assert (record["outcome"], record["backend_id"], record["principal"]) == ("ok", "echo", "infer")
    assert record["decision"]["winner"] == "echo"
    assert record["attempts"][0]["backend_id"] == "echo"
    assert record["usage"]["total_tokens"] == record["usage"]["input_tokens"] + 3
    assert (record["inputs"], record["result"]) == (None, None)
    assert "secret" not in str(record)


async def test_the_list_is_filtered_and_newest_first(house):
    ids = [await asked(house) for _ in range(3)]
    failed = await asked(house, model="crashes")
    rejected = await asked(house, model="nobody")
    found = await listed(house)
    assert [item["id"] for item in found] == [rejected, failed, *reversed(ids)]
    assert "decision" not in found[0]
    assert found[0]["error"] == "model_not_found"
    assert [item["id"] for item in await listed(house, "?backend=crashes")] == [failed]
    assert [item["id"] for item in await listed(house, "?outcome=rejected")] == [rejected]
    assert len(await listed(house, "?limit=2")) == 2
    assert [item["id"] for item in await listed(house, f"?since={found[1]['began_at']}")] == [
        rejected,
        failed,
    ]
    assert len(await listed(house, "?since=2020-01-01T00:00:00Z")) == 5
    assert await listed(house, "?since=2099-01-01") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=%C2%B2", "since=soon", "since=nan", "outcome=fine"]
)
async def test_a_bad_filter_is_named(house, query):
    async with house.call("GET", f"requests?{query}") as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, query.partition("=")[0])


async def test_everybody_sees_only_their_own(house):
    request_id = await asked(house, key="infer")
    assert [item["id"] for item in await listed(house, key="infer")] == [request_id]
    for key in ("infer2", "read"):
        assert await listed(house, key=key) == []
        async with house.call("GET", f"requests/{request_id}", key) as response:
            assert response.status == 404
    assert len(await listed(house, key="admin")) == 1


async def test_a_running_one_has_no_outcome_yet(house):
    task = asyncio.create_task(asked(house, model="gated", key="infer"))
    await house.until_running()
    (item,) = await listed(house, key="infer")
    assert (item["outcome"], item["model"]) == (None, "gated")
    assert await listed(house, key="infer2") == []
    assert await listed(house, "?outcome=ok") == []
    assert len(await listed(house, "?backend=echo")) == 0
    for key, status in (("infer", 200), ("infer2", 404), ("admin", 200)):
        async with house.call("GET", f"requests/{item['id']}", key) as response:
            assert response.status == status
            if status == 200:
                assert (await response.json())["outcome"] is None
    house.gate.set()
    assert await task == item["id"]
    assert [found["outcome"] for found in await listed(house)] == ["ok"]


async def test_a_cancelled_one_is_in_the_log(house):
    task = asyncio.create_task(asked(house, model="gated", key="infer"))
    await house.until_running()
    (item,) = await listed(house)
    async with house.call("DELETE", f"requests/{item['id']}", "infer") as response:
        assert response.status == 200
    await task
    assert [found["outcome"] for found in await listed(house)] == ["cancelled"]


async def test_prompts_are_kept_when_asked_for(house):
    house.manager.log_prompts = True
    request_id = await asked(house, text="a b")
    async with house.call("GET", f"requests/{request_id}") as response:
        record = await response.json()
    assert record["inputs"] == [{"role": "user", "content": "a b"}]
    assert record["result"] == "a b "


async def test_without_a_store_it_says_so(house, monkeypatch):
    monkeypatch.setattr(house.service.kept, "store", None)
    async with house.call("GET", "requests") as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (503, "store_failed")
    monkeypatch.undo()


async def test_an_alias_is_set_used_listed_and_deleted(house):
    async with house.call("PUT", "aliases/team%2Ffast", json={"targets": ["gone:m", "echo"]}) as response:
        body = await response.json()
    assert (response.status, body) == (200, {"name": "team/fast", "targets": ["gone:m", "echo"]})
    async with house.call("GET", "aliases", "read") as response:
        assert await response.json() == {"aliases": [body]}
    async with house.call("GET", "v1/models/team%2Ffast", "read") as response:
        assert (await response.json())["owned_by"] == "alias"
    async with house.call("GET", "v1/models", "read") as response:
        assert "team/fast" in [item["id"] for item in (await response.json())["data"]]
    async with house.chat("team/fast") as response:
        assert response.headers["x-uia-backend"] == "echo"
    async with house.call("DELETE", "aliases/team%2Ffast") as response:
        assert response.status == 200
    for method in ("GET", "DELETE"):
        async with house.call(method, "aliases/team%2Ffast") as response:
            assert response.status == 404
    assert await house.service.kept.store.aliases.load() == {}


@pytest.mark.parametrize(
    ("body", "param"), [({}, "targets"), ({"targets": "m"}, "targets"), ({"targets": []}, "targets")]
)
async def test_a_bad_alias_is_refused(house, body, param):
    async with house.call("PUT", "aliases/a", json=body) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    assert await house.service.kept.store.aliases.load() == {}


async def test_aliases_are_changed_by_administrators_only(house):
    for key in ("read", "infer"):
        for method in ("PUT", "DELETE"):
            async with house.call(method, "aliases/a", key, json={"targets": ["m"]}) as response:
                assert response.status == 403


async def test_what_cannot_be_kept_is_not_set_either(house, monkeypatch):
    async def full(name, targets):
        raise StoreError("the disk is full")

    house.manager.set_alias("old", ["echo"])
    monkeypatch.setattr(house.service.kept.store.aliases, "put", full)
    for name in ("new", "old"):
        async with house.call("PUT", f"aliases/{name}", json={"targets": ["vectors"]}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "store_failed")
    assert house.manager.aliases == {"old": ("echo",)}


async def test_the_next_service_has_the_aliases_and_the_log(house):
    async with house.call("PUT", "aliases/fast", json={"targets": ["echo"]}) as response:
        assert response.status == 200
    request_id = await asked(house)
    await house.service.stop()
    again = UnifiedInferenceService(house.service.config, manager=BackendManager(house.service.config))
    await again.start(listen=False)
    assert again.get_backend_manager().aliases == {"fast": ("echo",)}
    assert (await again.request_log.get(request_id)).outcome == "ok"
    await again.stop()


async def test_a_client_that_leaves_is_in_the_log_as_cancelled(house):
    body = {"model": "gated", "messages": [{"role": "user", "content": "x"}]}
    patience = aiohttp.ClientTimeout(0.2)
    with pytest.raises(TimeoutError):
        async with house.call("POST", "v1/chat/completions", json=body, timeout=patience):
            pass
    await house.until_idle()
    assert [item["outcome"] for item in await listed(house)] == ["cancelled"]


async def test_stop_logs_what_it_cuts_short_even_where_nobody_reads(house):
    log_path = house.service.kept.store.where
    read = house.manager.open(InferenceRequest("generation", "gated", "x"))
    task = asyncio.create_task(read.result())
    unread = house.manager.open(InferenceRequest("generation", "endless", "x"))
    await anext(unread)
    await house.until_running()
    await house.service.stop()
    await asyncio.gather(task, return_exceptions=True)
    await unread.aclose()
    house.service.config.store_path = log_path
    again = UnifiedInferenceService(house.service.config, manager=BackendManager(house.service.config))
    await again.start(listen=False)
    found = {record.id: record.outcome for record in await again.request_log.find()}
    assert found == {read.request_id: "cancelled", unread.request_id: "cancelled"}
    await again.stop()
