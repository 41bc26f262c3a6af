"""ModelManager, clicked: load with a bar, unload, device, idle time, filter, another one, and a refusal."""

import pytest

from tests.e2e import checks
from tests.e2e.cells import by_id, kept_outputs, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

SMALL = "SmolLM2-135M-Instruct"


def row(page, model=SMALL):
    return page.locator(f'[data-testid="uia-models-row"][data-model="{model}"]').first


def state(page, model=SMALL):
    return row(page, model).get_attribute("data-state")


def act(page, model=SMALL):
    return row(page, model).locator('[data-testid="uia-models-act"]')


def test_models_are_loaded_and_unloaded(notebook, run_all, axe, server):
    server.ask("POST", "models/unload", {"model_id": "smollm2"})
    page = notebook(["import uia_lab\nlab = uia_lab.connect()\nlab.models"])
    run_all()
    manager = by_id(page, "uia-models")
    manager.wait_for(timeout=60_000)
    row(page).wait_for()
    assert state(page) == "unloaded"
    assert "~" in row(page).inner_text(), "the estimate is there before the load"
    until(lambda: "memory free" in by_id(page, "uia-models-facts").inner_text(), 60)
    keep = row(page).locator('[data-testid="uia-models-keep"]')
    keep.select_option("300")
    act(page).click()
    until(lambda: state(page) == "loading")
    checks.picture(manager, "models_loading")
    until(lambda: state(page) == "loaded", 60)
    until(lambda: keep.input_value() == "300")
    keep.select_option("14400")
    listed = lambda: {each["model_id"]: each for each in server.ask("GET", "models")["models"]}  # noqa: E731
    until(lambda: listed()[SMALL]["keep_alive"] == 14400)
    by_id(page, "uia-models-name").fill("no-such-model")
    by_id(page, "uia-models-other").click()
    by_id(page, "uia-models-error").filter(has_text="no-such-model").wait_for()
    assert not checks.violations(page, axe, manager)
    for theme in checks.themes(page):
        checks.picture(manager, f"models_{theme}")
    checks.narrow(page, manager)
    assert not checks.overflowing(manager)
    checks.picture(manager, "models_narrow")
    checks.wide(manager)
    act(page, "no-such-model").click()
    until(lambda: row(page, "no-such-model").count() == 0)
    act(page).click()
    until(lambda: state(page) == "unloaded", 30)
    assert listed()[SMALL]["state"] == "unloaded"
    kept = "".join("".join(data.get("text/html", "")) for data in kept_outputs(page, server))
    assert SMALL in kept


def test_what_does_not_fit_is_refused_with_the_numbers(notebook, run_all, axe):
    local = (
        "import uia_lab\nfrom uia_lab.notebook.local_transport import InProcessTransport\n"
        "lab = uia_lab.Lab(InProcessTransport())\n"
        "lab._transport._service.models._memory = lambda: 50_000_000\nlab.models"
    )
    page = notebook([local, "lab.models.load('smollm2')"])
    run_all()
    row(page).wait_for(timeout=60_000)
    act(page).click()
    error = by_id(page, "uia-models-error").filter(has_text="GB are free")
    error.wait_for()
    assert "needs 0." in error.inner_text()
    failed = by_id(page, "uia-not-loaded")
    failed.wait_for()
    assert "GB are free" in failed.inner_text()
    for theme in checks.themes(page):
        checks.picture(by_id(page, "uia-models"), f"models_refused_{theme}")


def test_a_load_shows_a_bar_and_leaves_a_line(notebook, run_all, server, axe):
    server.ask("POST", "models/unload", {"model_id": "smollm2"})
    page = notebook(["import uia_lab\nlab = uia_lab.connect()\nlab.models.load('smollm2', keep_alive=600)"])
    page.evaluate(
        """() => {
          window.bars = 0;
          const count = () => { window.bars += document.querySelectorAll('.uia-load .uia-progress').length; };
          new MutationObserver(count)
            .observe(document.body, {childList: true, subtree: true});
        }"""
    )
    run_all()
    line = by_id(page, "uia-loaded")
    line.wait_for(timeout=60_000)
    assert "is loaded on cpu" in line.inner_text()
    assert "after 10 min idle" in line.inner_text()
    assert page.evaluate("window.bars") > 0
    assert by_id(page, "uia-loaded").count() == 1, "the value of the cell does not say it twice"


def test_the_filter_of_many(notebook, run_all):
    cell = (
        "import uia_lab\nfrom uia_lab.notebook.widgets.model_manager import ModelManager\n"
        "lab = uia_lab.connect()\n"
        "rows = [dict(model_id=f'model-{n}', state='loadable', task='fill-mask', engine='transformers', "
        "size=n * 10**8) for n in range(1, 12)]\n"
        "class Still(ModelManager):\n    async def _look(self): ...\n"
        "Still(lab._transport, lab._async.spawn, rows)"
    )
    page = notebook([cell])
    run_all()
    by_id(page, "uia-models-filter").fill("model-11", timeout=60_000)
    until(lambda: by_id(page, "uia-models-row").locator("visible=true").count() == 1)
