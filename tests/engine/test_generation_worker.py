"""Text generation of transformers in a real worker, on a tiny model with random weights."""

import asyncio
import contextlib
import itertools

import pytest
import pytest_asyncio

from tests.engine import tiny
from uia_lab.engine.frames import Done, Failed, Load, Piece
from uia_lab.engine.process import WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

_count = itertools.count()
PROMPTS = [" ".join(tiny.WORDS[i % 13] for i in range(k, 3 * k + 4)) for k in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def reference(folder):
    """The model itself, in this process."""
    import torch

    torch.set_num_threads(1)
    return tiny.llama(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(folder, reference):
    process = WorkerProcess("tiny")
    await process.spawn()
    await process.load(Load("transformers", str(folder), "tiny", 8, 256), 110)
    yield process
    await process.stop()


class Answer:
    def __init__(self, frames):
        self.pieces = [frame for frame in frames if isinstance(frame, Piece)]
        self.end = frames[-1]

    def text(self, choice=0):
        return "".join(piece.text or "" for piece in self.pieces if piece.choice == choice)

    @property
    def logprobs(self):
        return [entry for piece in self.pieces for entry in piece.logprobs or ()]


async def ask(worker, inputs=None, messages=None, **parameters):
    answers = worker.submit(
        f"g{next(_count)}",
        task="text-generation",
        inputs=inputs,
        messages=messages,
        parameters={"temperature": 0, "max_tokens": 16, **parameters},
    )
    async with contextlib.aclosing(answers):
        return Answer([frame async for frame in answers])


def alone(reference, prompt, tokens):
    """What ``generate`` gives for a prompt on its own: the text and the number of tokens."""
    import torch

    model, tokenizer = reference
    ids = tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)[0, len(ids) :]
    return tokenizer.decode(out, skip_special_tokens=True), len(out)


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_sixteen_at_once_get_every_token_of_a_lone_run(worker, reference):
    lengths = [10 + 3 * k for k in range(16)]
    together = await asyncio.gather(
        *(ask(worker, prompt, max_tokens=n) for prompt, n in zip(PROMPTS, lengths, strict=True))
    )
    for prompt, tokens, answer in zip(PROMPTS, lengths, together, strict=True):
        text, count = alone(reference, prompt, tokens)
        assert answer.text() == text
        assert isinstance(answer.end, Done)
        assert answer.end.output_tokens == count
        assert answer.end.input_tokens == len(reference[1](prompt).input_ids)
    assert max(len(answer.pieces) for answer in together) > 5


async def test_chat_uses_the_models_template_and_text_parts(worker, reference):
    messages = [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]
    prompt = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    answer = await ask(worker, messages=messages)
    assert answer.text() == alone(reference, prompt, 16)[0]


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(worker, reference):
    text, _ = alone(reference, PROMPTS[3], 16)
    stop = text[len(text) // 2 :][:3]
    answer = await ask(worker, PROMPTS[3], stop=[stop, "never there"])
    assert answer.text() == text[: text.index(stop)]
    assert answer.end.finish_reasons == ["stop"]
    serial = await ask(worker, PROMPTS[3], stop=stop, logprobs=1)
    assert serial.text() == answer.text()
    await until(lambda: idle(worker))


async def idle(worker):
    stats = await worker.ping()
    return stats["answers"] == 0 and stats["batched"] == 0 and stats["serial"] == 0


async def test_a_seed_repeats_a_draw_even_with_others_drawing(worker):
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 24}
    first = await ask(worker, "the cat", **options)
    again, *_ = await asyncio.gather(
        ask(worker, "the cat", **options), *(ask(worker, "a dog", temperature=1.0) for _ in range(4))
    )
    assert again.text() == first.text()
    other = await ask(worker, "the cat", **{**options, "seed": 8})
    assert other.text() != first.text()
    several = await ask(worker, "the cat", **options, n=2)
    assert several.text(0) == first.text()
    assert several.text(1) != first.text()
    assert several.end.output_tokens > first.end.output_tokens


async def test_sampling_in_the_batch_follows_each_requests_own_settings(worker, reference):
    coldest = ask(worker, "the cat", temperature=1.0, top_k=1)
    hot = ask(worker, "the cat", temperature=5.0)
    narrow = ask(worker, "the cat", temperature=1.0, top_p=0.0)
    answers = await asyncio.gather(coldest, hot, narrow)
    expected = alone(reference, "the cat", 16)[0]
    assert [answer.text() == expected for answer in answers] == [True, False, True]


async def test_log_probabilities_are_the_models(worker, reference):
    import torch

    model, tokenizer = reference
    answer = await ask(worker, "the cat", logprobs=2, max_tokens=4)
    ids = tokenizer("the cat").input_ids
    with torch.inference_mode():
        row = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
    best = row.topk(2)
    entry = answer.logprobs[0]
    assert entry["logprob"] == pytest.approx(float(best.values[0]), abs=1e-4)
    assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert "".join(entry["token"] for entry in answer.logprobs) == answer.text()


async def test_penalties_and_bias_change_what_is_said(worker, reference):
    import torch

    model, tokenizer = reference
    ids = tokenizer("the cat").input_ids
    with torch.inference_mode():
        second = model(torch.tensor([ids])).logits[0, -1].topk(2).indices[1].item()
    biased = await ask(worker, "the cat", logit_bias={str(second): 100}, max_tokens=3)
    assert biased.text() == tokenizer.decode([second] * 3)
    held = await ask(worker, "the cat", logit_bias={str(second): 100}, max_tokens=3, frequency_penalty=2.0)
    assert held.text() == biased.text()
    varied = await ask(worker, "the cat", logit_bias={str(second): 3}, presence_penalty=2.0, max_tokens=40)
    plain = await ask(worker, "the cat", logit_bias={str(second): 3}, max_tokens=40)
    assert varied.text() != plain.text()


async def test_token_ids_echo_and_several_prompts(worker, reference):
    ids = reference[1]("the red house").input_ids
    by_ids = await ask(worker, ids)
    assert by_ids.text() == alone(reference, ids, 16)[0]
    answer = await ask(worker, ["the cat", "the red house"], echo=True)
    assert answer.text(0) == "the cat" + alone(reference, "the cat", 16)[0]
    assert answer.text(1) == "the red house" + by_ids.text()
    assert len(answer.end.finish_reasons) == 2


@pytest.mark.parametrize(
    ("inputs", "parameters", "code", "param"),
    [
        ("", {}, "bad_request", "inputs"),
        ([], {}, "bad_request", "inputs"),
        ([[1, 9999]], {}, "bad_request", "inputs"),
        ([[1, -1]], {}, "bad_request", "inputs"),
        ("the cat " * 300, {}, "context_length_exceeded", "inputs"),
        ("a", {"temperature": -1}, "bad_request", "temperature"),
        ("a", {"temperature": float("nan")}, "bad_request", "temperature"),
        ("a", {"top_p": 2}, "bad_request", "top_p"),
        ("a", {"max_tokens": 0}, "bad_request", "max_tokens"),
        ("a", {"logit_bias": {"9999": 1}}, "bad_request", "logit_bias"),
        ("a", {"n": 1000}, "bad_request", "n"),
        ("a", {"echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
    ],
)
async def test_what_would_break_the_batch_is_refused_and_neighbours_go_on(
    worker, reference, inputs, parameters, code, param
):
    neighbour = asyncio.ensure_future(ask(worker, PROMPTS[5], max_tokens=40))
    answer = await ask(worker, inputs, **parameters)
    assert isinstance(answer.end, Failed)
    assert (answer.end.code, answer.end.param) == (code, param)
    assert (await neighbour).text() == alone(reference, PROMPTS[5], 40)[0]


async def test_extremes_that_are_allowed_break_nothing(worker, reference):
    odd = [
        {"temperature": 1e-30},
        {"temperature": 1.0, "top_k": 1 << 30},
        {"temperature": 1.0, "top_k": -1, "top_p": 0.0},
        {"temperature": 100.0, "min_p": 1.0},
        {"max_tokens": 1 << 30},
        {"temperature": 1.0, "seed": -(1 << 63)},
    ]
    for answer in await asyncio.gather(*(ask(worker, "the cat", **options) for options in odd)):
        assert isinstance(answer.end, Done), answer.end
    # What the context leaves room for, and no token more.
    longest = await ask(worker, "the cat", max_tokens=1 << 30)
    assert longest.end.input_tokens + longest.end.output_tokens <= 256


async def test_who_leaves_frees_the_cache(worker):
    await until(lambda: idle(worker))
    before = (await worker.ping())["cache_free"]
    streams = [
        worker.submit(
            f"leave{k}",
            task="text-generation",
            inputs=[[7 + k, *range(5, 40)]],
            parameters={"temperature": 0, "max_tokens": 200, "logit_bias": {}, "seed": k if k % 2 else None},
        )
        for k in range(4)
    ]
    for stream in streams:
        await anext(stream)
    during = (await worker.ping())["cache_free"]
    assert during < before
    for stream in streams:
        await stream.aclose()
    await until(lambda: idle(worker))

    async def free():
        return (await worker.ping())["cache_free"] > during

    await until(free)
    # Whole blocks stay as a cache of prompts, and are given up when somebody needs them: eight requests
    # of the full context fill all there is.
    full = [ask(worker, [[30 + k] * 20], max_tokens=230, logit_bias={}) for k in range(8)]
    for answer in await asyncio.gather(*full):
        assert isinstance(answer.end, Done)


async def test_a_batch_that_dies_fails_its_requests_and_comes_back(tmp_path):
    """The engine in this process, so that its model can be made to raise."""
    import threading

    from uia_lab.engine.frames import Submit
    from uia_lab.engine.generation import GenerationEngine

    tiny.llama(tmp_path)
    frames, ended = {}, threading.Semaphore(0)

    def emit(frame):
        frames.setdefault(frame.rid, []).append(frame)
        if isinstance(frame, (Done, Failed)):
            ended.release()

    engine = GenerationEngine(Load("transformers", str(tmp_path), "tiny", 4, 128), emit, 1)
    forward = engine._model.forward

    def broken(*args, **kwargs):
        raise ZeroDivisionError("the wheel came off")

    def submit(rid):
        engine.submit(
            Submit(rid, "text-generation", "tiny", "the cat", None, {"temperature": 0, "max_tokens": 5})
        )

    async def wait():
        assert await asyncio.to_thread(ended.acquire, timeout=30)

    engine._model.forward = broken
    submit("bad")
    await wait()
    assert frames["bad"][-1].code == "backend_failed"
    assert "the wheel came off" in frames["bad"][-1].message
    engine._model.forward = forward

    async def accepted():
        status = engine._greedy._manager.background_thread_status
        return status.can_accept_new_requests() is None

    await until(accepted)
    submit("good")
    await wait()
    assert isinstance(frames["good"][-1], Done)
    assert engine.stats()["answers"] == 0
    engine._greedy._manager.stop(hard_stop=True)
