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
from dataclasses import dataclass, field
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


def pytest_collection_modifyitems(items):
    """Puts the browser's tests last: from the first on, Playwright's event loop runs and no other can."""
    items.sort(key=lambda item: "browser" in getattr(item, "fixturenames", ()))


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A JupyterLab under /nb/ with the extension on, which can be stopped and started again at its port."""

    home: Path
    root: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=_free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self):
        """Its address."""
        return f"http://127.0.0.1:{self.port}/nb/"

    def start(self):
        """Starts it and waits until it answers."""
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}"),
            *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.root}", "--ServerApp.base_url=/nb/"),
            *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--allow-root"),
        ]
        log = self.home / "server.log"
        with log.open("ab") as out:
            environment = _environment(self.home, self.token)
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.status()
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not come up:\n{log.read_text()[-4000:]}")
                time.sleep(0.3)

    def stop(self):
        """Ends it, if it runs."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

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

    def open(self, name):
        """The address that opens a notebook."""
        return f"{self.url}lab/tree/{name}?token={self.token}&reset"

    def status(self):
        """The status report."""
        return self.ask("GET", "status")


def _environment(home, token):
    config, settings = home / "config", home / "settings"
    (config / "jupyter_server_config.d").mkdir(parents=True, exist_ok=True)
    enabled = ROOT / "jupyter_server_extension/jupyter_server_config.d/uia_lab_server.json"
    shutil.copy(enabled, config / "jupyter_server_config.d")
    news = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
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
        "LIBP2P_ENABLE": "true",
        "LIBP2P_ENABLE_MDNS": "false",
        "LIBP2P_NETWORK": f"e2e-{secrets.token_hex(4)}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.fixture(scope="session")
def server(tmp_path_factory, models):
    """A JupyterLab for all tests; both models are in the cache."""
    server = Server(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("root"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def restartable(tmp_path, models):
    """A JupyterLab of the test's own."""
    for name in ("home", "root"):
        (tmp_path / name).mkdir()
    server = Server(tmp_path / "home", tmp_path / "root")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def write_notebook():
    """Writes a notebook of code cells and gives the address that opens it."""
    return _write_notebook


def _write_notebook(server, cells):
    import nbformat.v4 as nb

    name = f"{secrets.token_hex(4)}.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nb.new_notebook(
        cells=[nb.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    (server.root / name).write_text(nb.writes(content))
    return server.open(name)


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
            shutil.copy(source, server.root / source.name)
            address = server.open(source.name)
        else:
            address = _write_notebook(server, source)
        page.goto(address)
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell", timeout=60_000)
        return page

    return show


@pytest.fixture
def run_all_in():
    """Runs all cells of the notebook in front of a page, without waiting for their end."""
    return lambda page: page.evaluate(RUN_ALL)


@pytest.fixture
def run_all(page):
    """Runs all cells of the notebook in front, without waiting for their end."""
    return lambda: page.evaluate(RUN_ALL)


@pytest.fixture
def fault_server():
    """A chat server that breaks as it is told, on a loop of its own; it can be killed and comes back."""
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
