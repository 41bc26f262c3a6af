"""What the router answers, and what it is told: leases, outcomes, tickets that were served or expired."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.decision import Decision
from uia_lab.routing.figures import Ending, Figures
from uia_lab.routing.queues import Ticket
from uia_lab.routing.registry import Registered

NO_USAGE = Usage()


class Attempt(msgspec.Struct, eq=False):
    """A lease: one request at one backend, from ``begin`` to ``finish``.

    Attributes:
        request: The request, with the default model filled in.
        figures: Those of the model at this backend.
        trial: Whether it is the one request that a half-open breaker lets through.
        ended: True once it was finished; a second ``finish`` changes nothing.
    """

    request: InferenceRequest
    backend: Registered
    number: int
    decision: Decision
    started_at: float
    figures: Figures
    trial: bool = False
    ended: bool = False
    _told: dict[str, Any] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The decision as it is shown, made once."""
        if self._told is None:
            self._told = self.decision.to_dict()
        return self._told


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended.

    Args:
        ending: Which counter it goes to.
        error: The error, if there was one.
        usage: Token counts, as far as they are known.
        first_token_s: Seconds from the lease to the first chunk, if one came.
        whole: Whether it came in one piece, which tells nothing of the tokens' rate.
    """

    ending: Ending
    error: InferenceError | None = None
    usage: Usage = NO_USAGE
    first_token_s: float | None = None
    whole: bool = False


class Granted(msgspec.Struct, frozen=True):
    """A backend was leased; ``ticket`` is the one that waited for it, if one did."""

    attempt: Attempt
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """Everybody who could serve is busy: a ticket waits."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Refused:
    """Nobody can serve, or no more may wait."""

    error: InferenceError


@dataclass(frozen=True, slots=True)
class Expired:
    """A ticket waited too long."""

    ticket: Ticket
    error: InferenceError


Turn: TypeAlias = Granted | Expired


@dataclass(frozen=True, slots=True)
class Transition:
    """A backend's status or routability changed.

    Args:
        backend_id: Whose.
        was: The status before.
        status: The status now.
        routable: Whether requests may go there now.
        reason: Why, in words.
        at: Time on the router's clock, seconds.
    """

    backend_id: str
    was: str
    status: str
    routable: bool
    reason: str
    at: float
