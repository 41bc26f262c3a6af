"""A real JupyterLab with our extension, and a real browser in front of it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from tests.node import NPM

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
AXE = "axe-core@4.14.1"

RUN_ALL = """async () => {
  const widget = jupyterapp.shell.currentWidget;
  await widget.context.ready;
  await widget.sessionContext.ready;
  jupyterapp.commands.execute('notebook:run-all-cells');
}"""


@dataclass
class Server:
    """A running JupyterLab."""

    url: str
    token: str
    root: Path

    def ask(self, method, path, body=None, timeout=60):
        """The decoded answer of a door."""
        request = urllib.request.Request(
            f"{self.url}uia/{path}",
            json.dumps(body).encode() if body is not None else None,
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)

    def status(self):
        """The status report."""
        return self.ask("GET", "status")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(home, token):
    config, settings = home / "config", home / "settings"
    (config / "jupyter_server_config.d").mkdir(parents=True)
    enabled = ROOT / "jupyter_server_extension/jupyter_server_config.d/uia_lab_server.json"
    shutil.copy(enabled, config / "jupyter_server_config.d")
    news = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    paths = [str(ROOT), str(ROOT / "jupyter_server_extension"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.fixture(scope="session")
def server(tmp_path_factory, models):
    """JupyterLab under /nb/ with the extension on; both models are in the cache."""
    home, root = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("root")
    token, port = secrets.token_hex(16), _free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--ServerApp.base_url=/nb/"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--allow-root"),
    ]
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=_environment(home, token), stdout=out, stderr=out)
    server = Server(f"http://127.0.0.1:{port}/nb/", token, root)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                server.status()
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not come up:\n{log.read_text()[-4000:]}")
                time.sleep(0.3)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    from playwright import sync_api as playwright

    if not Path(CHROMIUM).exists():
        pytest.fail("chromium is missing: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The source of axe-core, which finds what keeps people out."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(
        [*NPM, "install", "--no-fund", "--no-audit", "--prefix", str(folder), AXE],
        check=True,
        capture_output=True,
        timeout=110,
    )
    return (folder / "node_modules/axe-core/axe.min.js").read_text("utf-8")


@pytest.fixture
def page(server, browser):
    """A fresh page; at the end, no error of the page and no request to anybody else."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 1500}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors, strangers = [], []
    home = urlsplit(server.url).netloc

    def note(address):
        parts = urlsplit(address)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != home:
            strangers.append(address)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: note(request.url))
    page.on("websocket", lambda socket: note(socket.url))
    yield page
    context.close()
    assert not errors
    assert not strangers


@pytest.fixture
def notebook(server, page):
    """Opens a notebook, given by its path or its cells, and gives the page."""

    def show(source):
        if isinstance(source, Path):
            name = source.name
            shutil.copy(source, server.root / name)
        else:
            import nbformat.v4 as nb

            name = f"{secrets.token_hex(4)}.ipynb"
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
            cells = [nb.new_code_cell(cell) for cell in source]
            content = nb.new_notebook(cells=cells, metadata={"kernelspec": kernel})
            (server.root / name).write_text(nb.writes(content))
        page.goto(f"{server.url}lab/tree/{name}?token={server.token}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell", timeout=60_000)
        return page

    return show


@pytest.fixture
def run_all(page):
    """Runs all cells of the notebook in front, without waiting for their end."""
    return lambda: page.evaluate(RUN_ALL)


@pytest.fixture
def fault_server():
    """A chat server of :mod:`tests.upstreams.fault_server` on a loop of its own, to be switched and killed."""
    from anyio.from_thread import start_blocking_portal

    from tests.upstreams.fault_server import Fault, FaultServer

    with start_blocking_portal() as portal:
        upstream = FaultServer()
        portal.call(upstream.__aenter__)

        def switch(fault, **settings):
            portal.call(lambda: upstream.switch(Fault(fault), **settings))

        yield SimpleNamespace(
            url=upstream.url,
            switch=switch,
            kill=lambda: switch(Fault.REFUSED),
            revive=lambda: switch(Fault.NONE),
            upstream=upstream,
        )
        portal.call(upstream.__aexit__, None, None, None)
