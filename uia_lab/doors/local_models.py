"""The models of this machine: ``GET /models``, ``POST /models/load``, ``POST /models/unload``."""

import asyncio
from typing import Any, ClassVar

from tornado.iostream import StreamClosedError

from uia_lab.access.principals import ADMIN
from uia_lab.dialects import sse
from uia_lab.dialects.fields import Fields
from uia_lab.domain.errors import BadRequest, InferenceError
from uia_lab.doors.base import Door
from uia_lab.local_models import OPTIONS, LoadOptions

_STEPS = 256


class LocalModelsDoor(Door):
    """``GET /models``."""

    async def get(self) -> None:
        """The registered models of this machine with their state, and those that can be loaded."""
        self.answer({"models": await self.service.models.listed()})


class LoadDoor(Door):
    """``POST /models/load {model_id, device?, options?}``."""

    # It takes paths of this machine, and everybody's memory.
    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)
    _work: asyncio.Task[dict[str, Any]] | None = None

    async def post(self) -> None:
        """Loads a model; with ``Accept: text/event-stream`` each step is an event."""
        fields = Fields(self.json_body())
        fields.only(("model_id", "device", "options"))
        model_id, device = fields.text("model_id"), fields.text("device", 64)
        if model_id is None:
            raise BadRequest("model_id is missing", param="model_id")
        options = _options(fields.mapping("options"))
        if "text/event-stream" not in self.request.headers.get("Accept", ""):
            self._work = asyncio.create_task(self.service.models.load(model_id, device, options))
            try:
                self.answer(await self._work)
            except asyncio.CancelledError:
                if not self._work.cancelled():
                    raise
                # The client has gone: nobody is left to answer.
            return
        # The newest step counts; a client that does not read must not make them pile up.
        steps: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_STEPS)

        def tell(step: dict[str, Any]) -> None:
            if steps.full():
                steps.get_nowait()
            steps.put_nowait(step)

        self._work = asyncio.create_task(self.service.models.load(model_id, device, options, tell))
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        self.set_header("X-Accel-Buffering", "no")
        try:
            await self._events(self._work, steps)
        except StreamClosedError:
            pass
        finally:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _events(self, work: asyncio.Task[dict[str, Any]], steps: asyncio.Queue[dict[str, Any]]) -> None:
        while not work.done() or not steps.empty():
            step = asyncio.ensure_future(steps.get())
            done, _ = await asyncio.wait(
                {step, work} if not work.done() else {step},
                timeout=self.timings.waiting_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if step in done:
                await self._send(sse.event(step.result(), "progress"))
                continue
            step.cancel()
            if not done:
                await self._send(sse.WAITING)
        try:
            await self._send(sse.event(work.result(), "loaded"))
        except InferenceError as error:
            await self._send(sse.event(self.envelope(self.fault(error)), "error"))
        self.finish()

    async def _send(self, piece: bytes) -> None:
        self.write(piece)
        async with asyncio.timeout(self.timings.stalled_s):
            await self.flush()

    def on_connection_close(self) -> None:
        """Waits no more; the load itself goes on, for whoever asks next."""
        if self._work is not None:
            self._work.cancel()
        super().on_connection_close()


class UnloadDoor(Door):
    """``POST /models/unload {model_id}``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self) -> None:
        """Gives a model's memory back."""
        fields = Fields(self.json_body())
        fields.only(("model_id",))
        model_id = fields.text("model_id")
        if model_id is None:
            raise BadRequest("model_id is missing", param="model_id")
        self.answer(await self.service.models.unload(model_id))


def _options(values: dict[str, Any] | None) -> LoadOptions:
    fields = Fields(values or {}, "options.")
    fields.only(OPTIONS)
    return LoadOptions(
        engine=fields.text("engine", 64),
        task=fields.text("task", 64),
        name=fields.text("name", 256),
        dtype=fields.text("dtype", 64),
        concurrency=fields.whole("concurrency", 1, 256),
        context_length=fields.whole("context_length", 16, 1 << 20),
        keep_alive=fields.number("keep_alive", 0, 1e9),
    )
