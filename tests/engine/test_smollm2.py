"""Continuous batching on real weights: SmolLM2 as safetensors, made of the packaged GGUF file (slow)."""

import asyncio
import contextlib
import math

import pytest

from uia_lab.engine.frames import Done, Load, Piece
from uia_lab.engine.process import WorkerProcess
from uia_lab.engine.sources import converted, packaged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SUBJECTS = ["the sea", "a train", "bread", "winter", "a lighthouse", "music", "the moon", "a garden"]
PROMPTS = [f"Tell me something about {SUBJECTS[k % 8]}, part {k + 1}." for k in range(16)]
TOKENS = 24
# Rounding to 8 bits of mantissa moves a logit of size 16 by up to 1/16, twice over in a difference, and
# the layers before it add theirs.
TOLERANCE = 0.5


@pytest.fixture(scope="module")
def folder(models):
    return converted(packaged(models, "smollm2"), models.cache_dir).fetch()


@pytest.fixture(scope="module")
def lone(folder):
    """Model, prompts as ids, and the tokens of a lone run of each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in PROMPTS
    ]
    with torch.inference_mode():
        answers = [
            model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=TOKENS)[
                0, len(row) :
            ].tolist()
            for row in ids
        ]
    return model, tokenizer, ids, answers


async def together(folder, dtype):
    """The texts of 16 streams at once."""
    worker = WorkerProcess("smollm2")
    await worker.spawn()
    try:
        order = Load("transformers", str(folder), "smollm2", 16, 1024, "text-generation", "cpu", dtype)
        await worker.load(order, 300)

        async def one(number):
            answers = worker.submit(
                f"r{number}",
                task="text-generation",
                messages=[{"role": "user", "content": PROMPTS[number]}],
                parameters={"temperature": 0, "max_tokens": TOKENS},
            )
            async with contextlib.aclosing(answers):
                frames = [frame async for frame in answers]
            assert isinstance(frames[-1], Done), frames[-1]
            return "".join(frame.text or "" for frame in frames if isinstance(frame, Piece))

        return await asyncio.gather(*(one(number) for number in range(16)))
    finally:
        await worker.stop()


async def test_in_fp32_sixteen_at_once_say_what_each_says_alone(folder, lone):
    _, tokenizer, _, answers = lone
    texts = await together(folder, "float32")
    assert texts == [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


async def test_in_bf16_they_part_only_where_two_tokens_are_nearly_equal(folder, lone):
    import torch

    model, tokenizer, ids, answers = lone
    texts = await together(folder, "bfloat16")
    gaps = []
    for row, answer, text in zip(ids, answers, texts, strict=True):
        said = tokenizer(text, add_special_tokens=False).input_ids
        same = 0
        while same < min(len(said), len(answer)) and said[same] == answer[same]:
            same += 1
        if same >= min(len(said), len(answer)):
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([row + answer[:same]])).logits[0, -1]
        gaps.append(float(logits[answer[same]] - logits[said[same]]))
    assert all(gap < TOLERANCE for gap in gaps), gaps
    # Not all of them have parted at once: they compute the same thing.
    assert len(gaps) < len(PROMPTS)
    assert all(math.isfinite(gap) for gap in gaps)
