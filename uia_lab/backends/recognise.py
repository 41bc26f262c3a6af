"""Finds out by free questions which server is at an address, and where its API begins."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from uia_lab.backends.bodies import described
from uia_lab.backends.providers import COMPATIBLE, PROVIDERS, Provider
from uia_lab.domain.errors import BackendFailed, NoBackendAvailable, Unauthenticated
from uia_lab.domain.tasks import TEXT_CLASSIFICATION, TEXT_EMBEDDING

if TYPE_CHECKING:
    import aiohttp

QUESTION_S = 3.0
MAX_ANSWER = 8 << 20
# Asked below the root of the server.
_QUESTIONS = ("api/version", "api/v0/models", "info", "v1/models", "models")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one question was answered with.

    Args:
        status: HTTP status; 0 where nobody answered.
        body: Decoded JSON, or None.
        server: The ``Server`` header.
        why: What went wrong, if nobody answered.
    """

    status: int = 0
    body: Any = None
    server: str = ""
    why: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The body, where it is an object of a good answer."""
        return self.body if self.status == 200 and isinstance(self.body, dict) else {}


@dataclass(frozen=True, slots=True)
class Recognised:
    """A server that was recognised.

    Args:
        provider: What it is.
        endpoint: Its base URL.
        tasks: What its one model does, where that is known; else those of the provider.
    """

    provider: Provider
    endpoint: str
    tasks: tuple[str, ...] = ()


async def recognise(
    session: "aiohttp.ClientSession", endpoint: str, headers: Mapping[str, str] | None = None
) -> Recognised:
    """Which server is at an address; nothing is asked that costs anything.

    Args:
        session: The client session.
        endpoint: Address of the server, or its base URL.
        headers: Sent along, for a key that was named for this endpoint.

    Raises:
        NoBackendAvailable: Nobody answers there.
        Unauthenticated: It wants a key, or another one.
        BackendFailed: It is none of the servers we know; the message says what was tried.
    """
    path = urlsplit(endpoint).path
    root = endpoint[: -len("/v1")] if path.endswith("/v1") else endpoint
    async with asyncio.TaskGroup() as group:
        tasks = {
            path: group.create_task(ask(session, f"{root}/{path}", headers or {})) for path in _QUESTIONS
        }
    answers = {path: task.result() for path, task in tasks.items()}
    if not any(answer.status for answer in answers.values()):
        raise NoBackendAvailable(f"nobody answers at {endpoint}: {answers['v1/models'].why}")
    provider = _provider(answers)
    if provider is not None:
        return Recognised(provider, root + provider.prefix, _tasks(answers["info"].fields.get("model_type")))
    for path in ("v1/models", "models"):
        if isinstance(answers[path].fields.get("data"), list):
            return Recognised(COMPATIBLE, root + ("/v1" if path.startswith("v1/") else ""))
    if any(answers[path].status in (401, 403) for path in ("v1/models", "models")):
        raise Unauthenticated(f"{endpoint} wants a key, or another one: name it in api_key_env")
    if any(answer.status == 503 for answer in answers.values()):
        raise NoBackendAvailable(f"{endpoint} is not ready yet (503); try again in a while")
    tried = ", ".join(f"/{path}: {answer.status or answer.why}" for path, answer in answers.items())
    raise BackendFailed(
        f"{endpoint} answers, but as none of the servers known here ({tried}); give its dialect if it is one"
    )


async def ask(session: "aiohttp.ClientSession", url: str, headers: Mapping[str, str]) -> Answer:
    """Asks one free question, within QUESTION_S seconds; an answer that is no JSON is an answer too."""
    import aiohttp

    try:
        async with (
            asyncio.timeout(QUESTION_S),
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            body = bytearray()
            async for data in response.content.iter_any():
                body += data
                if len(body) > MAX_ANSWER:
                    return Answer(response.status, None, response.headers.get("Server", ""), "too large")
            return Answer(response.status, _json(bytes(body)), response.headers.get("Server", ""))
    except TimeoutError:
        return Answer(why=f"silent for {QUESTION_S:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Answer(why=described(error))


def _provider(answers: Mapping[str, Answer]) -> Provider | None:
    """The server by what only it answers."""
    listed = answers["v1/models"]
    models = listed.fields.get("data")
    owner = models[0].get("owned_by") if isinstance(models, list) and models and _is_object(models[0]) else ""
    info = answers["info"].fields
    # llama.cpp first, since it imitates some questions of Ollama; it says its name while it loads, too.
    if any("llama.cpp" in answer.server for answer in answers.values()) or owner == "llamacpp":
        return PROVIDERS["llamacpp"]
    if isinstance(info.get("model_id"), str):
        return PROVIDERS["tei" if "model_type" in info else "tgi"]
    if isinstance(answers["api/version"].fields.get("version"), str):
        return PROVIDERS["ollama"]
    if isinstance(answers["api/v0/models"].fields.get("data"), list):
        return PROVIDERS["lmstudio"]
    return PROVIDERS["vllm"] if owner == "vllm" else None


def _tasks(model_type: Any) -> tuple[str, ...]:
    """What a server of Text Embeddings Inference does: ``{"embedding": ..}`` or ``{"classifier": ..}``."""
    kinds = {str(name).lower() for name in model_type} if isinstance(model_type, dict) else {model_type}
    if "reranker" in kinds:
        raise BackendFailed("the server's model ranks texts, and no task of ours is that")
    if "classifier" in kinds:
        return (TEXT_CLASSIFICATION,)
    return (TEXT_EMBEDDING,) if "embedding" in kinds else ()


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
