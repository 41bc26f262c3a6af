"""The peers, live: a picture of who is how far away, and a table that trusts and invites."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
from traitlets import Bool, Dict, Unicode

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.notebook.peers import still
from uia_lab.notebook.transport import Transport
from uia_lab.notebook.widgets.assets import css, esm

POLL_S = 2.0
# The browser renews its wish every 5 s, so a closed tab ends the polling soon.
LEASE_S = 15.0
ANSWER_S = 60.0
ACTIONS: Mapping[str, str] = {
    "invite": "invite_peer",
    "accept": "accept_invite",
    "trust": "trust_peer",
    "revoke": "revoke_peer",
}
"""What the browser may ask the kernel to do, and the method of the transport that does it."""


class PeerMap(anywidget.AnyWidget):
    """The peers of a service as a picture and as a table, with invite, accept, trust and revoke.

    The browser asks the page's own server. Where that is another instance, or there is none, the kernel is
    asked instead. The link of an invite goes to the page that asked for it, never into the saved notebook.

    Args:
        report: As ``GET /peers`` gives it, to begin with.
        where: In words, who serves.
        instance_id: Id of the service.
        direct: Whether the browser may be able to reach the service.
        spawn: Runs a coroutine function in the background; the Lab's.
        transport: Who serves.
    """

    _esm = esm("peer_map.js")
    _css = css()

    report = Dict().tag(sync=True)
    instance_id = Unicode("").tag(sync=True)
    where = Unicode("").tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)

    def __init__(
        self,
        report: Mapping[str, Any],
        *,
        where: str,
        instance_id: str,
        direct: bool,
        spawn: Callable[..., Any],
        transport: Transport,
    ) -> None:
        super().__init__(report=dict(report), where=where, instance_id=instance_id, direct=direct)
        self._spawn = spawn
        self._transport = transport
        self._until = 0.0
        self._polling = False
        self.on_msg(self._told)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        try:
            if kind == "poll":
                self._until = time.monotonic() + LEASE_S
                if not self._polling:
                    self._polling = True
                    self._spawn(self._poll)
            elif kind == "do":
                self._spawn(self._do, content)
        except RuntimeError as error:  # the Lab is closed: the last report stays
            self._polling = False
            self.send({"type": "trouble", "message": str(error)})

    async def _poll(self) -> None:
        try:
            while time.monotonic() < self._until:
                try:
                    self.report = await asyncio.wait_for(self._transport.peers(), 10)
                except Exception as error:  # noqa: BLE001  # shown where the reader looks, and tried again
                    self.send({"type": "trouble", "message": str(error)})
                await asyncio.sleep(POLL_S)
        finally:
            self._polling = False

    async def _do(self, asked: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"type": "answer", "id": asked.get("id")}
        try:
            action = str(asked.get("action"))
            if action not in ACTIONS:
                raise BadRequest(f"a map cannot {action!r}.{suggestion(action, ACTIONS)}")
            arguments = list(asked.get("arguments") or ())
            method = getattr(self._transport, ACTIONS[action])
            answer["value"] = await asyncio.wait_for(method(*arguments), ANSWER_S)
            self.report = await asyncio.wait_for(self._transport.peers(), 10)
        except TimeoutError:
            answer["error"] = f"no answer from {self.where} within {ANSWER_S:g} s"
        except Exception as error:  # noqa: BLE001  # whatever it is, the page waits for a word
            answer["error"] = str(error) or type(error).__name__
        self.send(answer)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        view = super()._repr_mimebundle_(**kwargs)
        data = view[0] if isinstance(view, tuple) else view
        return {**(data or {}), **still(self.report)}
