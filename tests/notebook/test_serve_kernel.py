"""``@lab.serve`` in real kernels under a real Jupyter server, asked by the openai SDK from this process."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import openai
import pytest
from jupyter_client.manager import KernelManager

from tests.server_extension.jupyter_process import TOKEN, finish, launch, listening

pytestmark = pytest.mark.timeout(240)

SERVE = """
import os, pathlib, time, uia_lab
lab = uia_lab.connect()
here, folder = {name!r}, pathlib.Path({folder!r})

@lab.serve(model="story")
def story(inputs):
    prompt = inputs[-1]["content"]
    (folder / f"{{prompt}}-{{here}}").touch()
    if prompt == "late":
        while not (folder / "speak").exists():
            time.sleep(0.01)
    for word in ("once", " upon", " a", " time"):
        yield word
        if prompt == "early":
            while not (folder / "go-on").exists():
                time.sleep(0.01)
    yield f" in {{here}}"
print("serving", story.state, os.getpid())
"""


class Kernel:
    """A kernel, as a notebook has one."""

    def __init__(self, environment):
        self.manager = KernelManager()
        # The interpreter of the tests, whatever kernels the machine has installed.
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel(env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.pid = self.manager.provisioner.pid

    def run(self, code, until=None, seconds=60):
        """Runs a cell; gives what it shows until it is done, or until something is shown."""
        message_id = self.client.execute(code)
        seen = ""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=seconds)
            content = message["content"]
            seen += content.get("text", "") + "\n".join(content.get("traceback", ()))
            if until is not None and until in seen:
                return seen
            ours = message["parent_header"].get("msg_id") == message_id
            if until is None and ours and content.get("execution_state") == "idle":
                return seen
        raise AssertionError(seen)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    jupyter = launch(tmp_path_factory.mktemp("jupyter"))
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)
    assert "Traceback" not in jupyter.log.read_text()


@pytest.fixture
def kernels(jupyter):
    """Starts kernels that know of the server what its own are told: an address and a key."""
    made = []
    wanted = json.dumps({"name": secrets.token_hex(4), "scopes": ["admin"]}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(jupyter.doors + "keys", wanted, headers)
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                key = json.load(response)["key"]
            break
        except urllib.error.HTTPError as error:
            # Listening already, with its store not open yet.
            if error.code != 503 or time.monotonic() > end:
                raise
            time.sleep(0.1)

    def start():
        environment = os.environ | {"UIA_LAB_URL": jupyter.doors, "UIA_LAB_TOKEN": key}
        made.append(Kernel(environment))
        return made[-1]

    yield start
    for kernel in made:
        kernel.close()


@pytest.fixture
def sdk(jupyter):
    with openai.OpenAI(base_url=jupyter.doors + "v1", api_key=TOKEN, max_retries=0, timeout=60) as client:
        yield client


def ask(sdk, prompt, model="story"):
    return sdk.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], stream=True
    )


def text_of(stream):
    return [
        chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content
    ]


def appear(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def who(folder, prompt):
    """The kernel that got a prompt."""
    end = time.monotonic() + 60
    while not (found := list(folder.glob(f"{prompt}-*"))):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0].name.rpartition("-")[2]


@pytest.fixture
def two(kernels, tmp_path):
    pair = {name: kernels() for name in ("one", "two")}
    for name, kernel in pair.items():
        assert "serving serving" in kernel.run(SERVE.format(name=name, folder=str(tmp_path)))
    return SimpleNamespace(kernels=pair, folder=tmp_path)


def test_a_notebook_serves_the_openai_sdk(kernels, sdk, tmp_path):
    kernel = kernels()
    kernel.run(SERVE.format(name="one", folder=str(tmp_path)))
    assert "story" in [model.id for model in sdk.models.list()]
    code = (
        "import sys, openai; client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2]); "
        "stream = client.chat.completions.create(model='story', stream=True, "
        "messages=[{'role': 'user', 'content': 'now'}]); "
        "pieces = [c.choices[0].delta.content for c in stream if c.choices]; "
        "print('|'.join(filter(None, pieces)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sdk.base_url), TOKEN],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "once| upon| a| time| in one"

    # While a cell runs the kernel still serves.
    kernel.client.execute("import time; time.sleep(20)", stop_on_error=False)
    began = time.monotonic()
    assert "".join(text_of(ask(sdk, "busy"))) == "once upon a time in one"
    assert time.monotonic() - began < 15
    kernel.manager.interrupt_kernel()

    # Run again, the cell replaces it; what fails is shown in the notebook, and not told to the caller.
    kernel.run("@lab.serve(model='story')\ndef story(inputs):\n    raise ZeroDivisionError('secret detail')")
    with pytest.raises(openai.APIError) as caught:
        text_of(ask(sdk, "fail"))
    assert "secret" not in str(caught.value)
    assert "secret detail" in kernel.run("pass", until="secret detail")
    kernel.run("story.stop()")
    assert "story" not in [model.id for model in sdk.models.list()]


def test_killed_before_the_first_token_another_kernel_answers_unnoticed(two, sdk):
    pieces = []
    reading = threading.Thread(target=lambda: pieces.extend(text_of(ask(sdk, "late"))))
    reading.start()
    first = who(two.folder, "late")
    os.kill(two.kernels[first].pid, signal.SIGKILL)
    second = "two" if first == "one" else "one"
    appear(two.folder / f"late-{second}")
    (two.folder / "speak").touch()
    reading.join(60)
    assert "".join(pieces) == f"once upon a time in {second}"


def test_killed_after_the_first_token_the_stream_ends_with_an_error(two, sdk):
    stream = ask(sdk, "early")
    while not (content := next(stream).choices[0].delta.content):
        pass
    assert content == "once"
    os.kill(two.kernels[who(two.folder, "early")].pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="broke off after 1 chunks"):
        next(stream)
    (two.folder / "go-on").touch()
    assert "".join(text_of(ask(sdk, "after"))).startswith("once upon a time in")
