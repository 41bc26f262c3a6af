"""Text generation with llama.cpp, called in this process; runs inside a worker."""

import secrets
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    ContextTooLong,
    InferenceError,
    QueueFull,
)
from uia_lab.engine.frames import Done, Emit, Failed, Load, Piece, Submit
from uia_lab.engine.llamacpp_call import Call, plan

MAX_WAITING = 1024


class LlamaCppEngine:
    """A GGUF model, with one llama.cpp slot for each answer worked on.

    Args:
        load: The model and its sizes.
        emit: Takes the frames; called from many threads.
        threads: Cores this process may use.

    Raises:
        BackendFailed: The file is no GGUF model, or llama.cpp refuses it.
    """

    def __init__(self, load: Load, emit: Emit, threads: int) -> None:
        import xllamacpp

        # llama.cpp reports a bad file as "Failed to init server" and nothing else.
        with Path(load.path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise BackendFailed(f"{load.path} is no GGUF file")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = load.path
        parameters.n_parallel = load.concurrency
        parameters.n_ctx = load.context_length * load.concurrency
        # llama.cpp's threads spin at a barrier many times a token: when another process (the server, a
        # kernel) wants one of their cores they all wait for it, and 150 tokens a second become 2. One core
        # is left free; decoding is bound by memory and loses nothing.
        parameters.cpuparams.n_threads = max(1, threads - 1)
        parameters.cpuparams_batch.n_threads = max(1, threads - 1)
        parameters.warmup = False
        parameters.verbosity = 1
        # The cache of earlier prompts would take up to 8 GiB; the slots keep their last one anyway.
        parameters.cache_ram_mib = 0
        # Its HTTP listener cannot be switched off: here it is a socket in a folder of mode 0700, with a
        # key that nobody knows.
        with tempfile.TemporaryDirectory(prefix="uia-") as folder:
            parameters.hostnames = [f"{folder}/llama.sock"]
            parameters.api_keys = [secrets.token_hex(32)]
            parameters.ui = False
            self._server = xllamacpp.Server(parameters)
        self._emit = emit
        self._pool = ThreadPoolExecutor(load.concurrency, "llama")
        self._running: dict[str, _Answer] = {}
        self._mutex = threading.Lock()

    def submit(self, job: Submit) -> None:
        """Queues every answer that the request asks for.

        Raises:
            InferenceError: The request is malformed, or too much is waiting.
        """
        calls = plan(job)
        answer = _Answer(job.rid, calls, self._emit)
        with self._mutex:
            waiting = sum(item.left for item in self._running.values())
            if waiting + len(calls) > MAX_WAITING:
                raise QueueFull(f"{waiting} answers are waiting for this model already")
            self._running[job.rid] = answer
        for choice in range(len(calls)):
            self._pool.submit(self._run, answer, choice)

    def cancel(self, rid: str) -> None:
        """Stops a request at its next token."""
        with self._mutex:
            answer = self._running.get(rid)
        if answer is not None:
            answer.cancelled.set()

    def stats(self) -> dict[str, float]:
        """Requests here, and answers not finished yet."""
        with self._mutex:
            return {
                "running": float(len(self._running)),
                "answers": float(sum(item.left for item in self._running.values())),
            }

    def _run(self, answer: "_Answer", choice: int) -> None:
        try:
            if not answer.cancelled.is_set():
                answer.generate(self._server, choice)
        except InferenceError as error:
            answer.fail(error)
        except ValueError as error:
            answer.fail(BadRequest(f"llama.cpp refuses the request: {error}"))
        except Exception as error:  # noqa: BLE001 - one request never ends the worker
            answer.fail(BackendFailed(f"llama.cpp: {error}"))
        if answer.ended():
            with self._mutex:
                self._running.pop(answer.rid, None)


class _Answer:
    """The answer to one request: several choices that share a fate."""

    def __init__(self, rid: str, calls: list[Call], emit: Emit) -> None:
        self.rid = rid
        self.left = len(calls)
        self.cancelled = threading.Event()
        self._calls = calls
        self._emit = emit
        self._mutex = threading.Lock()
        self._reasons = ["stop"] * len(calls)
        self._prompt_tokens: dict[int, int] = {}
        self._output_tokens = 0

    def generate(self, server: Any, choice: int) -> None:
        """Runs one choice in the calling thread until its end."""
        call = self._calls[choice]
        if call.echo:
            self._emit(Piece(self.rid, choice, call.echo))
        problem: list[InferenceError] = []

        # What is raised here is swallowed by llama.cpp, so problems are kept and raised after it returned.
        def chunk(data: Mapping[str, Any]) -> bool:
            try:
                self._chunk(call, choice, data)
            except InferenceError as error:
                problem.append(error)
            except Exception as error:  # noqa: BLE001
                problem.append(BackendFailed(f"llama.cpp sent something unexpected: {error!r}"))
            return bool(problem) or self.cancelled.is_set()

        handle = server.handle_chat_completions if call.chat else server.handle_completions
        handle(call.body, chunk)
        if problem:
            raise problem[0]

    def _chunk(self, call: Call, choice: int, data: Mapping[str, Any]) -> None:
        if "error" in data:
            raise _error(data["error"])
        for item in data.get("choices", ()):
            text = item["delta"].get("content") if call.chat else item.get("text")
            probabilities = _logprobs(item.get("logprobs"), call.top)
            if text or probabilities:
                self._emit(Piece(self.rid, choice, text or "", logprobs=probabilities))
            if item.get("finish_reason"):
                self._reasons[choice] = item["finish_reason"]
        if usage := data.get("usage"):
            with self._mutex:
                # The choices of one prompt share it: it counts once.
                self._prompt_tokens[call.prompt] = usage["prompt_tokens"]
                self._output_tokens += usage["completion_tokens"]

    def fail(self, error: InferenceError) -> None:
        """Ends the whole answer, once."""
        with self._mutex:
            first = not self.cancelled.is_set()
            self.cancelled.set()
        if first:
            self._emit(Failed(self.rid, error.code, error.message, error.param))

    def ended(self) -> bool:
        """Counts a choice as over; sends the end with the last one."""
        with self._mutex:
            self.left -= 1
            if self.left:
                return False
        if not self.cancelled.is_set():
            tokens = sum(self._prompt_tokens.values())
            self._emit(Done(self.rid, tokens, self._output_tokens, self._reasons))
        return True


def _logprobs(given: Any, top: int) -> list[Any] | None:
    if not given:
        return None
    return [
        {
            "token": item["token"],
            "logprob": item["logprob"],
            "bytes": item["bytes"],
            "top_logprobs": [
                {"token": other["token"], "logprob": other["logprob"], "bytes": other["bytes"]}
                for other in item["top_logprobs"][:top]
            ],
        }
        for item in given["content"]
    ]


def _error(error: Mapping[str, Any]) -> InferenceError:
    message = str(error.get("message", "llama.cpp failed"))
    if error.get("type") == "exceed_context_size_error":
        return ContextTooLong(
            f"the prompt has {error.get('n_prompt_tokens')} tokens and the model's context here "
            f"{error.get('n_ctx')}: shorten it",
            param="inputs",
        )
    if error.get("code") == 400:
        return BadRequest(f"llama.cpp refuses the request: {message}")
    return BackendFailed(f"llama.cpp: {message}")
