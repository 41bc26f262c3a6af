"""A notebook with every widget, executed and saved: small, and readable where no widget runs."""

import json
import re
from pathlib import Path

import pytest

from tests.notebook.saved_books import LARGEST, convert, executed
from uia_lab.notebook.widgets import assets
from uia_lab.notebook.widgets.assets import css, shared

pytestmark = pytest.mark.timeout(180)

SERVE = """
import uia_lab
lab = uia_lab.connect()
@lab.serve(model="shout")
def shout(inputs):
    yield "LOUD"
lab.generate("x", "shout").text
"""
LIVE = (
    "lab",
    "lab.status()",
    "lab.balance()",
    "lab.explain(model='shout')",
    "lab.explain(model='shout')",
)
OTHERS = (
    "lab.peers()",
    "lab.generate('x', 'shout')",
    "lab.chat('shout')",
    "lab.compare('x', ['shout'])",
    "lab.models",
)
# Shown only while a model is loaded.
NOT_IN_IT = {"load_bar.js"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return executed(tmp_path_factory.mktemp("saved"), (SERVE, *LIVE, *OTHERS))


def test_it_is_small_and_has_the_code_once(saved):
    raw = (saved / "book.ipynb").read_text()
    assert len(raw) < LARGEST
    (state,) = json.loads(raw)["metadata"]["widgets"].values()
    texts = [it["state"].get("text", "") for it in state["state"].values()]
    assert texts.count(shared()) == texts.count(css()) == 1
    static = Path(assets.__file__).parent.parent / "static"
    modules = {
        path.name for path in static.glob("*.js") if "\nexport default { " in path.read_text()
    } - NOT_IN_IT
    assert all(texts.count(assets.text(name)) == 1 for name in modules), "every widget is in it, each once"
    views = [it["state"] for it in state["state"].values() if "_esm" in it["state"]]
    assert len(views) >= len(modules)
    assert all(len(json.dumps(view)) < 20_000 for view in views if "_sources" in view)


def test_its_outputs_read_without_a_widget(saved):
    convert(saved, "--to=markdown", "book.ipynb")
    text = (saved / "book.md").read_text()
    assert "shout serves text-generation" in re.sub(r"shout-\S+", "shout", text)
    assert text.count("best_performance") >= 4
    assert "100 %" in text
    bundles = [
        output["data"]
        for cell in json.loads((saved / "book.ipynb").read_text())["cells"][1 : len(LIVE) + 1]
        for output in cell["outputs"]
    ]
    assert len(bundles) == len(LIVE)
    assert all("<table>" in "".join(data["text/html"]) for data in bundles)


def test_as_jupyterlab_saves_it_the_page_made_of_it_has_tables(saved):
    """JupyterLab keeps no state of widgets unless it is told to; nbconvert then takes the tables."""
    book = json.loads((saved / "book.ipynb").read_text())
    del book["metadata"]["widgets"]
    (saved / "plain.ipynb").write_text(json.dumps(book))
    convert(saved, "--to=html", "--template=basic", "plain.ipynb")
    page = (saved / "plain.html").read_text()
    assert page.count("<table>") >= len(LIVE)
    assert "widget-view" not in page
