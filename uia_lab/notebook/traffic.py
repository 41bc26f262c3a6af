"""What AsyncLab knows of past requests: tables, figures, a page, and what might have been."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uia_lab.domain.errors import BadRequest
from uia_lab.notebook import figures
from uia_lab.notebook.asking import QUESTION_S, within
from uia_lab.notebook.frames import requests_frame
from uia_lab.notebook.lab_core import LabCore
from uia_lab.notebook.moments import Moment, epoch
from uia_lab.notebook.replay_report import ReplayReport

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

PAGE = 1000
MOST = 100_000
REPORT_S = 120.0


class Traffic(LabCore):
    """The part of :class:`AsyncLab` about requests that have been."""

    @within(REPORT_S)
    async def requests(
        self,
        since: Moment | None = None,
        *,
        until: Moment | None = None,
        backend: str | None = None,
        outcome: str | None = None,
        model: str | None = None,
        task: str | None = None,
        limit: int = 1000,
    ) -> "pd.DataFrame":
        """Requests as a table, the newest first; yours, or everybody's for an administrator.

        Args:
            since: Only what began then or later: a date, a timedelta before now, ISO 8601, or seconds since
                the epoch.
            until: Only what began then or before.
            backend: Only what this backend answered, or tried last.
            outcome: Only ``ok``, ``failed``, ``cancelled`` or ``rejected``.
            model: Only those of this model, among the latest ``limit``.
            task: Only those of this task, among the latest ``limit``.
            limit: How many to look at at most, the latest, up to 100,000.

        Returns:
            A DataFrame with the columns and types of :data:`uia_lab.notebook.frames.COLUMNS`; times in ms.

        Raises:
            BadRequest: A bad filter, or pandas is not installed.
        """
        frame = await self._frame(since, until=until, backend=backend, outcome=outcome, limit=limit)
        for column, wanted in (("model", model), ("task", task)):
            if wanted is not None:
                frame = frame[frame[column] == wanted]
        return frame.reset_index(drop=True)

    @within(REPORT_S)
    async def plot_latency(self, since: Moment | None = None, *, limit: int = 1000) -> "go.Figure":
        """When each request came and how long it took, by backend.

        Every figure exports: ``.write_html(path)``, and, with the ``reports`` extra and a Chrome or Chromium
        on this machine, ``.write_image("figure.png")``.

        Args:
            since: As for :meth:`requests`.
            limit: As for :meth:`requests`.
        """
        return await self._drawn(figures.latency, since, limit)

    @within(REPORT_S)
    async def plot_share(self, since: Moment | None = None, *, limit: int = 1000) -> "go.Figure":
        """Who answered over time; arguments as for :meth:`plot_latency`."""
        return await self._drawn(figures.share, since, limit)

    @within(REPORT_S)
    async def plot_tokens(self, since: Moment | None = None, *, limit: int = 1000) -> "go.Figure":
        """Tokens read and written by model; arguments as for :meth:`plot_latency`."""
        return await self._drawn(figures.tokens, since, limit)

    @within(REPORT_S)
    async def plot_compare(
        self, since: Moment | None = None, *, by: str = "backend", limit: int = 1000
    ) -> "go.Figure":
        """Backends, or models, side by side: latency, first token and speed.

        Args:
            since: As for :meth:`requests`.
            by: ``backend`` or ``model``.
            limit: As for :meth:`requests`.
        """
        return await self._drawn(lambda frame: figures.compare(frame, by), since, limit)

    @within(REPORT_S)
    async def report(
        self,
        path: str | os.PathLike[str] = "uia-report.html",
        since: Moment | None = None,
        *,
        limit: int = 1000,
    ) -> Path:
        """Writes backends, figures and the latest requests as one HTML page that needs no network.

        Args:
            path: Where to; a file that is there is replaced.
            since: As for :meth:`requests`.
            limit: As for :meth:`requests`.

        Returns:
            Where it is. About 5 MB, nearly all of it the library that draws.
        """
        from uia_lab.notebook.report_page import report_page

        status, frame = await self._transport.status(), await self._frame(since, limit=limit)

        def write() -> Path:
            target = Path(path).expanduser().absolute()
            draft = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                draft.write_text(report_page(self.where, status, frame), "utf-8")
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
            return target

        return await asyncio.to_thread(write)

    @within(QUESTION_S)
    async def replay(
        self, strategy: str | None = None, *, since: Moment | None = None, limit: int | None = None
    ) -> ReplayReport:
        """What another strategy would have made of past requests: a simulation, on the server.

        Args:
            strategy: Name of the strategy; the present one when absent, to see how good the simulation is.
            since: Only what began then or later, as for :meth:`requests`.
            limit: How many requests at most, the latest; 5000 when absent, 20,000 at most.

        Raises:
            BadRequest: An unknown strategy, or nothing to replay.
            QueueFull: Another replay is running.
            DeadlineExceeded: It took too long; ask for fewer.
        """
        fields = {"strategy": strategy, "since": epoch(since, "since"), "limit": limit}
        given = {name: value for name, value in fields.items() if value is not None}
        return ReplayReport(await self._transport.replay(given))

    async def _drawn(
        self, draw: Callable[["pd.DataFrame"], "go.Figure"], since: Moment | None, limit: int
    ) -> "go.Figure":
        frame = await self._frame(since, limit=limit)
        return await asyncio.to_thread(draw, frame)

    async def _frame(
        self, since: Moment | None, *, until: Moment | None = None, limit: int, **filters: Any
    ) -> "pd.DataFrame":
        """The frame of the latest requests, asked for page by page."""
        if not isinstance(limit, int) or not 1 <= limit <= MOST:
            raise BadRequest(f"limit must be a whole number from 1 to {MOST:,}", param="limit")
        begin, end = epoch(since, "since"), epoch(until, "until")
        rows: list[dict[str, Any]] = []
        seen: set[tuple[str, float]] = set()
        while len(rows) < limit:
            wanted = min(PAGE, limit - len(rows) + 1)
            page = (await self._transport.requests(wanted, since=begin, until=end, **filters))["requests"]
            # The end is included, so what lies on it comes twice.
            fresh = [item for item in page if (item["id"], item["began_at"]) not in seen]
            rows += fresh
            seen |= {(item["id"], item["began_at"]) for item in fresh}
            if len(page) < wanted or not fresh:
                break
            end = min(item["began_at"] for item in page)
        # Importing pandas takes a second, which the loop has no time for.
        return await asyncio.to_thread(requests_frame, rows[:limit])
