"""What the tests of widgets in cells have in common."""

import json
import time
from urllib.parse import unquote, urlsplit

IDLE = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  return prompts.length > 0 && prompts.every((prompt) => /\\[\\d+\\]/.test(prompt.textContent));
}"""


def by_id(page, name):
    """Elements of a page, or within one, by their test id."""
    return page.locator(f'[data-testid="{name}"]')


def until(condition, seconds=30):
    """Waits until a condition holds, and gives its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return value


def local_functions():
    """Source of a Lab in local mode without any model: ``lab``, and its ``transport``."""
    return (
        "import os\n"
        "os.environ.pop('UIA_LAB_URL', None)\n"
        "from uia_lab.config import InferenceServiceConfig\n"
        "from uia_lab.inference_backend_manager import BackendManager\n"
        "from uia_lab.unified_inference_service import UnifiedInferenceService\n"
        "from uia_lab.notebook.lab import Lab\n"
        "from uia_lab.notebook.local_transport import InProcessTransport\n"
        "config = InferenceServiceConfig(enable_hf_server=False, hf_enable_hardware_detection=False)\n"
        "transport = InProcessTransport(UnifiedInferenceService(config, manager=BackendManager(config)))\n"
        "lab = Lab(transport)\n"
    )


def cells_of(page, server):
    """The cells of the notebook in front, as its file has them once it is saved."""
    name = unquote(urlsplit(page.url).path).rpartition("/")[2]
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    return json.loads((server.root / name).read_text())["cells"]


def kept_outputs(page, server):
    """The data of each output in the saved notebook."""
    cells = cells_of(page, server)
    return [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
