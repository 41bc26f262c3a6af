"""Requests that wait for a free backend: bounded for each demand, in order of priority, fair to callers."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.eligibility import Demand
from uia_lab.routing.strategies import Tried


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request.

    Attributes:
        expires_at: When waiting has been too long, on the router's clock.
    """

    request: InferenceRequest
    demand: Demand
    attempt: int
    excluded: Tried
    since: float
    expires_at: float
    number: int = field(default_factory=itertools.count().__next__)


class Queue:
    """All waiting requests.

    Args:
        size: Tickets at most for one (task, model).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tickets: dict[int, Ticket] = {}
        self._counts: dict[tuple[str, str | None], int] = {}
        self._served: dict[str, int] = {}
        self._turn = itertools.count(1)

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets.values()))

    def counts(self) -> dict[tuple[str, str | None], int]:
        """Waiting requests by (task, model)."""
        return dict(self._counts)

    def full(self, demand: Demand) -> bool:
        """Whether no more may wait for this demand."""
        return self._counts.get((demand.task, demand.model), 0) >= self.size

    def add(self, ticket: Ticket) -> None:
        """Lets a request wait."""
        key = (ticket.demand.task, ticket.demand.model)
        self._tickets[ticket.number] = ticket
        self._counts[key] = self._counts.get(key, 0) + 1

    def remove(self, ticket: Ticket) -> bool:
        """Takes a ticket out; False if it was out already."""
        if self._tickets.pop(ticket.number, None) is None:
            return False
        key = (ticket.demand.task, ticket.demand.model)
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
        if not self._tickets:
            self._served.clear()
        return True

    def serve(self, grant: Callable[[Ticket], bool]) -> None:
        """Offers the free slots: highest priority first, then the caller served longest ago, then age.

        Args:
            grant: Takes a ticket, says whether it got a backend.
        """
        stuck: set[tuple[Demand, Tried]] = set()
        while True:
            waiting = [
                ticket for ticket in self._tickets.values() if (ticket.demand, ticket.excluded) not in stuck
            ]
            if not waiting:
                return
            ticket = min(
                waiting,
                key=lambda item: (
                    -item.request.routing.priority,
                    self._served.get(item.request.principal, 0),
                    item.number,
                ),
            )
            if grant(ticket):
                self._served[ticket.request.principal] = next(self._turn)
                self.remove(ticket)
            else:
                stuck.add((ticket.demand, ticket.excluded))

    def expired(self, now: float) -> list[Ticket]:
        """Takes out and returns the tickets that have waited too long."""
        late = [ticket for ticket in self._tickets.values() if ticket.expires_at <= now]
        for ticket in late:
            self.remove(ticket)
        return late

    def next_expiry(self) -> float | None:
        """When the next ticket expires."""
        return min((ticket.expires_at for ticket in self._tickets.values()), default=None)
