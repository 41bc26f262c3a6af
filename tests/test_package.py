"""The package as people get it: wheel and sdist, an installation, and Binder's image."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = "/lab/tree/notebooks/01_first_light.ipynb"


def run(*command, folder=ROOT, **variables):
    """Runs a program without this checkout on its path, and gives what it printed."""
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "UIA_LAB"))
    }
    done = subprocess.run(
        command, cwd=folder, env=outside | variables, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The Python of a new environment, with what we depend on lent to it: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # Plain paths: the editable installation of this checkout is a file that only site would follow.
    (packages / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return python


def test_the_wheel_has_what_runs_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        (config,) = [name for name in names if name.endswith("jupyter_server_config.d/uia_lab_server.json")]
        assert ".data/data/etc/jupyter/" in config
        assert json.loads(wheel.read(config))["ServerApp"]["jpserver_extensions"] == {"uia_lab_server": True}
    for package in ("uia_lab", "jupyter_server_extension/uia_lab_server"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                there = path.relative_to(ROOT).as_posix().removeprefix("jupyter_server_extension/")
                assert there in names, "a file of the checkout is not in the wheel"
    assert {"uia_lab/py.typed", "uia_lab_server/py.typed", "uia_lab/notebook/static/live.js"} <= set(names)
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.startswith("uia_lab-")} == {"uia_lab", "uia_lab_server"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_has_what_builds_and_tests_it(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = ("pyproject.toml", "LICENSE", "README.md", "Makefile", "constraints.txt", "docs/rest.md")
    assert names.issuperset((*wanted, "uia_lab/py.typed", "tests/test_package.py", "binder/postBuild"))
    assert names.issuperset(path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb"))
    assert not [name for name in names if name.startswith((".venv", "tests/e2e/screenshots", ".git/"))]


def test_the_package_index_would_show_its_page(built):
    shown = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, built))
    assert shown.count("PASSED") == len(built)


def test_an_installation_enables_the_extension_by_itself(fresh, tmp_path):
    pip = (str(fresh), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-index", "--no-build-isolation", "--ignore-installed", "--no-deps", str(ROOT))
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    where = run(str(fresh), "-c", "import uia_lab, uia_lab_server; print(uia_lab.__file__)", folder=tmp_path)
    assert where.startswith(str(fresh.parents[1]))
    listed = run(
        str(fresh), "-m", "jupyter_server.extension.serverextension", "list", folder=tmp_path, **home
    )
    assert any("uia_lab_server" in line and "enabled" in line for line in listed.splitlines()), listed
    assert "X is" not in listed


def test_binder_builds_from_what_is_in_its_folder():
    shown = run(sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT))
    steps = shown.splitlines()
    assert any(step.startswith("COPY") and "binder/environment.yml" in step for step in steps)
    assert "gcc" in next(step for step in steps if "libgmp-dev" in step)
    assert "RUN ./binder/postBuild" in steps
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_binder_opens_the_first_tutorial(fresh, tmp_path):
    """postBuild runs as it stands, with a pip and models that need no network."""
    commands = tmp_path / "bin"
    commands.mkdir()
    python = commands / "python"
    # The installation itself is tried above, and fetching models in tests/engine.
    told = 'case "$1 $2" in "-m pip"|"-m uia_lab") echo "$@" ;; '
    python.write_text(f'#!/bin/sh\n{told} *) exec {fresh} "$@" ;; esac\n')
    python.chmod(0o755)
    shown = run("bash", "binder/postBuild", PATH=f"{commands}:{os.environ['PATH']}")
    assert "pip install" in shown
    assert "uia_lab models fetch" in shown
    lab = (str(fresh), "-m", "jupyterlab", "--show-config-json", "--allow-root")
    resolved = run(*lab, folder=tmp_path, HOME=str(tmp_path))
    assert json.loads(resolved[resolved.index("\n{") :])["ServerApp"]["default_url"] == TUTORIAL
    # Jupyter Notebook, which repo2docker starts when nobody says otherwise, is not installed here.
    notebook = fresh.parents[1] / "etc" / "jupyter" / "jupyter_notebook_config.json"
    assert json.loads(notebook.read_text())["JupyterNotebookApp"]["default_url"] == TUTORIAL
    assert (ROOT / TUTORIAL.removeprefix("/lab/tree/")).exists()
