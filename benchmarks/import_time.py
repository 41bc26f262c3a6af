"""Seconds of ``import uia_lab`` and of ``%load_ext uia_lab``, each in fresh processes.

The floor is an empty interpreter, measured in the same run, interleaved; the median of each counts.
Goals: 0.3 s and 0.6 s above nothing but the interpreter itself.
"""

import statistics
import subprocess
import sys

ROUNDS = 7
GOALS = {"import uia_lab": 0.3, "%load_ext uia_lab": 0.6}

CLOCKED = "import time; begin = time.perf_counter(); {body}; print(time.perf_counter() - begin)"
SHELL = (
    "from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance(); "
    "import io, contextlib; "
)
BODIES = {
    "import json (floor)": CLOCKED.format(body="import json"),
    "import uia_lab": CLOCKED.format(body="import uia_lab"),
    "%load_ext uia_lab": SHELL
    + "quiet = contextlib.redirect_stdout(io.StringIO()); "
    + CLOCKED.format(
        body="quiet.__enter__(); shell.run_line_magic('load_ext', 'uia_lab'); quiet.__exit__(*[None] * 3)"
    ),
    "import openai (a client, for scale)": CLOCKED.format(body="import openai"),
}


def measure(body: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout.split()[-1])


def main() -> int:
    seconds: dict[str, list[float]] = {name: [] for name in BODIES}
    for _ in range(ROUNDS):
        for name, body in BODIES.items():
            seconds[name].append(measure(body))
    missed = 0
    for name, values in seconds.items():
        goal = GOALS.get(name)
        median = statistics.median(values)
        verdict = "" if goal is None else f"  goal {goal:.1f} s: {'met' if median < goal else 'MISSED'}"
        missed += goal is not None and median >= goal
        print(f"{name:38} median {median:7.3f} s  min {min(values):7.3f}  max {max(values):7.3f}{verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
