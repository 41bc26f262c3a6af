"""What each peer takes here, against what it may: models, requests at once, tokens a minute."""

import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from uia_lab.access.limits import LENGTHS, USUAL_ANSWER
from uia_lab.access.windows import Window
from uia_lab.domain.errors import BadRequest, NotAllowed, RateLimited
from uia_lab.domain.events import Usage
from uia_lab.domain.peers import Offer, Quota
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION

MOST_AT_ONCE = 64
MOST_KNOWN = 1024
RETRY_S = 1.0


class Taken:
    """What one request of a peer holds; given back once, when it ends."""

    def __init__(self, give_back: Callable[[Usage], None]) -> None:
        self._give_back: Callable[[Usage], None] | None = give_back

    def finish(self, usage: Usage) -> None:
        """Charges what was used; a second call does nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(usage)


class Quotas:
    """Counts for each peer. Belongs to the loop of the node.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[str, int] = {}
        self._windows: dict[str, Window] = {}

    def running(self, peer_id: str) -> int:
        """Requests of a peer that are worked on."""
        return self._running.get(peer_id, 0)

    def take(self, peer_id: str, quota: Quota, offer: Offer, request: InferenceRequest) -> Taken:
        """Lets a peer's request in.

        Args:
            peer_id: Who asks.
            quota: What it may use.
            offer: What is lent.
            request: What it asks for.

        Raises:
            BadRequest: It names no model.
            NotAllowed: The model is not lent, or not to this peer.
            RateLimited: It has as many requests as it may, or its tokens are used up.
        """
        _permit(quota, offer, request)
        running = self.running(peer_id)
        most = min(MOST_AT_ONCE, MOST_AT_ONCE if quota.max_concurrent is None else quota.max_concurrent)
        if running >= most:
            raise RateLimited(
                f"{running} of your requests are under way here, as many as you may have",
                retry_after=RETRY_S,
            )
        now = self._clock()
        tokens = _estimate(request)
        window = self._window(peer_id, quota, now)
        slot = None
        if window is not None:
            wait = window.wait(tokens, now)
            if wait > 0:
                raise RateLimited(
                    f"you may use {window.limit:g} tokens a minute here; this asks for about {tokens}, and "
                    f"{window.remaining(now):g} are left",
                    retry_after=wait if wait < float("inf") else None,
                )
            slot = window.take(tokens, now)
        self._running[peer_id] = running + 1

        def give_back(usage: Usage) -> None:
            left = self._running[peer_id] - 1
            if left:
                self._running[peer_id] = left
            else:
                del self._running[peer_id]
            if window is not None and slot is not None:
                window.give_back(slot, tokens)
                window.take(usage.total_tokens, self._clock())

        return Taken(give_back)

    def _window(self, peer_id: str, quota: Quota, now: float) -> Window | None:
        if quota.tokens_per_minute is None:
            self._windows.pop(peer_id, None)
            return None
        if peer_id not in self._windows and len(self._windows) >= MOST_KNOWN:
            # One with nothing to remember is as good as new.
            for known in [known for known, window in self._windows.items() if not window.taken(now)]:
                del self._windows[known]
        window = self._windows.setdefault(peer_id, Window(0))
        window.limit = quota.tokens_per_minute
        return window


def _permit(quota: Quota, offer: Offer, request: InferenceRequest) -> None:
    if request.task in offer.tasks and request.model is None:
        return
    if request.model is None:
        raise BadRequest("name a model that is lent here", param="model")
    lent = any(request.model == model.name and request.task in model.tasks for model in offer.models)
    if not lent and request.task not in offer.tasks:
        raise NotAllowed(f"{request.model!r:.200} is not lent for {request.task} here", param="model")
    if quota.models is not None and not any(fnmatchcase(request.model, name) for name in quota.models):
        raise NotAllowed(f"{request.model!r:.200} is not lent to you", param="model")


def _estimate(request: InferenceRequest) -> int:
    """Tokens that are set aside until the real figures are known."""
    if request.task != TEXT_GENERATION:
        return max(1, request.prompt_estimate)
    lengths = _whole(request, LENGTHS)
    choices = max([1, *_whole(request, ("n", "best_of"))])
    return max(1, request.prompt_estimate + choices * max(0, max(lengths, default=USUAL_ANSWER)))


def _whole(request: InferenceRequest, names: Iterable[str]) -> list[int]:
    asked = (request.parameters.get(name) for name in names)
    return [value for value in asked if isinstance(value, int) and not isinstance(value, bool)]
