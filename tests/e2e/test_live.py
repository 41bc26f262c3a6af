"""The widgets that follow a service, in a real JupyterLab: every action, every state, and how they look."""

import contextlib
import itertools
import json
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e import checks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(170)]

SERVE = """
import time, uia_lab
lab = uia_lab.connect()

def words(pause, inputs):
    if inputs[-1]["content"] == "break":
        raise RuntimeError("the wheel came off")
    for word in inputs[-1]["content"].split():
        time.sleep(pause)
        yield word + " "

@lab.serve(model="demo", name="Quick")
def quick(inputs):
    yield from words(0.01, inputs)

@lab.serve(model="demo", name="Steady and slow")
def steady(inputs):
    yield from words(0.03, inputs)
"""
BUSY = "import time\ntime.sleep(120)"


def by_id(scope, name):
    return scope.locator(f'[data-testid="{name}"]')


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return value


def ids(server):
    return {item["name"]: item["id"] for item in server.status()["backends"]}


def chat(server, text="so it goes", backend=None, model="demo"):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    if backend:
        body["uia"] = {"backend_id": backend}
    with contextlib.suppress(urllib.error.HTTPError):
        return server.ask("POST", "v1/chat/completions", body)


def traffic(server, count=12):
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda _: chat(server), range(count)))


@pytest.fixture
def shown(notebook, run_all):
    """A notebook that serves two functions, and then a widget, by the cell that shows it."""

    def show(cell, name, *more):
        page = notebook([SERVE, cell, *more])
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        run_all()
        widget = by_id(page, name)
        widget.wait_for(timeout=60_000)
        return page, widget

    return show


def test_look(shown, server):
    page, board = shown("lab", "uia-dashboard")
    print(ids(server)); checks.picture(board, "look_first")
    for _ in range(8):
        traffic(server, 6)
        time.sleep(0.5)
    for _ in range(5):
        chat(server, "break", ids(server)["Quick"])
    for _ in range(8):
        traffic(server, 6)
        time.sleep(0.5)
    checks.picture(board, "look_status")
    by_id(board, "uia-board-open").first.click()
    page.wait_for_timeout(700)
    checks.picture(board, "look_details")
    by_id(board, "uia-tab-balance").click()
    page.wait_for_timeout(2500)
    checks.picture(board, "look_balance")
    by_id(board, "uia-tab-requests").click()
    page.wait_for_timeout(1500)
    by_id(board, "uia-route-open").first.click()
    page.wait_for_timeout(700)
    checks.picture(board, "look_requests")
    by_id(board, "uia-route-explain").click()
    page.wait_for_timeout(700)
    checks.picture(board, "look_explain")
