"""What AsyncLab shows of a service that runs: who serves, how, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from uia_lab.domain.backends import BackendType
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.asking import QUESTION_S, within
from uia_lab.notebook.explanation import Explanation
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.lab_core import LabCore
from uia_lab.notebook.status import StatusReport


class Watching(LabCore):
    """The part of :class:`AsyncLab` about the service as it runs."""

    async def status(self) -> StatusReport:
        """The status report: a mapping to programs, a live table in a notebook."""
        return StatusReport(await self._report(), live=self._board)

    async def balance(self, *, window: int = 120) -> Any:
        """Who serves what over time: a live chart in a notebook, elsewhere a table of the figures so far.

        Args:
            window: Seconds shown to begin with: 120, 300 or 900.
        """
        from uia_lab.notebook.widgets.balancing_chart import BalancingChart

        return BalancingChart(self.service, await self._report(), window_s=window)

    @within(QUESTION_S)
    async def explain(
        self,
        task: str = TEXT_GENERATION,
        model: str | None = None,
        *,
        prefer: BackendType | str | Sequence[BackendType | str] | None = None,
        protocols: Sequence[str] | None = None,
        backend: str | None = None,
        request: str | Generation | None = None,
    ) -> Explanation:
        """Who would serve such a request now, and why not the others; nothing runs.

        Args:
            task: Its task.
            model: Its model; None for the default model.
            prefer: Backend types to try first, best first.
            protocols: Protocols that the backend must speak.
            backend: Id of the only backend to use.
            request: A request that ran, or its id: why it was served where it was.

        Raises:
            BadRequest: An unknown task, type or request.
        """
        report = await self._transport.status()

        def live(shown: Mapping[str, Any]) -> Any:
            from uia_lab.notebook.widgets.route_view import RouteView

            return RouteView(self.service, report, shown=shown)

        if request is not None:
            return Explanation((await self.request(request))["decision"], live)
        fields = {
            "task": task,
            "model": model,
            "preferred_types": [prefer] if isinstance(prefer, str) else list(prefer or ()) or None,
            "required_protocols": list(protocols or ()) or None,
            "backend_id": backend,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return Explanation(await self._transport.explain(given), live)

    @within(QUESTION_S)
    async def request(self, request: str | Generation) -> dict[str, Any]:
        """All that is known of a request: decision, attempts, usage, times.

        Args:
            request: Its id, or the answer it gave.

        Raises:
            InferenceError: There is no such request, or it is somebody else's.
        """
        request_id = request.request_id if isinstance(request, Generation) else request
        return await self._transport.request(request_id or "")

    @within(QUESTION_S)
    async def set_strategy(self, name: str) -> str:
        """Changes how backends are chosen, for everybody and after the next start too.

        Args:
            name: ``best_performance``, ``least_loaded``, ``round_robin``, ``weighted_random``,
                ``prefix_affinity``, ``cost``, or one that a package adds.

        Returns:
            The strategy in force.

        Raises:
            BadRequest: An unknown one; the message lists those there are.
            NotAllowed: The key may not change it.
        """
        return str((await self._transport.set_strategy(name))["strategy"])

    @property
    def service(self) -> Any:
        """The way of widgets to the service."""
        from uia_lab.notebook.widgets.base import Service

        return Service(self._transport, self.spawn)

    def _board(self, report: dict[str, Any]) -> Any:
        """A live table of the backends, fed by the browser's socket or, failing that, from here."""
        from uia_lab.notebook.widgets.status_board import StatusBoard

        return StatusBoard(self.service, report)
