"""A request for inference, as doors build it and adapters read it."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.tasks import canonical_task

Message = Mapping[str, Any]
CHARACTERS_A_TOKEN = 4
# About what a picture costs at the providers that tell.
FILE_TOKENS = 1000


_numbers = random.Random()  # noqa: S311 - seeded by the system; an id opens nothing


def new_request_id() -> str:
    """A fresh id, unique across processes."""
    return f"req-{_numbers.getrandbits(128):032x}"


class RoutingHints(msgspec.Struct, frozen=True):
    """What the caller says about who should serve.

    Args:
        preferred_types: Tiers, best first; other types still serve when no preferred one can.
        required_protocols: Protocols a backend must speak.
        backend_id: Only this backend.
        excluded_backends: None of these backends.
        session_id: Requests of one session go to one backend where the strategy has affinity.
        priority: Higher is served first from the queue.
        deadline_s: Seconds for everything, queue and attempts included.
        max_attempts: Backends tried at most; the configuration's figure when absent.
        hedge_after_s: Seconds after which a second backend is asked too, where nothing is streamed and asking
            twice is free of charge and consequence.
        resume: Whether a broken stream may go on at a backend with the same weights.

    Raises:
        BadRequest: A number out of range, named in ``param``.
    """

    preferred_types: tuple[BackendType, ...] = ()
    required_protocols: frozenset[str] = frozenset()
    backend_id: str | None = None
    session_id: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    max_attempts: int | None = None
    hedge_after_s: float | None = None
    resume: bool = True
    excluded_backends: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, least in (("deadline_s", 0.001), ("hedge_after_s", 0.0)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and least <= value < math.inf):
                raise BadRequest(
                    f"{name} must be a number of at least {least:g} seconds, not {value!r}", param=name
                )
        for name, least in (("max_attempts", 1), ("priority", -(2**31))):
            value = getattr(self, name)
            if value is None and name == "max_attempts":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BadRequest(
                    f"{name} must be a whole number of at least {least}, not {value!r}", param=name
                )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Wire(msgspec.Struct, frozen=True):
    """The request as it came, for an upstream of the same dialect.

    Args:
        dialect: The dialect's name.
        body: The raw body.
        headers: Those that change what the body means.
        restricted: Whether only fields that a door has looked at may go on.
    """

    dialect: str
    body: bytes
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    restricted: bool = False


class Resumed(msgspec.Struct, frozen=True):
    """An answer that broke off and goes on at another backend with the same weights.

    Args:
        text: What was delivered; the backend continues exactly behind it and does not repeat it.
        tokens: Tokens it stands for, to be taken off the limit of tokens.
        digest: Digest of the weights.
    """

    text: str
    tokens: int
    digest: str


class InferenceRequest(msgspec.Struct, frozen=True):
    """One request.

    Args:
        task: A task name or alias; canonical once constructed.
        model: Model name, or None for the default local model of the task.
        inputs: Task inputs (a prompt, a list of texts); None when ``messages`` is given.
        messages: Chat messages in the OpenAI shape; None when ``inputs`` is given.
        parameters: Sampling and task parameters under their OpenAI names.
        stream: Whether the caller wants chunks as they come.
        principal: Name of who asks.
        via: Instance ids this request has passed, nearest last.
        wire: The original bytes, where the door kept them.
        routing: Hints of the caller.
        resumed: What was delivered already, for a backend that says it can continue.
        permitted_types: Types of backend the caller's key permits; empty permits all.
        id: Unique id, given back as ``x-request-id``.

    Raises:
        BadRequest: Unknown task, or neither or both of ``inputs`` and ``messages``.
    """

    task: str
    model: str | None = None
    inputs: Any = None
    messages: Sequence[Message] | None = None
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stream: bool = False
    principal: str = "local"
    via: tuple[str, ...] = ()
    wire: Wire | None = None
    routing: RoutingHints = RoutingHints()
    resumed: Resumed | None = None
    permitted_types: frozenset[BackendType] = frozenset()
    id: str = msgspec.field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if (task := canonical_task(self.task)) is not self.task:
            msgspec.structs.force_setattr(self, "task", task)
        if (self.inputs is None) == (self.messages is None):
            raise BadRequest("give exactly one of inputs and messages", param="inputs")
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise BadRequest("model must be a non-empty string or absent", param="model")
        if not isinstance(self.parameters, Mapping):
            raise BadRequest("parameters must be a mapping", param="parameters")

    @property
    def prompt_estimate(self) -> int:
        """Tokens of the prompt where nobody has counted them: four characters each, a file as FILE_TOKENS."""
        return math.ceil(
            _characters(self.inputs if self.messages is None else self.messages) / CHARACTERS_A_TOKEN
        )


def _characters(said: Any) -> int:
    """How long a prompt is, in characters of text; a token id counts as one token."""
    match said:
        case str() if said.startswith("data:"):
            return FILE_TOKENS * CHARACTERS_A_TOKEN
        case str():
            return len(said)
        case bytes():
            return FILE_TOKENS * CHARACTERS_A_TOKEN
        case Mapping():
            return sum(map(_characters, said.values()))
        case list() | tuple():
            return sum(map(_characters, said))
        case _:
            return CHARACTERS_A_TOKEN


class InferenceResult(msgspec.Struct, frozen=True):
    """The whole answer of a request that was not streamed.

    Args:
        request_id: The request's id.
        result: Text, or the task's result.
        model: The model that answered.
        task: The task.
        backend_id: Who answered.
        usage: Token counts (:class:`uia_lab.domain.events.Usage`).
        finish_reason: Why it ended.
        attempts: Every backend tried, in order.
        chunks: The pieces as they came, for doors that render them again.
        finish_reasons: Where several choices were asked for, the reason of each.
    """

    request_id: str
    result: Any
    model: str | None
    task: str
    backend_id: str
    usage: Any
    finish_reason: str
    attempts: tuple[Any, ...] = ()
    chunks: tuple[Any, ...] = ()
    finish_reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The result as text."""
        return self.result if isinstance(self.result, str) else str(self.result)
