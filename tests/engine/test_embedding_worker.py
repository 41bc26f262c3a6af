"""MiniLM embeddings in a real worker process."""

import asyncio
import contextlib
from itertools import count

import numpy as np
import pytest
import pytest_asyncio

from uia_lab.engine.frames import Done, Failed, Load
from uia_lab.engine.process import WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply on Monday."]
_rids = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(models):
    entry = models.entry("minilm")
    process = WorkerProcess(entry.name)
    await process.spawn()
    path = str(models.path(entry.name))
    await process.load(Load("transformers", path, entry.name, 4, entry.context_length, entry.task), 110)
    yield process
    await process.stop()


async def ask(worker, inputs, task="text-embedding", **parameters):
    answers = worker.submit(f"e{next(_rids)}", task=task, inputs=inputs, parameters=parameters)
    async with contextlib.aclosing(answers):
        *pieces, end = [frame async for frame in answers]
    if isinstance(end, Failed):
        return None, end
    (piece,) = pieces
    return np.frombuffer(piece.value, "<f4").reshape(-1, piece.width), end


async def test_near_in_meaning_is_near_in_space(worker):
    rows, end = await ask(worker, TEXTS)
    assert rows.shape == (3, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    likeness = rows @ rows.T
    assert likeness[0, 1] > 0.6
    assert likeness[0, 1] > likeness[0, 2] + 0.3
    assert isinstance(end, Done)


async def test_the_vector_stays_what_it_was(worker):
    """Pinned figures: a change of pooling, normalisation, tokenizer or precision moves them."""
    rows, _ = await ask(worker, "This is an example sentence")
    assert np.allclose(rows[0, :4], [0.06765693, 0.06349581, 0.04871311, 0.07930495], atol=1e-5)


async def test_a_batch_equals_its_single_texts(worker):
    texts = [*TEXTS, "word " * 400, "", "é" * 50]
    together, _ = await ask(worker, texts)
    for text, row in zip(texts, together, strict=True):
        alone, _ = await ask(worker, text)
        assert np.allclose(alone[0], row, atol=1e-5)


async def test_token_counts_are_the_tokenizers(worker, models):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.path("minilm").parent / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _, end = await ask(worker, TEXTS)
    assert end.input_tokens == sum(len(tokenizer.encode(text).ids) for text in TEXTS)
    _, end = await ask(worker, "word " * 1000)
    assert end.input_tokens == 256
    by_text, _ = await ask(worker, TEXTS[0])
    by_ids, end = await ask(worker, [tokenizer.encode(TEXTS[0]).ids])
    assert np.allclose(by_text, by_ids, atol=1e-6)
    assert end.input_tokens == len(tokenizer.encode(TEXTS[0]).ids)


async def test_fewer_dimensions_are_cut_and_normalised(worker):
    full, _ = await ask(worker, TEXTS)
    rows, _ = await ask(worker, TEXTS, dimensions=64)
    assert rows.shape == (3, 64)
    expected = full[:, :64] / np.linalg.norm(full[:, :64], axis=1, keepdims=True)
    assert np.allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "parameters", "code", "param"),
    [
        ([], {}, "bad_request", "inputs"),
        ([[1, 99999999]], {}, "bad_request", "inputs"),
        (["a", 3], {}, "bad_request", "inputs"),
        ("a", {"dimensions": 1000}, "bad_request", "dimensions"),
        ("a", {"task": "text-generation"}, "unsupported_parameter", "task"),
    ],
)
async def test_what_cannot_be_done_says_so(worker, inputs, parameters, code, param):
    _, end = await ask(worker, inputs, **parameters)
    assert (end.code, end.param) == (code, param)


async def test_many_at_once_and_one_dropped(worker):
    dropped = worker.submit("dropped", task="text-embedding", inputs=["word " * 200] * 64, parameters={})
    waiting = asyncio.ensure_future(anext(dropped))
    texts = [f"text number {i} " * (i % 7 + 1) for i in range(32)]
    first = asyncio.gather(*(ask(worker, text) for text in texts))
    while not worker.running:
        await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    together, _ = await ask(worker, texts)
    for (rows, _), row in zip(await first, together, strict=True):
        assert np.allclose(rows[0], row, atol=1e-5)
    assert worker.running == 0
    assert (await worker.ping())["running"] == 0
