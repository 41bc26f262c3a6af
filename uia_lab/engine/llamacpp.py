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
    Unsupported,
)
from uia_lab.engine.frames import Done, Emit, Failed, Load, Piece, Submit

DEFAULT_MAX_TOKENS = 256
MAX_CHOICES = 128
MAX_WAITING = 1024

_LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens", "max_length")
_NUMBERS = {  # name here -> (name of llama.cpp, least, most)
    "temperature": ("temperature", 0.0, 100.0),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "presence_penalty": ("presence_penalty", -2.0, 2.0),
    "frequency_penalty": ("frequency_penalty", -2.0, 2.0),
    "repetition_penalty": ("repeat_penalty", 0.0, 100.0),
    "repeat_penalty": ("repeat_penalty", 0.0, 100.0),
}


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

    def __init__(self, rid: str, calls: list["_Call"], emit: Emit) -> None:
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

    def _chunk(self, call: "_Call", choice: int, data: Mapping[str, Any]) -> None:
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


class _Call:
    """One call of llama.cpp: which prompt it is for, and the body."""

    __slots__ = ("body", "chat", "echo", "prompt", "top")

    def __init__(self, prompt: int, body: dict[str, Any], *, chat: bool, echo: str, top: int) -> None:
        self.prompt = prompt
        self.body = body
        self.chat = chat
        self.echo = echo
        self.top = top


def plan(job: Submit) -> list[_Call]:
    """The calls a request comes down to; the place in the list is the choice's number.

    Raises:
        BadRequest: A value that is not what its name stands for.
        Unsupported: Something llama.cpp does not give.
    """
    options = job.parameters
    body = _sampling(options)
    count = _whole(options, "n", 1, MAX_CHOICES, default=1)
    top = _logprob_count(options)
    # "echo" repeats the prompt; "return_full_text" is its name in transformers.
    echo = bool(options.get("echo") or options.get("return_full_text"))
    chat = job.messages is not None
    if chat:
        if not job.messages:
            raise BadRequest("messages is empty", param="messages")
        prompts: list[Any] = [job.messages]
        if top is not None:
            body["logprobs"] = True
            body["top_logprobs"] = max(top, 1)
    else:
        prompts = _prompts(job.inputs)
        if top is not None:
            body["n_probs"] = max(top, 1)
        if echo and top is not None:
            raise Unsupported(
                "the prompt's log probabilities are not known: no echo with logprobs", param="echo"
            )
        if echo and not all(isinstance(prompt, str) for prompt in prompts):
            raise Unsupported("echo needs the prompt as text", param="echo")
    if len(prompts) * count > MAX_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts times n={count} is over {MAX_CHOICES} answers", param="n")
    calls = []
    for index, prompt in enumerate(prompts):
        for turn in range(count):
            own = {**body, "messages" if chat else "prompt": prompt}
            if "seed" in own:
                # With one seed for all of them, the answers would be the same.
                own["seed"] = (own["seed"] + turn) % 0xFFFFFFFF
            text = prompt if echo and isinstance(prompt, str) else ""
            calls.append(_Call(index, own, chat=chat, echo=text, top=top or 0))
    return calls


def _prompts(inputs: Any) -> list[Any]:
    """The prompts in ``inputs``: a text, token ids, or a list of either."""
    if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and _is_token(inputs[0])):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("inputs must be a prompt or a list of prompts", param="inputs")
    for prompt in inputs:
        if not isinstance(prompt, str) and not (
            isinstance(prompt, list) and all(_is_token(token) for token in prompt)
        ):
            raise BadRequest("a prompt must be text or a list of token ids", param="inputs")
        if not prompt:
            raise BadRequest("the prompt is empty", param="inputs")
    return inputs


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the body that is the same for every prompt."""
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    body["max_tokens"] = DEFAULT_MAX_TOKENS
    for name in reversed(_LENGTHS):
        if options.get(name) is not None:
            body["max_tokens"] = _whole(options, name, 1, 1 << 31)
    for name, (theirs, least, most) in _NUMBERS.items():
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadRequest(f"{name} must be a number from {least:g} to {most:g}, not {value!r}", param=name)
        body[theirs] = value
    if options.get("do_sample") is False:
        body["temperature"] = 0
    if options.get("top_k") is not None:
        body["top_k"] = _whole(options, "top_k", 0, 1 << 31)
    if options.get("seed") is not None:
        # llama.cpp has 32 bits, and reads the highest number as "random".
        body["seed"] = _whole(options, "seed", -(1 << 63), (1 << 64) - 1) % 0xFFFFFFFF
        # A prompt partly from the cache is computed in other batch sizes, and rounds differently.
        body["cache_prompt"] = False
    if options.get("stop") is not None:
        body["stop"] = _stops(options["stop"])
    if options.get("logit_bias"):
        body["logit_bias"] = _bias(options["logit_bias"])
    return body


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest("stop must be a text, or a list of up to 16 of them, none empty", param="stop")
    return stops


def _bias(bias: Any) -> list[list[float]]:
    try:
        return [[int(token), float(value)] for token, value in bias.items()]
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("logit_bias must map token ids to numbers", param="logit_bias") from None


def _logprob_count(options: Mapping[str, Any]) -> int | None:
    """Alternatives asked for at each token; None when no log probabilities are asked for.

    Chat says ``logprobs: true, top_logprobs: k``, a raw completion ``logprobs: k``.
    """
    asked = options.get("logprobs")
    if asked is None or asked is False:
        if options.get("top_logprobs"):
            raise BadRequest("top_logprobs needs logprobs", param="top_logprobs")
        return None
    if options.get("top_logprobs") is not None:
        return _whole(options, "top_logprobs", 0, 20)
    return 0 if asked is True else _whole(options, "logprobs", 0, 20)


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


def _whole(options: Mapping[str, Any], name: str, least: int, most: int, default: int = 0) -> int:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = f"of at least {least}" if most > 1 << 30 else f"from {least} to {most}"
        raise BadRequest(f"{name} must be a whole number {limit}, not {value!r}", param=name)
    return value


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
