"""Seconds from nothing to the first token of the default model, on a server that has loaded nothing.

Each round starts ``python -m uia_lab serve`` afresh; the models must be in the cache. Reported: from the
start of the process until it listens, from the request to the first token (the worker is spawned and the
model loaded in that time), and the same request again, warm. Goal: the cold one within 5 s.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time

import aiohttp

ROUNDS = 5
GOAL_S = 5.0
KEY = "uia-benchmark-0123456789"
BODY = {"messages": [{"role": "user", "content": "Hello"}], "model": "SmolLM2-135M-Instruct", "stream": True}


async def first_token(url: str) -> float:
    """Seconds from sending a chat request to its first content."""
    begin = time.perf_counter()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as session,
        session.post(url, json=BODY, headers={"Authorization": f"Bearer {KEY}"}) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.content:
            if b'"content":"' in line and b'"content":""' not in line:
                return time.perf_counter() - begin
    raise RuntimeError("the stream had no content")


def one_round() -> tuple[float, float, float]:
    """Seconds until it listens, cold first token, warm first token."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "UIA_LAB_SERVE_TOKEN": KEY},
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1] + "/chat/completions"
        listening = time.perf_counter() - begin
        try:
            return listening, asyncio.run(first_token(url)), asyncio.run(first_token(url))
        finally:
            process.terminate()


def main() -> int:
    rounds = [one_round() for _ in range(ROUNDS)]
    names = ("until it listens", "first token, cold", "first token, warm")
    medians = []
    for name, values in zip(names, zip(*rounds, strict=True), strict=True):
        medians.append(statistics.median(values))
        print(f"{name:20} median {medians[-1]:6.3f} s  min {min(values):6.3f}  max {max(values):6.3f}")
    met = medians[1] < GOAL_S
    print(
        f"cold / warm {medians[1] / medians[2]:.0f}x; goal {GOAL_S:.0f} s cold: {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
