"""A real Jupyter server in a process of its own, with a second extension that plays what users register."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[2]
TOKEN = "the-token-of-this-jupyter-server"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hi there"}]}

# A second extension that stands for what users register.
HELPER = """
import asyncio, os
from tornado.ioloop import PeriodicCallback
from jupyter_server.auth.authorizer import Authorizer
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.records import RequestRecord
from uia_lab.inference_backend_manager import get_backend_manager

class ReadOnly(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return action == "read"

def echo(inputs):
    return inputs[-1]["content"]

def environment():
    return " ".join(name for name in os.environ if name.startswith("UIA_LAB"))

async def endless():
    while True:
        yield "x"
        await asyncio.sleep(0.05)

def _jupyter_server_extension_points():
    return [{"module": "uia_test_helper"}]

def _load_jupyter_server_extension(serverapp):
    def of_alice():
        log = serverapp.web_app.settings["uia_service"].request_log
        if log is None:
            serverapp.io_loop.call_later(0.05, of_alice)
        else:
            log.record(RequestRecord("req-of-alice", "i", "alice", "generation", "m", False, "ok", 1.0, 1.0))
    serverapp.io_loop.call_later(0.05, of_alice)
    if serverapp.shutdown_no_activity_timeout:
        # Jupyter looks once a minute.
        PeriodicCallback(serverapp.shutdown_no_activity, 200).start()
    for function in (echo, environment, endless):
        name = function.__name__
        capabilities = BackendCapabilities({"text-generation"}, {name})
        get_backend_manager().register_backend(name, "gpu", name, function, capabilities)
"""


EXTENSIONS = dict.fromkeys(("uia_lab_server", "uia_test_helper", "jupyter_server_terminals"), True)

# What a kernel is told, and what it finds there: written down by a process that Jupyter starts as one.
KERNEL = """
import json, os, signal, sys, uia_lab
signal.signal(signal.SIGINT, signal.SIG_DFL)
told = {name: os.environ.get(name) for name in ("UIA_LAB_URL", "UIA_LAB_TOKEN")}
lab = uia_lab.connect()
told["where"], told["backends"] = lab.where, [item["id"] for item in lab.status()["backends"]]
lab.close()
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(told, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
signal.pause()
"""


@dataclass
class Jupyter:
    url: str
    process: subprocess.Popen
    log: Path
    folder: Path

    @property
    def doors(self):
        return self.url + "uia/"


def launch(folder, *options, token=TOKEN, extensions=EXTENSIONS, sock=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "uia_test_helper.py").write_text(HELPER)
    spec = folder / "data" / "kernels" / "telling"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-P", "-c", KERNEL, str(folder / "told.json"), "{connection_file}"],
                "display_name": "telling",
                "language": "python",
            }
        )
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "jupyter_server_extension", folder))),
        **({"JUPYTER_TOKEN": token} if token else {}),
        "JUPYTER_NO_CONFIG": "1",
        **{f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                f"--ServerApp.sock={sock}" if sock else f"--port={port}",
                "--ServerApp.port_retries=0", "--ServerApp.base_url=/nb/",
                f"--ServerApp.root_dir={folder}",
                f"--ServerApp.jpserver_extensions={extensions}",
                "--InferenceServiceConfig.enable_hf_server=False", *options,
            ],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Jupyter(f"http://127.0.0.1:{port}/nb/", process, log, folder)


def finish(jupyter):
    jupyter.process.send_signal(signal.SIGTERM)
    try:
        jupyter.process.wait(15)
    finally:
        jupyter.process.kill()
        jupyter.process.wait()


async def listening(jupyter):
    deadline = time.monotonic() + 60
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(jupyter.doors + "health") as response:
                    assert response.status == 200, jupyter.log.read_text()
                    return
            except aiohttp.ClientConnectionError:
                assert jupyter.process.poll() is None, jupyter.log.read_text()
                assert time.monotonic() < deadline, jupyter.log.read_text()
                await asyncio.sleep(0.1)


def with_token(token=TOKEN):
    return {"Authorization": f"Bearer {token}"}


async def start_kernel(session, jupyter, headers):
    """Starts a kernel; gives its id and what it was told and found."""
    told = jupyter.folder / "told.json"
    told.unlink(missing_ok=True)
    async with session.post(
        jupyter.url + "api/kernels", json={"name": "telling"}, headers=headers
    ) as response:
        assert response.status == 201, await response.text()
        kernel_id = (await response.json())["id"]
    async with asyncio.timeout(60):
        while not told.exists():
            await asyncio.sleep(0.05)
    return kernel_id, json.loads(told.read_text())


async def log_in(session, jupyter):
    """Logs in as a browser does; gives the header that proves the page is Jupyter's own."""
    async with session.get(jupyter.url + "login") as response:
        await response.read()
        xsrf = response.cookies["_xsrf"].value
    data = {"password": TOKEN, "_xsrf": xsrf}
    async with session.post(jupyter.url + "login", data=data, allow_redirects=False) as response:
        assert response.status == 302
    return {"X-XSRFToken": xsrf}
