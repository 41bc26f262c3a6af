"""The widgets that follow a service, in a real JupyterLab: every action, every state, and how they look."""

import contextlib
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from anyio.from_thread import start_blocking_portal

from tests.e2e import checks
from tests.e2e.cells import by_id, until
from tests.upstreams.fault_server import Fault, FaultServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(170)]

CONNECT = "import uia_lab\nlab = uia_lab.connect()\n"
BUSY = "import time\ntime.sleep(120)"
NAMES = {"quick": "Quick", "steady": "Steady and slow", "spare": "A spare with quite a long name of its own"}

# Keeps the sockets of a page, so that a test can speak in the server's place.
KEEP_SOCKETS = """
window.uiaSockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    if (String(given[0]).includes('/uia/ws/')) window.uiaSockets.push(this);
  }
};
"""
# 5,000 reports within 5 s, the last one unmistakable; counts the frames in which the board changed.
STORM = """async () => {
  const socket = window.uiaSockets.find((each) => each.readyState === 1);
  const board = document.querySelector('[data-testid="uia-board"]');
  const told = socket.uiaLast;
  let repaints = 0;
  const seen = new MutationObserver(() => { repaints += 1; });
  seen.observe(board, { childList: true, subtree: true, characterData: true, attributes: true });
  const began = performance.now();
  for (let index = 1; index <= 5000; index += 1) {
    const report = { ...told.data, in_flight: index, total_successful: 100000 + index, total_failed: 7 };
    report.backends = report.backends.map((backend) => ({
      ...backend, metrics: { ...backend.metrics, active_connections: index, successful_requests: index } }));
    const message = { ...told, sequence: told.sequence + index, data: report };
    socket.onmessage({ data: JSON.stringify(message) });
    const due = began + index;
    if (performance.now() < due) await new Promise((next) => setTimeout(next, due - performance.now()));
  }
  const seconds = (performance.now() - began) / 1000;
  await new Promise((next) => setTimeout(next, 300));
  seen.disconnect();
  return { repaints, seconds, totals: board.querySelector('[data-testid="uia-board-totals"]').textContent,
           flight: board.querySelector('[data-testid="uia-board-row"]').cells[3].textContent };
}"""
# A hundred reports with other figures, each long enough on the page to be drawn.
HUNDRED = """async () => {
  const socket = window.uiaSockets.find((each) => each.readyState === 1);
  const told = socket.uiaLast;
  for (let index = 1; index <= 100; index += 1) {
    const figure = (most) => Math.floor(((index * 7919) % 101) / 100 * most);
    const report = { ...told.data, in_flight: figure(40), total_successful: 100 + figure(899) };
    report.backends = report.backends.map((backend) => ({ ...backend,
      status: index % 3 ? 'healthy' : 'initializing', reason: 'so '.repeat(1 + figure(40)),
      metrics: { ...backend.metrics, active_connections: figure(200), current_queue_size: figure(90),
                 successful_requests: figure(90000), failed_requests: figure(900),
                 tokens_per_second: figure(400) / 3,
                 p50_latency_ms: figure(9000) / 3, time_to_first_token_ms: figure(1200) } }));
    socket.onmessage({ data: JSON.stringify({ ...told, sequence: told.sequence + index, data: report }) });
    await new Promise((next) => setTimeout(next, 90));
  }
}"""
HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""
KEEP_LAST = """() => {
  for (const socket of window.uiaSockets) {
    socket.addEventListener('message', (event) => {
      const message = JSON.parse(event.data);
      if (message.type === 'update' && message.topic === 'status') socket.uiaLast = message;
    });
  }
}"""


@pytest.fixture
def fleet(server):
    """Three backends of one model, which break on demand; the traffic is a client's of its own."""
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        made = {}
        for number, (name, title) in enumerate(NAMES.items()):
            made[name] = stack.enter_context(portal.wrap_async_context_manager(FaultServer(6, "demo")))
            portal.call(lambda it=made[name], gap=0.01 + 0.02 * number: it.switch(Fault.SLOW, gap_s=gap))
            fields = {
                "id": name,
                "name": title,
                "type": "api",
                "endpoint": made[name].url,
                "models": ["demo"],
            }
            server.ask("POST", "backends", fields)
            stack.callback(lambda it=name: server.ask("DELETE", f"backends/{it}"))

        def chat(backend=None):
            body = {"model": "demo", "messages": [{"role": "user", "content": "so it goes"}]}
            if backend:
                body["uia"] = {"backend": backend}
            with contextlib.suppress(urllib.error.HTTPError):
                return server.ask("POST", "v1/chat/completions", body)
            return None

        def traffic(count=12):
            with ThreadPoolExecutor(4) as clients:
                list(clients.map(lambda _: chat(), range(count)))

        def switch(name, fault, **settings):
            portal.call(lambda: made[name].switch(fault, **settings))

        def state(name):
            return server.ask("GET", f"backends/{name}")

        yield SimpleNamespace(chat=chat, traffic=traffic, switch=switch, state=state)


@pytest.fixture
def shown(notebook, run_all):
    """A notebook whose first cell shows a widget; gives the page and the widget."""

    def show(cell, name, *more):
        page = notebook([CONNECT + cell, *more])
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        run_all()
        widget = by_id(page, name)
        widget.wait_for(timeout=60_000)
        return page, widget

    return show


def live(page, *names):
    """Waits until these widgets have the page's own connection."""
    for name in names:
        by_id(page, f"{name}-connection").get_by_text("live").wait_for()


def row(board, backend):
    return board.locator(f'[data-testid="uia-board-row"][data-backend="{backend}"]')


def break_and_mend(fleet, name="steady"):
    fleet.switch(name, Fault.CUT, after=0)
    for _ in range(6):
        fleet.chat(name)
    until(lambda: fleet.state(name)["status"] == "unhealthy" or not fleet.state(name)["routable"])
    fleet.switch(name, Fault.SLOW)


def test_an_operator_works_with_the_board(shown, server, fleet):
    page, board = shown("lab.status()", "uia-board")
    live(page, "uia-board")
    break_and_mend(fleet)
    fleet.traffic()
    assert by_id(board, "uia-board-row").count() == len(server.status()["backends"])

    by_id(board, "uia-board-type").select_option("api")
    until(lambda: by_id(board, "uia-board-row").count() == 3)
    until(lambda: "%" in row(board, "quick").locator("td").nth(1).inner_text())
    until(lambda: row(board, "quick").locator("path").get_attribute("d"))

    opener = by_id(row(board, "steady"), "uia-board-open")
    opener.click()
    details = by_id(board, "uia-board-details")
    details.wait_for()
    assert opener.get_attribute("aria-expanded") == "true"
    by_id(details, "uia-board-errors").get_by_text("failed", exact=True).first.wait_for()
    by_id(details, "uia-board-transitions").get_by_text("unhealthy", exact=True).first.wait_for()
    notice = by_id(details, "uia-board-notice")
    checks.picture(board, "board")

    by_id(details, "uia-board-drain").click()
    row(board, "steady").get_by_text("drained", exact=True).wait_for()
    assert fleet.state("steady")["enabled"] is False
    by_id(details, "uia-board-drain").get_by_text("Enable").wait_for()
    by_id(details, "uia-board-drain").click()
    until(lambda: fleet.state("steady")["enabled"])
    by_id(details, "uia-board-probe").click()
    notice.get_by_text("Steady and slow:").wait_for()
    by_id(details, "uia-board-weight").fill("2.5")
    by_id(details, "uia-board-set-weight").click()
    notice.get_by_text("Its weight is 2.5 now.").wait_for()
    assert fleet.state("steady")["weight"] == 2.5
    by_id(details, "uia-board-weight").fill("-1")
    by_id(details, "uia-board-set-weight").click()
    notice.get_by_text("above 0").wait_for()
    by_id(details, "uia-board-close").click()
    details.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.dataset.testid") == "uia-board-open"


def test_the_chart_shows_who_serves_and_who_failed(shown, server, fleet):
    page, chart = shown("lab.balance()", "uia-balance")
    live(page, "uia-balance")
    fleet.traffic()
    break_and_mend(fleet)
    for _ in range(4):
        fleet.traffic(8)
    until(lambda: chart.locator(".uia-band").count() >= 2)
    chart.locator(".uia-mark-down").first.wait_for(state="attached")
    until(lambda: fleet.chat("steady") and chart.locator(".uia-mark-up").count())
    assert "steady" in by_id(chart, "uia-balance-event").inner_text()
    steady = chart.locator('[data-testid="uia-balance-row"][data-backend="steady"]')
    assert int(steady.locator("td").nth(2).inner_text()) >= 1, "failed"

    before = server.status()["strategy"]
    by_id(chart, "uia-balance-strategy").select_option("round_robin")
    by_id(chart, "uia-balance-notice").get_by_text("round_robin").wait_for()
    assert server.status()["strategy"] == "round_robin"
    by_id(chart, "uia-balance-strategy").select_option(before)
    until(lambda: server.status()["strategy"] == before)

    by_id(chart, "uia-balance-window").select_option("900")
    until(lambda: "to" in by_id(chart, "uia-balance-chart").get_attribute("aria-label"))
    by_id(chart, "uia-balance-window").select_option("120")
    by_id(chart, "uia-balance-interval").select_option("5")
    by_id(chart, "uia-balance-interval").select_option("1")
    pause = by_id(chart, "uia-balance-pause")
    pause.click()
    still = by_id(chart, "uia-balance-chart").get_attribute("aria-label")
    page.wait_for_timeout(2500)
    assert by_id(chart, "uia-balance-chart").get_attribute("aria-label") == still
    by_id(chart, "uia-balance-back").fill("300")
    until(lambda: "ago" in chart.locator(".uia-ago").inner_text())
    pause.click()
    until(lambda: chart.locator(".uia-ago").inner_text() == "now")
    until(lambda: by_id(chart, "uia-balance-chart").get_attribute("aria-label") != still)
    box = by_id(chart, "uia-balance-chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 60, box["y"] + 80)
    chart.locator(".uia-cross").wait_for(state="attached")


def test_why_a_backend_serves(shown, server, fleet):
    fleet.traffic(3)
    page, route = shown("lab.explain(model='demo')", "uia-route")
    live(page, "uia-route")
    assert "demo" in by_id(route, "uia-route-sentence").inner_text()
    candidates = by_id(route, "uia-route-candidates")
    assert candidates.locator("tr[data-backend]").count() == len(server.status()["backends"])
    assert candidates.get_by_text("serves", exact=True).count() == 1
    assert candidates.get_by_text("cannot", exact=True).count() >= 1

    fleet.traffic(1)
    until(lambda: by_id(route, "uia-route-request").count() >= 4)
    by_id(route, "uia-route-open").first.click()
    by_id(route, "uia-route-attempts").get_by_text("ok", exact=True).wait_for()
    assert route.locator('[aria-pressed="true"]').count() == 1

    by_id(route, "uia-route-task").select_option("text-embedding")
    by_id(route, "uia-route-model").fill("nobody-has-it")
    by_id(route, "uia-route-explain").click()
    until(lambda: "Nobody can serve" in by_id(route, "uia-route-sentence").inner_text())
    by_id(route, "uia-route-task").select_option("text-generation")
    by_id(route, "uia-route-model").fill("demo")
    by_id(route, "uia-route-model").press("Enter")
    until(lambda: "serves text-generation with model demo" in by_id(route, "uia-route-sentence").inner_text())


def test_the_dashboard_is_what_a_lab_shows(shown, server, fleet):
    page, dashboard = shown("lab", "uia-dashboard", BUSY)
    live(page, "uia-board")
    page.wait_for_function("() => document.body.innerText.includes('[*]')")
    sockets = page.evaluate("performance.getEntriesByType('resource').length")
    assert sockets
    by_id(dashboard, "uia-tab-balance").click()
    live(page, "uia-balance")
    page.keyboard.press("ArrowRight")
    live(page, "uia-route")
    page.keyboard.press("Home")
    by_id(dashboard, "uia-board").wait_for()

    # The kernel is in its cell: everything goes on all the same, actions too.
    before = server.status()["total_successful"]
    fleet.traffic(6)
    until(lambda: f"{before + 6} ok" in by_id(dashboard, "uia-board-totals").inner_text())
    by_id(row(dashboard, "spare"), "uia-board-open").click()
    by_id(dashboard, "uia-board-drain").click()
    until(lambda: fleet.state("spare")["enabled"] is False)
    by_id(dashboard, "uia-tab-balance").click()
    until(lambda: dashboard.locator(".uia-band").count() >= 1)
    by_id(dashboard, "uia-tab-requests").click()
    until(lambda: by_id(dashboard, "uia-route-request").count() >= 6)
    by_id(dashboard, "uia-route-open").first.click()
    by_id(dashboard, "uia-route-attempts").get_by_text("ok", exact=True).wait_for()
    assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 1, "the kernel is still in its cell"
    page.evaluate("jupyterapp.commands.execute('kernelmenu:interrupt')")


def test_every_tab_of_the_dashboard_works(shown, server, fleet):
    fleet.traffic(3)
    page, dashboard = shown("lab", "uia-dashboard")
    live(page, "uia-board")
    names = dashboard.locator('[role="tab"]').all_inner_texts()
    assert names == ["Status", "Balance", "Requests", "Models", "Chat", "Peers"]

    by_id(dashboard, "uia-tab-models").click()
    rows = by_id(dashboard, "uia-models-row")
    until(rows.count)
    by_id(dashboard, "uia-models-name").fill("nobody/has-it")
    by_id(dashboard, "uia-models-name").press("Enter")
    by_id(dashboard, "uia-models-error").get_by_text("nobody/has-it").first.wait_for()

    by_id(dashboard, "uia-tab-chat").click()
    until(lambda: by_id(dashboard, "uia-chat-model").locator("option", has_text="demo").count())
    by_id(dashboard, "uia-chat-model").select_option("demo")
    by_id(dashboard, "uia-chat-input").press_sequentially("so it goes")
    by_id(dashboard, "uia-chat-input").press("Enter")
    by_id(dashboard, "uia-chat-turn-assistant").get_by_text("t0").wait_for()
    by_id(dashboard, "uia-chat-to-code").click()
    by_id(dashboard, "uia-chat-exported").get_by_text("In the cell below").wait_for()
    assert page.locator(".jp-CodeCell").count() == 2
    assert "so it goes" in page.locator(".jp-CodeCell").nth(1).inner_text()

    by_id(dashboard, "uia-tab-peers").click()
    live(page, "uia-peers")
    until(lambda: server.ask("GET", "peers")["node"]["network"] in by_id(dashboard, "uia-peers").inner_text())
    by_id(dashboard, "uia-tab-status").click()
    assert by_id(dashboard, "uia-board").is_visible()
    assert by_id(dashboard, "uia-peers").is_hidden()


def test_without_a_server_the_kernel_answers(shown):
    local = "lab.close()\nlab = uia_lab.connect('local')\n"
    serve = "@lab.serve(model='shout')\ndef shout(inputs):\n    yield 'LOUD'\n"
    page, dashboard = shown(
        f"{local}{serve}lab", "uia-dashboard", "lab.generate('x', 'shout', show=False).text"
    )
    by_id(page, "uia-board-connection").get_by_text("from kernel").wait_for()
    until(lambda: "1 ok" in by_id(dashboard, "uia-board-totals").inner_text(), 40)
    shout = dashboard.locator('[data-backend^="shout-"]')
    by_id(shout, "uia-board-open").click()
    by_id(dashboard, "uia-board-weight").fill("3")
    by_id(dashboard, "uia-board-set-weight").click()
    by_id(dashboard, "uia-board-notice").get_by_text("Its weight is 3 now.").wait_for()
    by_id(dashboard, "uia-board-drain").click()
    shout.get_by_text("drained", exact=True).wait_for()
    by_id(dashboard, "uia-tab-balance").click()
    until(lambda: dashboard.locator(".uia-line").count() >= 2)
    by_id(dashboard, "uia-balance-strategy").select_option("round_robin")
    by_id(dashboard, "uia-balance-notice").get_by_text("round_robin").wait_for()
    by_id(dashboard, "uia-tab-requests").click()
    until(lambda: by_id(dashboard, "uia-route-request").count() == 1)
    by_id(dashboard, "uia-route-open").first.click()
    until(lambda: "shout" in by_id(dashboard, "uia-route-sentence").inner_text())
    by_id(dashboard, "uia-route-model").fill("shout")
    by_id(dashboard, "uia-route-explain").click()
    until(lambda: "Nobody can serve" in by_id(dashboard, "uia-route-sentence").inner_text())


def test_widgets_come_back_when_the_server_was_restarted(restartable, browser, run_all_in, write_notebook):
    server = restartable
    page = browser.new_context(viewport={"width": 1280, "height": 1500}).new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_notebook(server, [CONNECT + "lab"]))
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell", timeout=60_000)
    run_all_in(page)
    live(page, "uia-board")
    by_id(page, "uia-tab-balance").click()
    live(page, "uia-balance")
    before = server.status()["instance_id"]
    server.stop()
    by_id(page, "uia-balance-connection").get_by_text("reconnecting").wait_for()
    server.start()
    after = server.status()["instance_id"]
    assert after != before
    by_id(page, "uia-balance-connection").get_by_text("live").wait_for(timeout=60_000)
    # What JupyterLab itself has to say about it lies above the page and takes the pointer.
    by_id(page, "uia-tab-status").dispatch_event("click")
    live(page, "uia-board")
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
    server.ask("POST", "v1/chat/completions", body)
    until(lambda: "1 ok" in by_id(page, "uia-board-totals").inner_text())
    checks.picture(by_id(page, "uia-dashboard"), "live_restarted")
    by_id(page, "uia-board-open").first.dispatch_event("click")
    by_id(page, "uia-board-probe").dispatch_event("click")
    until(lambda: by_id(page, "uia-board-notice").inner_text())
    page.context.close()
    assert not errors


def test_a_storm_of_events_ends_right_and_calmly(shown, page):
    page.add_init_script(KEEP_SOCKETS)
    page, board = shown("lab.status()", "uia-board")
    live(page, "uia-board")
    page.evaluate(KEEP_LAST)
    by_id(board, "uia-board-type").select_option("")
    until(lambda: page.evaluate("window.uiaSockets.some((socket) => socket.uiaLast)"), 40)
    told = page.evaluate(STORM)
    assert "105000 ok" in told["totals"]
    assert "7 failed" in told["totals"]
    assert told["flight"] == "5000"
    assert told["repaints"] / told["seconds"] < 15, told

    # Nobody looks: the connection rests. Somebody looks again: it is there again, and says how it is now.
    page.evaluate(HIDE, True)
    until(lambda: page.evaluate("window.uiaSockets.every((socket) => socket.readyState > 1)"))
    page.evaluate(HIDE, False)
    until(lambda: page.evaluate("window.uiaSockets.some((socket) => socket.readyState === 1)"))
    until(lambda: "105000 ok" not in by_id(board, "uia-board-totals").inner_text())


def test_nothing_moves_while_figures_change(shown, page, fleet):
    page.add_init_script(KEEP_SOCKETS)
    page, dashboard = shown("lab", "uia-dashboard")
    live(page, "uia-board")
    page.evaluate(KEEP_LAST)
    # From three digits on, as after the first minutes of a day.
    fleet.traffic(101)
    by_id(row(dashboard, "quick"), "uia-board-open").click()
    page.wait_for_timeout(1500)
    for tab in ("status", "balance", "requests"):
        by_id(dashboard, f"uia-tab-{tab}").click()
        page.mouse.move(5, 5)
        page.wait_for_timeout(1000)
        with checks.shifts(page) as seen:
            for _ in range(5):
                fleet.traffic(4)
            page.evaluate(HUNDRED)
        assert not seen, (tab, sorted(set(seen))[:12])


def test_they_look_well_and_keep_nobody_out(shown, fleet, axe):
    page, dashboard = shown("lab", "uia-dashboard")
    live(page, "uia-board")
    for _ in range(5):
        fleet.traffic(8)
        time.sleep(0.4)
    break_and_mend(fleet)
    for _ in range(10):
        fleet.traffic(8)
        time.sleep(0.4)
    fleet.chat("steady")
    fleet.switch("spare", Fault.REFUSED)
    fleet.chat("spare")
    problems = []

    def look(name):
        page.wait_for_timeout(800)
        for theme in checks.themes(page):
            checks.picture(dashboard, f"live_{name}_{theme}")
            for stage in dashboard.locator(".uia-stage:visible").all():
                free = stage.evaluate(
                    "(it) => it.clientWidth - it.querySelector('svg').getBoundingClientRect().width"
                )
                assert abs(free) < 2, (name, theme)
            problems.extend((name, theme, it) for it in checks.violations(page, axe, dashboard))
        checks.narrow(page, dashboard)
        page.wait_for_timeout(300)
        checks.picture(dashboard, f"live_{name}_narrow")
        problems.extend((name, "narrow", it) for it in checks.overflowing(dashboard))
        checks.wide(dashboard)

    look("status")
    for width in (600, 761, 861, 1021, 1200):
        checks.narrow(page, dashboard, width)
        problems.extend(("status", width, it) for it in checks.overflowing(dashboard))
        assert dashboard.locator("th.uia-c-name").last.bounding_box()["width"] > 170, width
    checks.wide(dashboard)
    by_id(row(dashboard, "steady"), "uia-board-open").click()
    look("details")
    by_id(dashboard, "uia-tab-balance").click()
    look("balance")
    by_id(dashboard, "uia-tab-requests").click()
    look("requests")
    by_id(dashboard, "uia-route-open").first.click()
    look("request")
    by_id(dashboard, "uia-route-model").fill("demo")
    by_id(dashboard, "uia-route-explain").click()
    look("explained")
    assert dashboard.locator(".uia-num").first.evaluate("(it) => getComputedStyle(it).textAlign") == "right"
    assert "tabular-nums" in dashboard.evaluate("(it) => getComputedStyle(it).fontVariantNumeric")
    assert not problems, "\n".join(map(str, problems))
