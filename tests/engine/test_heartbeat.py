"""A worker that has frozen is killed, and says why."""

import asyncio
import contextlib
import os
import signal

import pytest

from tests.engine import tiny
from uia_lab.domain.errors import BackendFailed
from uia_lab.engine.frames import Load
from uia_lab.engine.process import WorkerProcess


async def test_a_frozen_worker_is_killed_and_its_requests_fail(tmp_path):
    tiny.bert(tmp_path, "BertForSequenceClassification")
    died = asyncio.Event()
    worker = WorkerProcess("tiny", died.set, beat_s=0.1, silent_s=2.0)
    await worker.spawn()
    try:
        await worker.load(Load("transformers", str(tmp_path), "tiny", 2, 64, "text-classification"), 110)
        os.kill(worker.pid, signal.SIGSTOP)
        answers = worker.submit("r1", task="text-classification", inputs="the cat")
        async with contextlib.aclosing(answers), asyncio.timeout(60):
            with pytest.raises(BackendFailed, match=r"killed: it did not answer for 2 s"):
                await anext(answers)
        async with asyncio.timeout(20):
            await died.wait()
        assert not worker.alive
    finally:
        await worker.stop()


async def test_one_that_answers_lives_on(tmp_path):
    tiny.bert(tmp_path, "BertForSequenceClassification")
    worker = WorkerProcess("tiny", beat_s=0.01, silent_s=30.0)
    await worker.spawn()
    try:
        await worker.load(Load("transformers", str(tmp_path), "tiny", 2, 64, "text-classification"), 110)
        for number in range(5):
            answers = worker.submit(f"r{number}", task="text-classification", inputs="the cat")
            async with contextlib.aclosing(answers), asyncio.timeout(60):
                assert [type(frame).__name__ async for frame in answers] == ["Piece", "Done"]
        assert worker.alive
    finally:
        await worker.stop()
