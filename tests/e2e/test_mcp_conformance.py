"""The conformance suite of MCP against a server that is mounted through our bridge from ASGI to tornado."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.npm import installed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PACKAGE = "@modelcontextprotocol/conformance"


@pytest.fixture(scope="module")
def address():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "jupyter_server_extension")))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.upstreams.mcp_conformance"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    yield process.stdout.readline().strip()
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("version", "options", "scored"),
    [
        ("0.1.16", ("--suite", "active"), 40),
        ("0.2.0-alpha.12", ("--requirements", "2026-07-28"), 120),
    ],
)
def test_every_scored_check_passes(address, tmp_path, version, options, scored):
    program = installed(tmp_path, f"{PACKAGE}@{version}")
    done = subprocess.run(
        [*program("conformance"), "server", "--url", address, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    summary, _, unscored = done.stdout.partition("=== SUMMARY ===")[2].partition("Not scored for")
    apart = set(re.findall(r"[✓✗] (\S+) \(", unscored))
    checks = {
        name: (int(passed), int(failed))
        for name, passed, failed in re.findall(r"[✓✗] (\S+): (\d+) passed, (\d+) failed", summary)
        if name not in apart
    }
    assert not {name: counts for name, counts in checks.items() if counts[1]}
    assert sum(passed for passed, _ in checks.values()) >= scored
