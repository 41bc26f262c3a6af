"""The models of the serving machine, to load and unload."""

import asyncio
from collections.abc import Callable
from typing import Any

from traitlets import Dict, List, Unicode

from uia_lab.domain.errors import InferenceError
from uia_lab.notebook.transport import NotConnected, Transport
from uia_lab.notebook.widgets.base import LabWidget
from uia_lab.notebook.widgets.coalesce import Coalescer

INTERVAL_S = 0.05


class ModelManager(LabWidget):
    """A table of models with state, task, size, memory and device; each can be loaded or unloaded.

    The browser asks for fresh rows while it shows them; what it asks for runs on the Lab's loop, so a load
    keeps neither the kernel nor another row waiting.

    Args:
        transport: Who serves.
        spawn: Runs a coroutine function in the background; the Lab's.
        rows: The models to begin with, as ``GET /models`` lists them.
    """

    _module = "model_manager.js"

    rows: List[dict[str, Any]] = List().tag(sync=True)
    loads = Dict().tag(sync=True)
    hardware = Dict().tag(sync=True)
    where = Unicode("").tag(sync=True)
    trouble = Unicode("").tag(sync=True)

    def __init__(
        self, transport: Transport, spawn: Callable[..., Any], rows: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(rows=rows or [], where=transport.where)
        self._transport = transport
        self._spawn = spawn
        self._steps: dict[str, dict[str, Any]] = {}
        self._looking = False
        self._coalescer = Coalescer(self._push, lambda: INTERVAL_S)
        self.on_msg(self._told)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        # May run in a kernel subshell's thread: everything happens on the Lab's loop.
        try:
            match content:
                case {"type": "look"}:
                    self._spawn(self._look)
                case {"type": "hardware"}:
                    self._spawn(self._look_at_hardware)
                case {"type": "load", "model_id": str() as model_id, **more}:
                    self._spawn(self._load, model_id, more.get("device"), more.get("keep_alive"))
                case {"type": "dismiss", "model_id": str() as model_id}:
                    self._spawn(self._dismiss, model_id)
                case {"type": "unload", "model_id": str() as model_id}:
                    self._spawn(self._unload, model_id)
        except RuntimeError as error:  # the Lab is closed: the last rows stay
            self.trouble = str(error)

    async def _look(self) -> None:
        if self._looking:
            return
        self._looking = True
        try:
            self.rows = await self._transport.local_models()
            self.trouble = ""
        except (InferenceError, NotConnected) as error:
            self.trouble = str(error)
        finally:
            self._looking = False

    async def _look_at_hardware(self) -> None:
        try:
            self.hardware = await self._transport.hardware()
        except (InferenceError, NotConnected) as error:
            self.trouble = str(error)

    async def _load(self, model_id: str, device: Any, keep_alive: Any) -> None:
        if "stage" in self._steps.get(model_id, ()):
            return
        fields: dict[str, Any] = {"model_id": model_id}
        if isinstance(device, str) and device:
            fields["device"] = device
        if isinstance(keep_alive, (int, float)):
            fields["options"] = {"keep_alive": keep_alive}
        self._step(model_id, {"stage": "finding", "done": 0, "total": 1})
        try:
            await self._transport.load_model(fields, lambda step: self._step(model_id, step))
        except (InferenceError, NotConnected) as error:
            code = getattr(error, "code", "not_connected")
            self._step(model_id, {"error": str(error), "code": code})
        except asyncio.CancelledError:
            self._step(model_id, {"error": "the Lab was closed", "code": "cancelled"})
            raise
        else:
            self._step(model_id, None)
        self._coalescer.flush()
        await asyncio.gather(self._look(), self._look_at_hardware())

    async def _dismiss(self, model_id: str) -> None:
        """Takes back what is said of a load that failed."""
        if "error" in self._steps.get(model_id, ()):
            self._step(model_id, None)

    async def _unload(self, model_id: str) -> None:
        try:
            await self._transport.unload_model(model_id)
            self._step(model_id, None)
        except (InferenceError, NotConnected) as error:
            self._step(model_id, {"error": str(error), "code": getattr(error, "code", "not_connected")})
        self._coalescer.flush()
        await asyncio.gather(self._look(), self._look_at_hardware())

    def _step(self, model_id: str, step: dict[str, Any] | None) -> None:
        if step is None:
            self._steps.pop(model_id, None)
        else:
            self._steps[model_id] = dict(step)
        self._coalescer.touch()

    def _push(self) -> None:
        self.loads = dict(self._steps)

    def still(self) -> dict[str, str]:
        """The text and HTML forms that a saved notebook keeps."""
        from uia_lab.notebook.models import still

        return still(self.rows)
