"""What all widgets are made of: code that a notebook keeps once, and a way to the service."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import anywidget
from ipywidgets import Widget
from traitlets import Bool, Dict, List, Unicode

from uia_lab.domain.errors import BadRequest, InferenceError, suggestion
from uia_lab.notebook.transport import Transport
from uia_lab.notebook.widgets.assets import css, shared, text

POLL_S = 1.0
# The browser renews its wish every 5 s, so a closed tab ends the polling soon.
LEASE_S = 15.0
ANSWER_S = 60.0
ASKED = (
    "backend",
    "change_backend",
    "explain",
    "probe_backend",
    "request",
    "requests",
    "set_strategy",
    "strategies",
)
"""Methods of the transport that the browser may have called."""


class Source(Widget):  # type: ignore[misc]  # ipywidgets has no types
    """A file of ours as a model that widgets refer to; it has no view."""

    text = Unicode().tag(sync=True)


_sources: dict[str, Source] = {}


def source(name: str) -> Source:
    """The model of a file, or of what all modules share; made at first use and after it was closed."""
    made = _sources.get(name)
    if made is None or made.comm is None:
        made = _sources[name] = Source(text={"css": css, "shared": shared}.get(name, lambda: text(name))())
    return made


def reference(widget: Widget) -> str:
    """How a widget's JavaScript is told of another one, for ``host.getWidget``."""
    return f"anywidget:{widget.model_id}"


class LabWidget(anywidget.AnyWidget):
    """A widget of one JavaScript file, which has what is in ``live.js`` and its neighbours at hand.

    A notebook that is saved with the state of its widgets has each file once, however many widgets there are.
    """

    _module: ClassVar[str]
    """Name of its file in ``static/``."""

    _esm = text("loader.js")
    _sources = List(Unicode()).tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        parts = [source("css"), source("shared"), source(self._module)]
        super().__init__(_sources=[reference(part) for part in parts], **traits)

    def still(self) -> dict[str, Any]:
        """The text and HTML forms that a saved notebook keeps."""
        raise NotImplementedError

    def __repr__(self) -> str:
        text: str = self.still()["text/plain"]
        return text

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        view = super()._repr_mimebundle_(**kwargs)
        data = view[0] if isinstance(view, tuple) else view
        return {**(data or {}), **self.still()}


@dataclass(frozen=True, slots=True)
class Service:
    """The way of a widget to the service that it shows.

    Args:
        transport: Who serves.
        spawn: Runs a coroutine function in the background; the Lab's.
    """

    transport: Transport
    spawn: Callable[..., Any]


class LiveWidget(LabWidget):
    """A widget that follows the service.

    The browser reads it from the server's WebSocket, so it moves while the kernel is busy. Where the page's
    server is another instance, or there is none, the browser asks the kernel instead.

    Args:
        service: Whom to ask.
        report: The status report to begin with.
        **traits: Further traits.
    """

    report = Dict().tag(sync=True)
    instance_id = Unicode("").tag(sync=True)
    where = Unicode("").tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)

    def __init__(self, service: Service, report: Mapping[str, Any], **traits: Any) -> None:
        super().__init__(
            report=dict(report),
            where=service.transport.where,
            direct=service.transport.kind == "server",
            instance_id=str(report.get("instance_id", "")),
            **traits,
        )
        self._service = service
        self._until = 0.0
        self._polling = False
        self._told_samples = 0
        self._told_instance = ""
        self.on_msg(self._told)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        try:
            if kind == "poll":
                self._poll_for_a_while(whole=bool(content.get("whole")))
            elif kind == "ask":
                self._service.spawn(self._answer, content)
        except RuntimeError as error:  # the Lab is closed: the last report stays
            self.send({"type": "trouble", "message": str(error)})

    def _poll_for_a_while(self, *, whole: bool) -> None:
        self._until = time.monotonic() + LEASE_S
        if whole:
            self._told_samples = 0
        if not self._polling:
            self._polling = True
            try:
                self._service.spawn(self._poll)
            except RuntimeError:
                self._polling = False
                raise

    async def _poll(self) -> None:
        try:
            while time.monotonic() < self._until:
                try:
                    async with asyncio.timeout(10):
                        self.report = await self._service.transport.status()
                        history = await self._history()
                    self.send({"type": "history", "history": history})
                except Exception as error:  # noqa: BLE001  # shown where the reader looks, and tried again
                    self.send({"type": "trouble", "message": str(error)})
                await asyncio.sleep(POLL_S)
        finally:
            self._polling = False

    async def _history(self) -> dict[str, Any]:
        """What the browser does not know yet; all of it where the service has been started anew."""
        history = await self._service.transport.history(self._told_samples)
        if history["instance_id"] != self._told_instance and self._told_samples:
            history = await self._service.transport.history(0)
        self._told_instance, self._told_samples = history["instance_id"], history["taken"]
        return history

    async def _answer(self, asked: Mapping[str, Any]) -> None:
        try:
            name, arguments = str(asked.get("name")), asked.get("arguments") or []
            if name not in ASKED:
                raise BadRequest(f"a widget cannot ask for {name!r}.{suggestion(name, ASKED)}")
            async with asyncio.timeout(ANSWER_S):
                answer = {"value": await getattr(self._service.transport, name)(*arguments)}
        except InferenceError as error:
            answer = {"error": error.message}
        except TimeoutError:
            answer = {"error": f"no answer from {self.where} within {ANSWER_S:g} s"}
        except Exception as error:  # noqa: BLE001  # whatever it is, the browser waits for a word
            answer = {"error": str(error) or type(error).__name__}
        self.send({"type": "answer", "id": asked.get("id"), **answer})
