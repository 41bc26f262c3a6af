"""``POST /replay``: what another strategy would have made of the traffic in the log."""

import asyncio
from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.times import moment
from uia_lab.doors.requests import SeenRequests
from uia_lab.traffic_replay import MOST


class ReplayDoor(SeenRequests):
    """``POST /replay {strategy?, since?, limit?}``: what another strategy would have made of requests."""

    _work: asyncio.Task[dict[str, Any]] | None = None

    async def post(self) -> None:
        """The figures for ``{strategy?, since?, limit?}``."""
        values = self.json_body()
        fields = Fields(values)
        fields.only(("strategy", "since", "limit"))
        since = None if values.get("since") is None else moment(values["since"], "since")
        self._work = asyncio.create_task(
            self.service.replay.run(
                self.request_log(),
                fields.text("strategy", 128),
                since,
                fields.whole("limit", 1, MOST),
                self.owner,
            )
        )
        try:
            self.answer(await self._work)
        except asyncio.CancelledError:
            if not self._work.cancelled():
                raise
            # The client has gone: nobody is left to answer.

    def on_connection_close(self) -> None:
        """Ends it; nobody waits for it any more."""
        if self._work is not None:
            self._work.cancel()
        super().on_connection_close()
