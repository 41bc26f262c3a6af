"""Prompts and clients of the engine benchmark: streaming chat over HTTP, counted and timed."""

import asyncio
import json
import random
import statistics
import time
from typing import Any

import aiohttp

SUBJECTS = ("the sea", "a train", "bread", "winter", "a lighthouse", "music", "the moon", "a garden")
PROMPTS = [f"Tell me a long story about {SUBJECTS[k % 8]}, part {k + 1}." for k in range(16)]
_rng = random.Random(0)  # noqa: S311 - texts, no secrets
TEXTS = [" ".join(_rng.choice(SUBJECTS) for _ in range(_rng.randint(2, 60))) for _ in range(256)]


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds to the first token and to the end, and the tokens, of one streamed chat."""
    begin, first, tokens = time.perf_counter(), 0.0, 0
    async with session.post(url, json={**body, "stream": True}) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data: ") or b"[DONE]" in line:
                continue
            data = json.loads(line[6:])
            if "error" in data:
                raise RuntimeError(str(data["error"]))
            if any((choice.get("delta") or {}).get("content") for choice in data.get("choices") or ()):
                first = first or time.perf_counter() - begin
                tokens += 1
            if usage := data.get("usage"):
                tokens = usage["completion_tokens"]
    return first, time.perf_counter() - begin, tokens


async def chat(
    base: str, model: str, streams: int, tokens: int, key: str | None = None, *, plain: bool = False
) -> tuple[float, float]:
    """Tokens a second over all streams, and the median of the seconds to the first token.

    Args:
        base: Address up to ``/v1``.
        model: The model asked for.
        streams: Clients at once.
        tokens: Tokens of each.
        key: Key, where one is needed.
        plain: Leaves out what a peer refuses.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    extra = {} if plain else {"stream_options": {"include_usage": True}}
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        begin = time.perf_counter()
        answers = await asyncio.gather(
            *(
                stream(session, f"{base}/chat/completions", {
                    "model": model, "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": tokens, "temperature": 0, **extra,
                })
                for prompt in PROMPTS[:streams]
            )
        )  # fmt: skip
    took = time.perf_counter() - begin
    return sum(count for _, _, count in answers) / took, statistics.median(first for first, _, _ in answers)


async def embeddings(base: str, key: str) -> float:
    """Texts a second of 32 clients that embed one text at a time."""
    waiting = list(TEXTS)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def client() -> None:
            while waiting:
                body = {"model": "all-MiniLM-L6-v2", "input": waiting.pop()}
                async with session.post(f"{base}/embeddings", json=body) as answer:
                    answer.raise_for_status()
                    await answer.read()

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(32)))
    return len(TEXTS) / (time.perf_counter() - begin)
