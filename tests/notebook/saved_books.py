"""Notebooks that are executed and saved as people do it, by nbconvert in a process of its own."""

import os
import subprocess
import sys

import nbformat

LARGEST = 300_000
"""Characters that a saved notebook may have."""


def convert(folder, *options):
    """Runs nbconvert in a folder."""
    environment = {
        **os.environ,
        "UIA_STORE_PATH": str(folder / "uia.sqlite3"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    subprocess.run(
        [sys.executable, "-m", "nbconvert", *options],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        timeout=150,
    )


def executed(folder, cells):
    """Executes the cells as ``book.ipynb`` in the folder, which it gives back."""
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    (folder / "book.ipynb").write_text(nbformat.writes(book))
    convert(folder, "--to=notebook", "--execute", "--inplace", "book.ipynb")
    return folder
