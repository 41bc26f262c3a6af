"""Run All, nbmake and papermill: what was generated is in the notebook that they leave, and reads well."""

import os
import re
import subprocess
import sys

import nbconvert
import nbformat
import pytest

pytestmark = pytest.mark.timeout(240)

LARGEST = 300_000
CELLS = (
    "%load_ext uia_lab",
    """\
import uia_lab
lab = uia_lab.connect()
@lab.serve(model="echo")
def echo(inputs):
    for word in inputs[-1]["content"].split():
        yield word + " "
""",
    'lab.generate("spoken in one cell", "echo")',
    'later = lab.generate("spoken while others run", "echo", wait=False)',
    "%%uia --model echo --into answer\nasked by a {'ma' + 'gic'}",
    "%%uia --model echo --no-stream\nwhole at once",
    "print(later.wait().text.upper(), answer.text.title())",
    'lab.map(["first of many", "second of many"], model="echo")',
    "%uia status",
    "%uia explain echo",
    "lab.replay('round_robin')",
    "lab.plot_share()",
    "%uia requests 3",
    "%unload_ext uia_lab",
)
SAID = {
    2: "spoken in one cell",
    3: "spoken while others run",
    4: "asked by a magic",
    5: "whole at once",
    6: "SPOKEN WHILE OTHERS RUN",
    7: "second of many",
    8: "best_performance",
    9: "echo",
    10: "simulated round_robin",
    11: "Share by backend",
    12: "echo",
}
RUNNERS = {
    "run_all": ("nbconvert", "--to=notebook", "--execute", "--inplace", "book.ipynb"),
    "nbmake": (
        "pytest", "--nbmake", "--overwrite", "--nbmake-timeout=120", "-p", "no:cacheprovider",
        "--rootdir=.", "-c", "empty.ini", "-q", "book.ipynb",
    ),
    "papermill": ("papermill", "--no-progress-bar", "book.ipynb", "book.ipynb"),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNNERS)
def executed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    (folder / "book.ipynb").write_text(nbformat.writes(book))
    (folder / "empty.ini").write_text("[pytest]\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UIA_", "JPY_"))}
    ran = subprocess.run(
        [sys.executable, "-m", *RUNNERS[request.param]],
        cwd=folder,
        env={
            **kept,
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTER_PLATFORM_DIRS": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    path = folder / "book.ipynb"
    assert path.stat().st_size < LARGEST
    return nbformat.read(path, 4)


def words(cell):
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [
            output.get("text", ""),
            data.get("text/plain", ""),
            re.sub("<[^>]*>", "", data.get("text/html", "")),
        ]
        assert output.output_type != "error", output
    return "\n".join(parts)


def test_every_text_is_in_its_cell(executed):
    cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for number, text in SAID.items():
        assert text in words(cells[number]), (number, cells[number].outputs)
    # A generation is there once, as text and as HTML that need no widget.
    (output,) = cells[2].outputs
    assert {"text/plain", "text/html"} <= set(output.data)
    assert "widget" not in str(output.data.keys())


@pytest.mark.parametrize("exporter", [nbconvert.HTMLExporter, nbconvert.MarkdownExporter])
def test_it_reads_well_elsewhere(executed, exporter):
    page, _ = exporter().from_notebook_node(executed)
    for text in SAID.values():
        assert text in page or text in re.sub("<[^>]*>", "", page), text
    shown = page if exporter is nbconvert.MarkdownExporter else page[page.index("<body") :]
    assert "model not found" not in shown
    assert "Traceback" not in shown
