"""The peers, live: a picture of who is how far away, and a table that trusts and invites."""

from collections.abc import Mapping
from typing import Any

from traitlets import Dict

from uia_lab.notebook.peers import still
from uia_lab.notebook.widgets.base import LiveWidget, Service


class PeerMap(LiveWidget):
    """The peers of a service as a picture and as a table, with invite, accept, trust and revoke.

    The link of an invite goes to the page that asked for it, never into the saved notebook.

    Args:
        service: Whom to ask.
        report: The status report to begin with.
        peers: The peers to begin with, as ``GET /peers`` gives them; the page asks for them when absent.
    """

    _module = "peer_map.js"

    peers = Dict().tag(sync=True)

    def __init__(
        self, service: Service, report: Mapping[str, Any], *, peers: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(service, report, peers=dict(peers or {}))

    def still(self) -> dict[str, Any]:
        """The table as it was."""
        return still(self.peers)
