"""The benchmark of the gateway runs, and its figures are of whole answers."""

import subprocess
import sys

import pytest

from benchmarks import gateway
from benchmarks.gateway_parts import CHUNKS, WORD, Load


def test_a_figure_is_never_that_of_half_an_answer():
    load = Load("http://127.0.0.1:1/v1/chat/completions", "k", "burst", 1)
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    load.check(head + WORD.encode() * CHUNKS + b"data: [DONE]")
    for answer in (
        head + WORD.encode() * (CHUNKS - 1) + b"data: [DONE]",
        head + WORD.encode() * CHUNKS,
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    ):
        with pytest.raises(RuntimeError):
            load.check(answer)


def test_the_verdict_is_on_the_ratios_of_each_round(capsys):
    floor = {"request": [100.0, 200.0], "burst": [10.0, 10.0], "paced": [50.0, 50.0]}
    found = {
        "floor": floor,
        "serve": {name: [1.4 * item for item in values] for name, values in floor.items()},
    }
    assert gateway.verdict(found)
    found["serve"]["request"] = [160.0, 320.0]
    assert not gateway.verdict(found)
    assert "serve, request: 1.60 of the floor" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway", "--quick", "--only", "serve"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| direct", "| floor", "| serve"]
