"""What docs/mcp.md shows is what the house takes."""

import json
import re
import shlex
from pathlib import Path

from uia_lab.__main__ import _parser
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.mcp_maker import McpMaker
from uia_lab.backends.mcp_options import OPTIONS
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

PAGE = (Path(__file__).parents[1] / "docs" / "mcp.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def rows(heading):
    table = PAGE.split(heading, 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`|]+)`", table, re.MULTILINE)


async def test_tools_and_options_are_all_of_them():
    from uia_lab.doors.mcp_server import _RESOURCES
    from uia_lab.doors.mcp_tools import Tools

    config = InferenceServiceConfig(enable_hf_server=False)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    assert set(rows("| tool | takes")) == set(Tools(service).table)
    assert set(rows("| resource | what")) == set(_RESOURCES)
    assert set(rows("| option | what")) == set(OPTIONS)


def test_no_configuration_of_a_client_has_a_secret_in_its_address():
    shown = [json.loads(block) for block in blocks("json")]
    entries = [entry for item in shown for entry in (item.get("mcpServers") or item["servers"]).values()]
    assert len(entries) == 3
    for entry in entries:
        assert "token=" not in json.dumps(entry)
        if "command" in entry:
            options = _parser().parse_args(entry["args"][2:])
            assert options.url == "http://127.0.0.1:8888/uia/"
            assert shlex.join(entry["args"]).startswith("-m uia_lab mcp")
        else:
            assert entry["url"].endswith("/uia/mcp")
            assert entry["headers"]["Authorization"].startswith("Bearer ${")


async def test_the_backends_it_adds_are_taken():
    added = []

    class Lab:
        @property
        def backends(self):
            return self

        def add(self, endpoint=None, **fields):
            added.append({"endpoint": endpoint, **fields})

        def generate(self, prompt, model):
            assert (prompt, model) == ("hello", "everything")

    exec(blocks("python")[1], {"lab": Lab()})
    maker = McpMaker(
        Secrets(environ={"FRIEND_API_KEY": "k"}), EndpointPolicy(), SharedSession(EndpointPolicy()), "uia-me"
    )
    remote, local = [await maker.complete(BackendDescription(**{"id": "mcp", **fields})) for fields in added]
    assert remote.endpoint == "http://192.168.0.7:8000/mcp"
    assert local.models == ("everything",)
