"""A server that is killed under load and started again on the same store, and two servers on one store."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import aiohttp
import psutil
import pytest

from tests.upstreams.scripted_api import ScriptedApi, words

ADMIN = "uia-test-key-of-the-admin"
PROMISED_S = 1.0
CLIENTS = 20


class Server:
    def __init__(self, store):
        environment = os.environ | {"UIA_LAB_SERVE_TOKEN": ADMIN, "UIA_STORE_PATH": str(store)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line.startswith("uia_lab serves at "), line
        self.url = line.split()[-1].removesuffix("v1")

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path, models):
    servers = []

    def start():
        servers.append(Server(tmp_path / "uia.sqlite3"))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait(30)
        server.process.stdout.close()


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def api():
    async with ScriptedApi() as server:
        server.lists("far")
        server.answers["POST", "/v1/chat/completions"] = (200, words("one", " two"))
        yield server


async def call(session, server, method, path, key=ADMIN, expected=200, **options):
    headers = {"Authorization": f"Bearer {key}"}
    async with session.request(method, server.url + path, headers=headers, **options) as response:
        body = await response.json()
        assert response.status == expected, body
        return body


async def until(session, server, path, key, expected):
    async with asyncio.timeout(30):
        while True:
            async with session.get(server.url + path, headers={"Authorization": f"Bearer {key}"}) as response:
                if response.status == expected:
                    return
            await asyncio.sleep(0.05)


HELLO = {"model": "far", "messages": [{"role": "user", "content": "hello"}]}


async def test_a_killed_server_loses_a_second_of_its_log_at_most_and_nothing_it_was_told(
    start, session, api, tmp_path
):
    server = start()
    await call(session, server, "POST", "backends", expected=201, json={"endpoint": api.url, "id": "api"})
    await call(session, server, "PATCH", "backends/api", json={"weight": 3})
    key = await call(
        session,
        server,
        "POST",
        "keys",
        expected=201,
        json={"name": "k", "scopes": ["infer"], "token_budget": 10**9},
    )
    await call(session, server, "PUT", "strategy", json={"name": "round_robin"})
    await call(session, server, "PUT", "aliases/best", json={"targets": ["api:far"]})
    await call(session, server, "POST", "v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": "x"})
    children = server.children()
    assert children
    ended, tokens = {}, {}

    async def client():
        while True:
            headers = {"Authorization": f"Bearer {key['key']}"}
            try:
                async with session.post(
                    server.url + "v1/chat/completions", json=HELLO, headers=headers
                ) as response:
                    body = await response.json()
                    assert response.status == 200, body
                    request_id = response.headers["x-request-id"]
                    ended[request_id] = time.time()
                    tokens[request_id] = body["usage"]["total_tokens"]
            except aiohttp.ClientError:
                return

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    async with asyncio.timeout(60):
        while len(ended) < 300:
            await asyncio.sleep(0.02)
    await asyncio.sleep(1.5 * PROMISED_S)
    at = time.time()
    server.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(server.process.wait, 30)
    await asyncio.gather(*clients)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert not alive, "its workers end with it"

    again = start()
    backend = await call(session, again, "GET", "backends/api")
    assert backend["weight"] == 3.0
    answer = await call(session, again, "POST", "v1/chat/completions", key["key"], json=HELLO)
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert (await call(session, again, "GET", "status"))["strategy"] == "round_robin"
    assert (await call(session, again, "GET", "aliases/best"))["targets"] == ["api:far"]
    (kept,) = (await call(session, again, "GET", "keys"))["keys"]
    again.end(signal.SIGTERM)

    connection = sqlite3.connect(tmp_path / "uia.sqlite3")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    logged = {name for (name,) in connection.execute("SELECT id FROM requests")}
    connection.close()
    lost = {name: at - when for name, when in ended.items() if name not in logged}
    assert max(lost.values(), default=0.0) <= PROMISED_S
    # Charges are written once a second, after the moment they are due; the log's own bound is tighter.
    charged = sum(count for name, count in tokens.items() if at - ended[name] > 2.5 * PROMISED_S)
    assert charged <= kept["tokens_used"] <= sum(tokens.values()) + answer["usage"]["total_tokens"] * CLIENTS


async def test_two_servers_on_one_store_share_keys_and_keep_their_own_log(start, session, api, tmp_path):
    here, there = start(), start()
    for server in (here, there):
        await call(session, server, "POST", "backends", expected=201, json={"endpoint": api.url, "id": "api"})
    key = await call(session, here, "POST", "keys", expected=201, json={"name": "k", "scopes": ["infer"]})
    await until(session, there, "v1/models", key["key"], 200)
    for server in (here, there, here):
        await call(session, server, "POST", "v1/chat/completions", key["key"], json=HELLO)
    async with asyncio.timeout(30):
        while (await call(session, there, "GET", "keys"))["keys"][0]["tokens_used"] != 15:
            await asyncio.sleep(0.1)
    await call(session, there, "DELETE", f"keys/{key['id']}")
    await call(session, there, "GET", "v1/models", key["key"], expected=401)
    await until(session, here, "v1/models", key["key"], 401)
    for server in (here, there):
        server.end(signal.SIGTERM)
        assert server.process.returncode == 0
    connection = sqlite3.connect(tmp_path / "uia.sqlite3")
    counts = connection.execute(
        "SELECT count(*) FROM requests WHERE principal = 'key:k' GROUP BY instance_id ORDER BY 1"
    )
    assert [count for (count,) in counts] == [1, 2]
    connection.close()
