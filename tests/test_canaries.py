"""Secrets are planted wherever one can be, everything is done, and all that comes out is searched."""

import asyncio
import base64
import json
import os
import subprocess
import sys

import aiohttp
import nbclient
import nbconvert
import nbformat
import psutil
import pytest

from tests.server_extension.jupyter_process import finish, launch, listening, start_kernel, with_token
from tests.upstreams.scripted_api import ScriptedApi, words

TOKEN_OF_SERVE = "canary-of-the-administrator-0001"
CANARIES = {
    "environment": "canary-of-the-environment-0002",
    "file": "canary-of-a-file-0003",
    "wrong": "canary-of-a-wrong-key-0004",
    "unused": "canary-of-an-unused-provider-0005",
    "prompt": "canary-of-a-prompt-0006",
}
SERVE = """
import logging, sys
logging.basicConfig(level=0, format="%(levelname)s %(name)s %(message)s")
from uia_lab.__main__ import main
sys.exit(main(["serve", "--port", "0"]))
"""


class Emitted:
    """Everything that came out, by where it came from."""

    def __init__(self):
        self.texts = {}

    def add(self, where, text):
        data = text if isinstance(text, bytes) else str(text).encode()
        self.texts[f"{len(self.texts)} {where}"] = data

    def search(self, secrets):
        for name, secret in secrets.items():
            raw = secret.encode()
            for form in (raw, base64.b64encode(raw).rstrip(b"=")):
                found = [where for where, data in self.texts.items() if form in data]
                assert not found, f"the {name} is in: {found}"


@pytest.fixture
def serve(tmp_path, models):
    secret_file = tmp_path / "secret"
    secret_file.write_text(CANARIES["file"] + "\n")
    secret_file.chmod(0o600)
    config = tmp_path / "config"
    config.mkdir()
    (config / "jupyter_server_config.json").write_text(
        json.dumps({"InferenceServiceConfig": {"api_key_files": {"FILE_KEY": str(secret_file)}}})
    )
    environment = os.environ | {
        "UIA_LAB_SERVE_TOKEN": TOKEN_OF_SERVE,
        "ENVIRONMENT_API_KEY": CANARIES["environment"],
        "MISTRAL_API_KEY": CANARIES["unused"],
        "JUPYTER_CONFIG_DIR": str(config),
        "UIA_STORE_PATH": str(tmp_path / "store" / "uia.sqlite3"),
    }
    log = tmp_path / "log"
    with log.open("wb") as error:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE], env=environment, stdout=subprocess.PIPE, stderr=error, text=True
        )
    with process:
        line = process.stdout.readline()
        assert line.startswith("uia_lab serves at "), log.read_text()
        yield process, line.split()[-1].removesuffix("v1"), log, tmp_path / "store"
        process.kill()


async def echo_json(request, response):
    """What careless upstreams say: the key they were given."""
    key = request.headers["Authorization"].removeprefix("Bearer ")
    error = {"error": {"message": f"Incorrect API key provided: {key}. Yours: {key}", "code": "wrong"}}
    await response.write(json.dumps(error).encode())


async def echo_event(request, response):
    """The same, in the middle of a stream, as an event that is broken."""
    await response.write(b"data: {not json " + request.headers["Authorization"].encode() + b"\n\n")


async def test_no_secret_is_in_anything_that_is_emitted(serve):
    process, url, log, store = serve
    emitted = Emitted()
    secrets = dict(CANARIES, administrator=TOKEN_OF_SERVE)
    async with ScriptedApi() as api, aiohttp.ClientSession() as session:

        async def call(method, path, key=TOKEN_OF_SERVE, expected=200, secret_body=False, **options):
            headers = {"Authorization": f"Bearer {key}"}
            async with session.request(method, url + path, headers=headers, **options) as response:
                body = await response.read()
                assert response.status == expected, (path, response.status, body)
                emitted.add(f"{method} {path}", f"{response.raw_headers}{b'' if secret_body else body}")
                return body

        api.lists("good", "bad", "worse", "broken", "stray")
        chats = {
            "good": (200, words("fine")),
            "bad": (401, echo_json),
            "worse": (500, echo_json),
            "broken": (200, echo_event),
            "stray": (302, b"", {"Location": f"{api.url}/elsewhere?key={CANARIES['environment']}"}),
        }
        for name, env in (("one", "ENVIRONMENT_API_KEY"), ("two", "FILE_KEY")):
            body = {"endpoint": api.url, "id": name, "api_key_env": env}
            await call("POST", "backends", expected=201, json=body)
        given = {asked.headers.get("Authorization") for asked in api.asked}
        assert {f"Bearer {CANARIES['environment']}", f"Bearer {CANARIES['file']}"} <= given
        made = json.loads(
            await call(
                "POST", "keys", expected=201, secret_body=True, json={"name": "k", "scopes": ["infer"]}
            )
        )
        secrets["scoped key"] = made["key"]
        said = [{"role": "user", "content": CANARIES["prompt"]}]
        for name, answer in chats.items():
            api.answers["POST", "/v1/chat/completions"] = answer
            for stream in (False, True):
                for backend in ("one", "two"):
                    body = {"model": name, "messages": said, "stream": stream, "uia": {"backend": backend}}
                    async with session.post(
                        url + "v1/chat/completions", json=body, headers=with_token(made["key"])
                    ) as response:
                        emitted.add(f"chat {name}", f"{response.raw_headers}{await response.read()}")
        await call("POST", "v1/embeddings", key=made["key"], json={"model": "all-MiniLM-L6-v2", "input": "x"})
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        for worker in workers:
            emitted.add("environment of a worker", worker.environ())
            emitted.add("command of a worker", worker.cmdline())
        await call("GET", "status", key=CANARIES["wrong"], expected=401)
        await call("GET", f"status?token={CANARIES['wrong']}", key=CANARIES["wrong"], expected=401)
        await call("POST", "v1/chat/completions", expected=400, data=b"{" + CANARIES["wrong"].encode())
        await call(
            "POST", "backends", expected=400, json={"endpoint": f"http://u:{CANARIES['wrong']}@127.0.0.1"}
        )
        await call("POST", "backends/one/probe")
        await call("POST", "explain", json={"task": "generation", "model": "good"})
        for path in ("status", "ready", "backends", "backends/one", "keys", "metrics", "requests", "aliases"):
            await call("GET", path)
        for item in json.loads(await call("GET", "requests?limit=1000"))["requests"]:
            await call("GET", f"requests/{item['id']}")
        async with session.ws_connect(f"{url}ws/x?token={TOKEN_OF_SERVE}") as socket:
            for message in (
                {"type": "status", "details": "full"},
                {"type": "subscribe", "topics": ["status", "backend", "inference", "queue"]},
            ):
                await socket.send_json(message)
            for _ in range(6):
                async with asyncio.timeout(30):
                    emitted.add("socket", (await socket.receive()).data)
        notebook = await asyncio.to_thread(executed, url)
        assert "<NewKey" in notebook
        emitted.add("notebook", notebook)
        await call("DELETE", f"keys/{made['id']}")
    process.terminate()
    await asyncio.to_thread(process.wait, 30)
    emitted.add("standard output", process.stdout.read())
    emitted.add("log", log.read_bytes())
    files = list(store.iterdir())
    assert files
    for file in files:
        emitted.add(f"store {file.name}", file.read_bytes())
    emitted.search(secrets)


def executed(url):
    """A notebook that does what people do, run in a real kernel and exported; as JSON, HTML and Markdown."""
    cells = [
        "%load_ext uia_lab\nimport uia_lab\nlab = uia_lab.connect()\nlab",
        "lab.status()",
        "made = lab.keys.create('nb', 'infer')\nmade",
        "lab.keys",
        "lab._transport, vars(lab)",
        "lab.generate('x', model='nobody-serves-this')",
        "%uia status",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    environment = {"UIA_LAB_URL": url, "UIA_LAB_TOKEN": TOKEN_OF_SERVE}
    client = nbclient.NotebookClient(notebook, timeout=60, allow_errors=True)
    # Its own way to run without a loop leaves one unclosed in this thread.
    asyncio.run(client.async_execute(env=os.environ | environment))
    text = nbformat.writes(notebook)
    for exporter in (nbconvert.HTMLExporter, nbconvert.MarkdownExporter):
        text += exporter().from_notebook_node(notebook)[0]
    return text


async def test_jupyters_own_debug_log_tells_no_key(tmp_path):
    jupyter = launch(tmp_path, "--debug")
    try:
        await listening(jupyter)
        async with aiohttp.ClientSession() as session:
            _, told = await start_kernel(session, jupyter, with_token())
            body = {"name": "k", "scopes": ["infer", "read"]}
            async with session.post(jupyter.doors + "keys", json=body, headers=with_token()) as response:
                key = (await response.json())["key"]
            async with session.get(jupyter.doors + "v1/models", headers=with_token(key)) as response:
                assert response.status == 200
            async with session.ws_connect(f"{jupyter.doors}ws/x?token={key}", headers={}) as socket:
                await socket.receive()
    finally:
        finish(jupyter)
    emitted = Emitted()
    emitted.add("log", jupyter.log.read_bytes())
    assert b"Kernel args (excluding env)" in jupyter.log.read_bytes()
    emitted.search({"kernel's key": told["UIA_LAB_TOKEN"], "scoped key": key})
