"""A notebook of what generates and loads, executed and saved: small, and readable where no widget runs."""

import json

import pytest

from tests.notebook.saved_books import LARGEST, convert, executed
from uia_lab.notebook.widgets.assets import shared

pytestmark = pytest.mark.timeout(180)

CELLS = (
    """
import uia_lab
lab = uia_lab.connect()
@lab.serve(model='shout')
def shout(inputs):
    yield '# LOUD\\n\\n' + inputs[-1]['content'].upper() + ' <script>'
""",
    "lab.generate('one', 'shout')",
    "chat = lab.chat('shout', system='be loud')\nchat",
    "chat.send('two').wait(60);",
    "lab.compare('three', ['shout'])",
    "lab.models",
    "for word in 'four five six seven'.split():\n    lab.generate(word, 'shout', wait=False)",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return executed(tmp_path_factory.mktemp("saved"), CELLS)


def outputs(saved, cell):
    book = json.loads((saved / "book.ipynb").read_text())
    return [output["data"] for output in book["cells"][cell]["outputs"] if "data" in output]


def test_every_text_is_in_it(saved):
    raw = (saved / "book.ipynb").read_text()
    assert len(raw) < LARGEST
    (state,) = json.loads(raw)["metadata"]["widgets"].values()
    texts = [it["state"].get("text", "") for it in state["state"].values()]
    assert texts.count(shared()) == 1
    for cell, said in ((1, "ONE"), (2, "TWO"), (4, "THREE")):
        text = "".join("".join(data["text/plain"]) for data in outputs(saved, cell))
        html = "".join("".join(data["text/html"]) for data in outputs(saved, cell))
        assert said in text, cell
        assert said in html, cell
        assert "<script>" not in html, cell
    assert "SmolLM2-135M-Instruct" in "".join(outputs(saved, 5)[0]["text/html"])
    widget = "application/vnd.jupyter.widget-view+json"
    assert widget not in outputs(saved, 1)[0], "the still form has taken the widget's place"
    assert widget not in outputs(saved, 4)[0]


def test_the_page_and_the_markdown_made_of_it_read_well(saved):
    book = json.loads((saved / "book.ipynb").read_text())
    # JupyterLab keeps no state of widgets unless it is told to.
    del book["metadata"]["widgets"]
    (saved / "plain.ipynb").write_text(json.dumps(book))
    convert(saved, "--to=html", "--template=basic", "plain.ipynb")
    page = (saved / "plain.html").read_text()
    assert "widget-view" not in page
    for said in ("ONE", "TWO", "THREE", "<h1>LOUD</h1>", "&lt;script&gt;"):
        assert said in page, said
    convert(saved, "--to=markdown", "plain.ipynb")
    text = (saved / "plain.md").read_text()
    assert "TWO" in text
