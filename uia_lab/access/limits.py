"""What a request may take: the limits of the key it came by, and the number of requests at once."""

import math
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import msgspec

from uia_lab.access.keys import KeyRing
from uia_lab.access.principals import ADMIN
from uia_lab.access.windows import Window
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import NotAllowed, Overloaded, QuotaExceeded, RateLimited, Unauthenticated
from uia_lab.domain.events import Usage
from uia_lab.domain.keys import KEY_PRINCIPAL, Key, Limits
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION

RETRY_S = 1.0
USUAL_ANSWER = 256
LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens", "max_output_tokens", "max_length")

_WITHOUT_TOOLS = frozenset(BackendType) - {BackendType.CLI}


class _Used:
    """What one key has taken."""

    def __init__(self) -> None:
        self.running = 0
        self.reserved = 0
        self.requests = Window(0)
        self.tokens = Window(0)

    def follow(self, key: Key) -> None:
        """The limits may have been others when this was made: a key of the same id has them as they are."""
        self.requests.limit = key.limits.requests_per_minute or 0
        self.tokens.limit = key.limits.tokens_per_minute or 0


class Admission:
    """A request that was let in; it is charged once, when it ends.

    Attributes:
        request: The request, with what the key permits written into it.
    """

    def __init__(self, request: InferenceRequest, end: Callable[[Usage], None]) -> None:
        self.request = request
        self._end: Callable[[Usage], None] | None = end

    def finish(self, usage: Usage) -> None:
        """Gives back what was reserved and charges what was used; a second call does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end(usage)


class Limiter:
    """Lets requests in. Belongs to the loop of the manager.

    Args:
        keys: Who has which limits.
        most: Requests at once, whoever asks.
        default_model: Gives the model of a request that names none, by task.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        keys: KeyRing,
        most: int,
        default_model: Callable[[str], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.running = 0
        self._keys = keys
        self._default_model = default_model
        self._clock = clock
        self._used: dict[str, _Used] = {}
        keys.on_end.append(self._forget)

    def admit(self, request: InferenceRequest) -> Admission:
        """Lets a request in, and counts it until its admission is finished.

        Raises:
            Unauthenticated: Its key was revoked meanwhile.
            NotAllowed: The key does not permit the model.
            RateLimited: A limit of the key is reached; ``retry_after`` says when it makes sense again.
            QuotaExceeded: The key's budget is used up.
            Overloaded: The server works on as many requests as it may.
        """
        key = self._key(request.principal)
        if key is not None:
            request = self._permitted(key, request)
        if self.running >= self.most:
            raise Overloaded(
                f"the server works on {self.running} requests, as many as it may (max_concurrent_requests)",
                retry_after=RETRY_S,
            )
        self.running += 1
        if key is None:
            return Admission(request, self._leave)
        try:
            return self._within_limits(key, request)
        except BaseException:
            self.running -= 1
            raise

    def headers(self, principal: str) -> dict[str, str]:
        """What a principal has left, as ``x-ratelimit-*`` headers in OpenAI's form; empty without limits."""
        key = self._keys.of_principal(principal)
        if key is None or not (key.limits.requests_per_minute or key.limits.tokens_per_minute):
            return {}
        now, used = self._clock(), self._of(key)
        found: dict[str, str] = {}
        for name, window in (("requests", used.requests), ("tokens", used.tokens)):
            if window.limit:
                found[f"x-ratelimit-limit-{name}"] = f"{window.limit:g}"
                found[f"x-ratelimit-remaining-{name}"] = f"{math.floor(window.remaining(now))}"
                found[f"x-ratelimit-reset-{name}"] = duration(window.reset(now))
        return found

    def permits(self, principal: str, model: str) -> bool:
        """Whether a principal may ask for a model or alias."""
        key = self._keys.of_principal(principal)
        return key is None or _named(key, model)

    def _within_limits(self, key: Key, request: InferenceRequest) -> Admission:
        limits, used, now = key.limits, self._of(key), self._clock()
        if limits.max_concurrent is not None and used.running >= limits.max_concurrent:
            raise RateLimited(
                f"the key {key.name!r} has {used.running} requests under way, as many as it may",
                retry_after=RETRY_S,
            )
        counted = limits.tokens_per_minute is not None or limits.token_budget is not None
        tokens = _estimate(request, limits) if counted else 0
        if limits.token_budget is not None:
            left = limits.token_budget - key.tokens_used - used.reserved
            if left < max(1, tokens):
                raise QuotaExceeded(
                    f"the key {key.name!r} has {max(0, left)} of {limits.token_budget} tokens left; this "
                    f"asks for about {max(1, tokens)}. Lower max_tokens, or ask for another key."
                )
        for window, amount, what in (
            (used.requests, 1, "requests"),
            (used.tokens, max(1, tokens), "tokens"),
        ):
            if window.limit:
                self._check(key, window, amount, what, now)
        if used.requests.limit:
            used.requests.take(1, now)
        slot = used.tokens.take(tokens, now) if used.tokens.limit else None
        used.running += 1
        used.reserved += tokens

        def end(usage: Usage) -> None:
            self._leave(usage)
            used.running -= 1
            used.reserved -= tokens
            if slot is not None:
                used.tokens.give_back(slot, tokens)
                used.tokens.take(usage.total_tokens, self._clock())
            self._keys.charge(key.id, usage.total_tokens)

        return Admission(request, end)

    def _check(self, key: Key, window: Window, amount: float, what: str, now: float) -> None:
        wait = window.wait(amount, now)
        if wait == math.inf:
            raise RateLimited(
                f"this asks for about {amount:g} {what}; the key {key.name!r} may have {window.limit:g} a "
                "minute. Lower max_tokens."
            )
        if wait > 0:
            raise RateLimited(
                f"the key {key.name!r} may have {window.limit:g} {what} a minute; again in {wait:.0f} s",
                retry_after=wait,
            )

    def _leave(self, usage: Usage) -> None:
        del usage
        self.running -= 1

    def _key(self, principal: str) -> Key | None:
        behind = self._keys.behind(principal)
        if behind is None:
            raise Unauthenticated("the key ended with the call it was lent to")
        if not behind.startswith(KEY_PRINCIPAL):
            return None
        key = self._keys.of_principal(principal)
        if key is None:
            raise Unauthenticated("the key was revoked")
        return key

    def _of(self, key: Key) -> _Used:
        used = self._used.get(key.principal)
        if used is None:
            used = self._used[key.principal] = _Used()
        used.follow(key)
        return used

    def _forget(self, principal: str) -> None:
        self._used.pop(principal, None)

    def _permitted(self, key: Key, request: InferenceRequest) -> InferenceRequest:
        limits = key.limits
        if limits.models is not None:
            model = request.model or self._default_model(request.task)
            if model is None or not _named(key, model):
                asked = f"{model!r}" if model else "a request without a model"
                raise NotAllowed(
                    f"the key {key.name!r} does not permit {asked}; it may ask for: "
                    f"{', '.join(limits.models) or 'none'}",
                    param="model",
                )
            # The bytes as they came may name other models, in fields that only the upstream knows.
            wire = request.wire and msgspec.structs.replace(request.wire, restricted=True)
            request = msgspec.structs.replace(request, model=model, wire=wire)
        if limits.backend_types is not None:
            permitted = frozenset(BackendType(item) for item in limits.backend_types)
            request = msgspec.structs.replace(request, permitted_types=permitted)
        elif ADMIN not in key.scopes:
            # A tool can read what its user can: whoever made the key must have meant that.
            request = msgspec.structs.replace(request, permitted_types=_WITHOUT_TOOLS)
        return request


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them in its headers: ``6m0s``, ``1s``, ``250ms``; never less than it is."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _named(key: Key, model: str) -> bool:
    models = key.limits.models
    return models is None or model in models or any(fnmatchcase(model, item) for item in models)


def _estimate(request: InferenceRequest, limits: Limits) -> int:
    """Tokens a request may take: its prompt, and the most it lets be generated, or a usual answer."""
    prompt = request.prompt_estimate
    if request.task != TEXT_GENERATION:
        return prompt
    parameters: Mapping[str, object] = request.parameters
    choices = max(_whole(parameters.get("n")), _whole(parameters.get("best_of")), 1)
    # Which of them an upstream follows is its own affair.
    most = max(_whole(parameters.get(name)) for name in LENGTHS)
    if most:
        return prompt + most * choices
    # Nobody said how long; a small limit must not refuse for ever what may well be short.
    room = min(limits.tokens_per_minute or USUAL_ANSWER, limits.token_budget or USUAL_ANSWER) - prompt
    return prompt + max(1, min(USUAL_ANSWER * choices, room))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
