"""What README and CONTRIBUTING show runs as it stands."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uia_lab.inference_backend_manager import BackendCapabilities, BackendManager

ROOT = Path(__file__).parents[1]
KEY = "uia-readme-0123456789"


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    chosen = [block for name, block in found if name == language]
    assert chosen, page
    return chosen


def run_cells(cells, **server):
    """Runs notebook cells in a fresh shell; without a server the Lab is in local mode."""
    script = (
        "import json, sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "for cell in json.load(sys.stdin):\n"
        "    shell.run_cell(cell).raise_error()\n"
    )
    outside = {name: value for name, value in os.environ.items() if not name.startswith("UIA_LAB_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(cells), capture_output=True, text=True, timeout=100, check=False,
        env=outside | server,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_notebook_tour(models):
    cells = [block for block in blocks("README.md", "python") if "%load_ext" in block]
    magic = [block for block in blocks("README.md", "") if block.startswith("%%uia")]
    assert len(cells) == len(magic) == 1
    assert "local mode" in run_cells(cells + magic)


def test_the_manager_without_a_server():
    (block,) = [block for block in blocks("README.md", "python") if "asyncio.run" in block]
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO shout\n", "")


def test_serve_and_curl(models):
    (serve,) = [block for block in blocks("README.md", "") if "uia_lab serve" in block]
    (curl,) = [block for block in blocks("README.md", "") if block.startswith("curl")]
    command = [sys.executable, *serve.split()[1:]]
    command[command.index("--port") + 1] = "0"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "UIA_LAB_SERVE_TOKEN": KEY},
    ) as process:  # fmt: skip
        try:
            url = process.stdout.readline().split()[-1].removesuffix("/v1")
            done = subprocess.run(
                ["bash", "-c", curl.replace("http://127.0.0.1:8000", url)],
                capture_output=True, text=True, timeout=100, check=True, env={**os.environ, "KEY": KEY},
            )  # fmt: skip
        finally:
            process.terminate()
    assert done.stdout.rstrip().endswith("data: [DONE]")


def test_keys_for_a_script():
    (block,) = [block for block in blocks("README.md", "python") if "lab.keys" in block]
    with subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "UIA_LAB_SERVE_TOKEN": KEY},
    ) as process:  # fmt: skip
        try:
            url = process.stdout.readline().split()[-1].removesuffix("v1")
            cells = ["import uia_lab; lab = uia_lab.connect()", block, "assert len(lab.keys) == 0"]
            shown = run_cells(cells, UIA_LAB_URL=url, UIA_LAB_TOKEN=KEY)
        finally:
            process.terminate()
    assert "uia-" not in shown


@pytest.fixture
async def manager():
    made = BackendManager()
    yield made
    await made.aclose()


async def test_the_recipe_for_a_backend(manager):
    names = {}
    exec(blocks("CONTRIBUTING.md", "python")[0], names)
    manager.register_backend("shout", "gpu", "Shout", names["Shout"]())
    async with asyncio.timeout(30):
        assert (await manager.infer("text-generation", inputs="hello there")).text == "HELLO THERE"


async def test_the_chain_and_the_explanation(manager):
    (block,) = [block for block in blocks("README.md", "python") if "set_alias" in block]
    manager.register_backend(
        "small", "gpu", "Small", lambda inputs: inputs,
        BackendCapabilities({"text-generation"}, {"SmolLM2-135M-Instruct"}),
    )  # fmt: skip
    exec(block, {"manager": manager})
    async with asyncio.timeout(30):
        assert (await manager.infer("text-generation", "best", "hello")).model == "SmolLM2-135M-Instruct"
