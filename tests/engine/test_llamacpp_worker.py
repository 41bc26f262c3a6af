"""llama.cpp in a real worker process with the real SmolLM2."""

import asyncio
import contextlib
import os
import signal
import time

import pytest
import pytest_asyncio

from uia_lab.domain.errors import BackendFailed
from uia_lab.engine.child import environment
from uia_lab.engine.frames import Done, Failed, Load, Piece
from uia_lab.engine.process import WorkerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = {"temperature": 0, "seed": 1, "max_tokens": 8}
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(models):
    entry = models.entry("smollm2")
    process = WorkerProcess(entry.name)
    await process.spawn()
    path = str(models.path(entry.name))
    await process.load(Load("llamacpp", path, entry.name, 4, entry.context_length), 60)
    yield process
    await process.stop()


class Answer:
    """All frames of an answer, taken apart."""

    def __init__(self, frames):
        self.pieces = [frame for frame in frames if isinstance(frame, Piece)]
        self.end = frames[-1]

    def text(self, choice=0):
        return "".join(piece.text for piece in self.pieces if piece.choice == choice)


_count = iter(range(1 << 30))


async def ask(worker, inputs=None, messages=None, **parameters):
    answers = worker.submit(
        f"r{next(_count)}",
        task="text-generation",
        inputs=inputs,
        messages=messages,
        parameters={**GREEDY, **parameters},
    )
    async with contextlib.aclosing(answers):
        return Answer([frame async for frame in answers])


async def test_streams_and_is_deterministic(worker):
    first = await ask(worker, "The capital of France is")
    again = await ask(worker, "The capital of France is")
    assert first.text().startswith(" Paris")
    assert first.text() == again.text()
    assert len(first.pieces) == 8
    assert first.end.finish_reasons == ["length"]
    warm = [await ask(worker, "Once upon a time", temperature=1, seed=seed) for seed in (7, 7, 8)]
    assert warm[0].text() == warm[1].text() != warm[2].text()


async def test_chat_goes_through_the_models_template_and_a_raw_prompt_does_not(worker):
    question = CHAT[0]["content"]
    rendered = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    chat = await ask(worker, messages=CHAT)
    by_hand = await ask(worker, rendered)
    raw = await ask(worker, question)
    assert chat.text() == by_hand.text() != raw.text()
    assert chat.end.input_tokens == by_hand.end.input_tokens > raw.end.input_tokens


async def test_token_counts_are_the_tokenizers(worker):
    # The ids of "The capital of France is" in this vocabulary.
    ids = [504, 3575, 282, 4649, 314]
    by_text = await ask(worker, "The capital of France is")
    by_ids = await ask(worker, ids)
    assert (by_text.end.input_tokens, by_text.end.output_tokens) == (len(ids), 8)
    assert by_text.text() == by_ids.text()
    several = await ask(worker, ["The capital of France is", ids], n=2)
    assert (several.end.input_tokens, several.end.output_tokens) == (2 * len(ids), 4 * 8)


async def test_stop_ends_the_text_before_it(worker):
    answer = await ask(worker, "Count: one, two, three, four,", max_tokens=30, stop=["seven"])
    assert answer.text().strip() == "five, six,"
    assert answer.end.finish_reasons == ["stop"]


async def test_choices_are_numbered_by_prompt_and_turn(worker):
    prompts = ["The capital of France is", "Once upon a time"]
    answer = await ask(worker, prompts, n=2, temperature=1, seed=3)
    assert {piece.choice for piece in answer.pieces} == {0, 1, 2, 3}
    assert len(answer.end.finish_reasons) == 4
    assert answer.text(0) != answer.text(1)
    alone = await ask(worker, prompts[1], temperature=1, seed=3)
    assert answer.text(2) == alone.text()


async def test_echo_and_the_many_names_of_the_length(worker):
    answer = await ask(worker, "The capital of France is", echo=True)
    assert answer.text().startswith("The capital of France is Paris")
    for name in ("max_completion_tokens", "max_new_tokens", "max_length"):
        answer = await ask(worker, "The", max_tokens=None, **{name: 2})
        assert answer.end.output_tokens == 2


async def test_logprobs_have_the_openai_shape(worker):
    raw = await ask(worker, "The capital of France is", logprobs=2, max_tokens=2)
    chat = await ask(worker, messages=CHAT, logprobs=True, top_logprobs=2, max_tokens=2)
    for answer in (raw, chat):
        tokens = [item for piece in answer.pieces for item in piece.logprobs]
        assert len(tokens) == 2
        for item in tokens:
            assert item["logprob"] <= 0
            assert bytes(item["bytes"]).decode() == item["token"]
            assert len(item["top_logprobs"]) == 2
    assert raw.pieces[0].logprobs[0]["token"] == " Paris"


async def test_a_character_of_several_tokens_is_never_cut(worker):
    prompt = "Emoji list: 😀 😃 😄 😁 😆 😅 😂 🤣"
    answer = await ask(worker, prompt, max_tokens=24)
    assert sum("🤖" in piece.text for piece in answer.pieces) > 2
    assert answer.end.output_tokens > len(answer.pieces)
    for length in range(1, 7):
        cut = await ask(worker, prompt, max_tokens=length)
        assert answer.text().startswith(cut.text())
        assert cut.end.output_tokens == length


@pytest.mark.parametrize(
    ("parameters", "code", "param"),
    [
        ({"inputs": "hi " * 3000}, "context_length_exceeded", "inputs"),
        ({"inputs": "hi", "temperature": "warm"}, "bad_request", "temperature"),
        ({"inputs": "hi", "top_p": 7}, "bad_request", "top_p"),
        ({"inputs": "hi", "max_tokens": 0}, "bad_request", "max_tokens"),
        ({"inputs": "hi", "n": True}, "bad_request", "n"),
        ({"inputs": ""}, "bad_request", "inputs"),
        ({"inputs": [99999999]}, "bad_request", None),
        ({"messages": [{"role": "user"}]}, "bad_request", None),
        ({"inputs": "hi", "echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
    ],
)
async def test_what_cannot_be_done_says_so_and_leaves_the_worker_whole(worker, parameters, code, param):
    answer = await ask(worker, **parameters)
    assert isinstance(answer.end, Failed)
    assert (answer.end.code, answer.end.param) == (code, param)
    assert (await ask(worker, "The", max_tokens=1)).end.output_tokens == 1


async def test_cancelling_frees_the_slots(worker):
    """Four endless answers fill the slots; once they are dropped a fifth request is served at once."""
    running = [
        worker.submit(
            f"long{number}", task="text-generation", inputs="A story:", parameters={"max_tokens": 1900}
        )
        for number in range(4)
    ]
    for answers in running:
        assert isinstance(await anext(answers), Piece)
    for answers in running:
        await answers.aclose()
    start = time.monotonic()
    assert isinstance((await ask(worker, "The", max_tokens=1)).end, Done)
    assert time.monotonic() - start < 3
    assert worker.running == 0
    while (await worker.ping())["running"]:
        """Each of the four ends at its next token."""


async def test_an_interrupt_of_the_notebook_does_not_end_it(worker):
    os.kill(worker.pid, signal.SIGINT)
    assert isinstance((await ask(worker, "The", max_tokens=1)).end, Done)


async def test_eight_at_once(worker):
    answers = await asyncio.gather(*(ask(worker, f"Number {i}:", max_tokens=12) for i in range(8)))
    assert [answer.end.output_tokens for answer in answers] == [12] * 8


async def test_a_stalled_reader_fails_alone(worker, monkeypatch):
    monkeypatch.setattr("uia_lab.engine.process.QUEUE_FRAMES", 4)
    stalled = worker.submit(
        "stalled", task="text-generation", inputs="A story:", parameters={"max_tokens": 64}
    )
    assert isinstance(await anext(stalled), Piece)
    assert (await ask(worker, "The", max_tokens=1)).end.output_tokens == 1
    neighbour = await ask(worker, "A story:", max_tokens=1)
    assert isinstance(neighbour.end, Done)
    while "stalled" in worker._answers:
        await worker.ping()
    with pytest.raises(BackendFailed, match="was not taken"):
        async for _ in stalled:
            pass


async def test_a_file_that_is_no_model_is_refused_by_name(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nonsense")
    process = WorkerProcess("bad")
    await process.spawn()
    try:
        with pytest.raises(BackendFailed, match=r"bad\.gguf is no GGUF file"):
            await process.load(Load("llamacpp", str(bad), "bad", 1, 512), 30)
    finally:
        await process.stop()
    assert not process.alive


async def test_the_worker_gets_no_secrets(monkeypatch):
    monkeypatch.setenv("UIA_LAB_TOKEN", "s")
    monkeypatch.setenv("OPENAI_API_KEY", "s")
    monkeypatch.setenv("HF_TOKEN", "s")
    monkeypatch.setenv("MY_DATABASE", "postgres://me:s@there")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    names = environment()
    assert {"PATH", "HOME", "CUDA_VISIBLE_DEVICES"} <= names.keys()
    assert not {"UIA_LAB_TOKEN", "OPENAI_API_KEY", "HF_TOKEN", "MY_DATABASE"} & names.keys()
