"""What README and CONTRIBUTING show runs as it stands."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.node import NODE
from tests.upstreams.scripted_api import ScriptedApi, words
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.dialects.registry import UPSTREAM_DIALECTS
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed
from uia_lab.inference_backend_manager import BackendCapabilities, BackendManager
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.widgets import assets, base
from uia_lab.routing import strategies

ROOT = Path(__file__).parents[1]
KEY = "uia-readme-0123456789"


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    chosen = [block for name, block in found if name == language]
    assert chosen, page
    return chosen


TRIED = {
    "README.md": (
        "make lab", "%load_ext", "%%uia", "lab.serve", "uia_lab serve", "curl", "asyncio.run", "set_alias",
        "lab.keys",
    ),
    "CONTRIBUTING.md": (
        "class Shout", "class FewestServed", "uia_lab.strategies", "class Say:", "class Clock", "makePill",
    ),
}  # fmt: skip


@pytest.mark.parametrize("page", TRIED)
def test_every_block_has_a_test_below(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == len(TRIED[page])
    for block, sign in zip(found, TRIED[page], strict=True):
        assert sign in block


def test_the_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), (page.name, link)


def test_what_the_readme_names_of_a_lab_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\blab\.([a-z_]+)", text))
    assert {"status", "generate"} <= named
    assert not [name for name in named if not hasattr(Lab, name)]


def test_the_two_commands_are_there_and_say_what_they_do():
    (block,) = [block for block in blocks("README.md", "") if "make lab" in block]
    for line in block.splitlines():
        # Shown, not done: this is make test, and the other one would open a browser.
        shown = subprocess.run(
            ["make", "-n", *line.partition("#")[0].split()[1:]],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert "about" in shown or "minutes" in shown
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert {"lab", "test", "lint", "docs"} <= {line.split()[0] for line in shown.splitlines() if line}


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


@pytest.fixture
def served():
    """The variables by which a kernel knows its server, and such a server."""
    with subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "UIA_LAB_SERVE_TOKEN": KEY},
    ) as process:  # fmt: skip
        try:
            yield {
                "UIA_LAB_URL": process.stdout.readline().split()[-1].removesuffix("v1"),
                "UIA_LAB_TOKEN": KEY,
            }
        finally:
            process.terminate()


CONNECT = "import uia_lab; lab = uia_lab.connect()"


def test_keys_for_a_script(served):
    (block,) = [block for block in blocks("README.md", "python") if "lab.keys" in block]
    shown = run_cells([CONNECT, block, "assert len(lab.keys) == 0"], **served)
    assert "uia-" not in shown


ASK = """
import openai, os
client = openai.OpenAI(base_url=os.environ["UIA_LAB_URL"] + "v1", api_key=os.environ["UIA_LAB_TOKEN"])
for model in ("shout", "far"):
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
    print(answer.choices[0].message.content)
client.close()
lab.close()
"""


async def test_a_backend_by_its_address_and_a_function_as_a_model(served):
    (block,) = [block for block in blocks("README.md", "python") if "lab.serve" in block]
    async with ScriptedApi() as api:
        api.lists("far").answers["POST", "/v1/chat/completions"] = (200, words("from", " afar"))
        cells = [CONNECT, block.replace("http://127.0.0.1:8080", api.url), ASK]
        shown = await asyncio.to_thread(lambda: run_cells(cells, **served))
    assert "HELLO" in shown
    assert "from afar" in shown


@pytest.fixture
async def manager():
    made = BackendManager()
    yield made
    await made.aclose()


def recipe(sign, language="python"):
    (block,) = [block for block in blocks("CONTRIBUTING.md", language) if sign in block]
    return block


async def test_the_recipe_for_a_backend(manager):
    names = {}
    exec(recipe("class Shout"), names)
    manager.register_backend("shout", "gpu", "Shout", names["Shout"]())
    async with asyncio.timeout(30):
        assert (await manager.infer("text-generation", inputs="hello there")).text == "HELLO THERE"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an importable module of a recipe, with the entry points of its distribution."""

    def make(name, code, entry_points=""):
        (tmp_path / f"{name}.py").write_text(code)
        facts = tmp_path / f"{name}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)

    strategies._installed.cache_clear()
    yield make
    sys.modules.pop("my_package", None)
    strategies._installed.cache_clear()


async def test_the_recipe_for_a_strategy(package):
    published = tomllib.loads(recipe("uia_lab.strategies", "toml"))["project"]["entry-points"]
    ((group, points),) = published.items()
    lines = [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    package("my_package", recipe("class FewestServed"), "\n".join(lines))
    manager = BackendManager({"load_balancing": "fewest_served"})
    try:
        for name in "abc":
            manager.register_backend(
                name, "gpu", name, lambda inputs: inputs, BackendCapabilities({"text-generation"})
            )
        async with asyncio.timeout(30):
            served = [(await manager.infer("text-generation", inputs="x")).backend_id for _ in range(6)]
    finally:
        await manager.aclose()
    assert Counter(served) == dict.fromkeys("abc", 2)


async def test_the_recipe_for_a_dialect(package, manager, monkeypatch):
    package("my_package", recipe("class Say:"))
    monkeypatch.setitem(UPSTREAM_DIALECTS, "say", "my_package:SAY")
    factory = BackendFactory(Secrets({}), EndpointPolicy([]), manager.instance_id)
    async with ScriptedApi() as api, asyncio.timeout(30):
        api.answers["POST", "/say"] = (200, {"said": "well met"})
        described = BackendDescription(
            id="say", type="api", endpoint=api.url, dialect="say", models=("m",), tasks=("text-generation",)
        )
        manager.register_backend("say", "api", "Say", factory.build(await factory.complete(described)))
        try:
            assert (await manager.infer("text-generation", "m", "hello")).text == "well met"
            assert api.asked[-1].json == {"say": "hello"}
            api.answers["POST", "/say"] = (200, {"shouted": "well met"})
            with pytest.raises(BackendFailed):
                await manager.infer("text-generation", "m", "hello")
        finally:
            manager.unregister_backend("say")
            await factory.close()


def test_the_recipe_for_a_widget(tmp_path, monkeypatch):
    static = tmp_path / "static"
    shutil.copytree(assets._STATIC, static)
    (static / "clock.js").write_text(recipe("makePill", "javascript"))
    monkeypatch.setattr(assets, "_STATIC", static)
    names = {}
    exec(recipe("class Clock"), names)
    clock = names["Clock"](base.Service(InProcessTransport, None), {"instance_id": "i"})
    try:
        assert clock._repr_mimebundle_()["text/html"] == "<p>a clock</p>"
        module = tmp_path / "clock.mjs"
        module.write_text(assets.shared() + base.source("clock.js").text)
        subprocess.run([NODE, "--check", module], timeout=60, check=True)
    finally:
        clock.close()
        base._sources.pop("clock.js").close()


def test_the_tables_in_docs_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "docs.make", "--check"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_every_message_the_server_sends_is_on_its_page():
    page = (ROOT / "docs/websocket.md").read_text(encoding="utf-8")
    code = [*(ROOT / "uia_lab/doors").glob("*.py"), ROOT / "uia_lab/backends/websocket_worker.py"]
    sent = {
        name
        for path in code
        for name in re.findall(r'(?:send|_end)\(\s*"(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert {"inference_complete", "execute", "error"} <= sent
    assert not [name for name in sent if f"`{name}`" not in page]


async def test_the_chain_and_the_explanation(manager):
    (block,) = [block for block in blocks("README.md", "python") if "set_alias" in block]
    manager.register_backend(
        "small", "gpu", "Small", lambda inputs: inputs,
        BackendCapabilities({"text-generation"}, {"SmolLM2-135M-Instruct"}),
    )  # fmt: skip
    exec(block, {"manager": manager})
    async with asyncio.timeout(30):
        assert (await manager.infer("text-generation", "best", "hello")).model == "SmolLM2-135M-Instruct"
