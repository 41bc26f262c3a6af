"""What the parts of the manager need of it."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from uia_lab.access.limits import Admission
from uia_lab.domain.records import RequestRecord
from uia_lab.domain.requests import InferenceRequest
from uia_lab.manager.lifecycle import Lifecycle
from uia_lab.manager.running import Running
from uia_lab.manager.watch import Alarm
from uia_lab.routing.figures import Counters
from uia_lab.routing.queues import Ticket
from uia_lab.routing.router import Router
from uia_lab.routing.turns import Attempt, Turn


class Host(Protocol):
    """The manager, as a journey sees it."""

    instance_id: str
    router: Router
    lifecycle: Lifecycle
    totals: Counters
    alarm: Alarm
    clock: Callable[[], float]
    rng: random.Random
    waiting: dict[Ticket, asyncio.Future[Attempt]]
    running: dict[str, Running]
    request_timeout: float
    max_attempts: int
    log_prompts: bool
    on_record: Callable[[RequestRecord], None] | None
    admit: Callable[[InferenceRequest], Admission] | None

    def settle(self, turns: list[Turn]) -> None:
        """Hands backends to those who waited for them."""
