"""The backends, live."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anywidget
from traitlets import Bool, Dict, Unicode

from uia_lab.notebook.status import still
from uia_lab.notebook.widgets.assets import css, esm

POLL_S = 1.0
# The browser renews its wish every 5 s, so a closed tab ends the polling soon.
LEASE_S = 15.0


class StatusBoard(anywidget.AnyWidget):
    """A live table of a service's backends.

    The browser reads it from the server's WebSocket, so it moves while the kernel is busy. Where the page's
    server is another instance, or there is none, the browser asks the kernel for the reports instead.

    Args:
        report: The report to begin with.
        where: In words, who serves.
        direct: Whether the browser may be able to reach the service.
        spawn: Runs a coroutine function in the background; the Lab's.
        fetch: Gets a fresh report.
    """

    _esm = esm("status_board.js")
    _css = css()

    report = Dict().tag(sync=True)
    instance_id = Unicode("").tag(sync=True)
    where = Unicode("").tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)

    def __init__(
        self,
        report: dict[str, Any],
        *,
        where: str,
        direct: bool,
        spawn: Callable[..., Any],
        fetch: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        super().__init__(
            report=report, where=where, direct=direct, instance_id=str(report.get("instance_id", ""))
        )
        self._spawn = spawn
        self._fetch = fetch
        self._until = 0.0
        self._polling = False
        self.on_msg(self._told)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict) or content.get("type") != "poll":
            return
        self._until = time.monotonic() + LEASE_S
        if not self._polling:
            self._polling = True
            try:
                self._spawn(self._poll)
            except RuntimeError:  # the Lab is closed: the last report stays
                self._polling = False

    async def _poll(self) -> None:
        try:
            while time.monotonic() < self._until:
                try:
                    self.report = await asyncio.wait_for(self._fetch(), 10)
                except Exception as error:  # noqa: BLE001  # shown where the reader looks, and tried again
                    self.send({"type": "trouble", "message": str(error)})
                await asyncio.sleep(POLL_S)
        finally:
            self._polling = False

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        view = super()._repr_mimebundle_(**kwargs)
        data = view[0] if isinstance(view, tuple) else view
        return {**(data or {}), **still(self.report)}
