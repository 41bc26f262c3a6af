"""The names that can be imported from ``uia_lab`` are the same objects as at their homes."""

import subprocess
import sys
from importlib import import_module

import pytest

import uia_lab


@pytest.mark.parametrize("name", sorted(uia_lab._HOMES))
def test_each_name_is_its_home_s(name):
    assert getattr(uia_lab, name) is getattr(import_module(f"uia_lab.{uia_lab._HOMES[name]}"), name)
    assert name in dir(uia_lab)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_here"):
        getattr(uia_lab, "nothing_here")  # noqa: B009 - reading it is the test


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import uia_lab", ["tornado", "aiohttp", "anywidget", "numpy", "traitlets"]),
        (
            "import uia_lab.unified_inference_service",
            ["torch", "transformers", "xllamacpp", "pandas", "IPython"],
        ),
        ("import uia_lab_server.app", ["torch", "transformers", "xllamacpp", "pandas"]),
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(statement, absent):
    check = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    path = ["jupyter_server_extension", "."]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {check}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
