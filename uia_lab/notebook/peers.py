"""``lab.peers()``: who lends us models and who may borrow ours, as a table that invites and trusts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.notebook.asking import Ask, action
from uia_lab.notebook.tables import html_table, text_table
from uia_lab.notebook.transport import Transport

COLUMNS = ("peer", "state", "why", "trust", "lends us", "may use of ours", "away", "in flight")
WORDS = 6
LONGEST = 60
SIGNS = {"connected": "●", "connecting": "◌", "found": "?", "offline": "○", "refused": "▲"}
WARNING = "whoever runs a peer can read what you ask it"
OFF = "no network of peers: start the server with enable_libp2p=True (LIBP2P_ENABLE=true)"


class NewInvite:
    """An invite that was just made. It is shown by :attr:`link` alone: a notebook is saved with its outputs.

    Args:
        made: What the service answered.

    Attributes:
        link: The link, to be sent to a friend by a way that others cannot read; it works once.
        id: What the service calls it.
        expires_at: When it ends, seconds since the epoch.
    """

    def __init__(self, made: Mapping[str, Any]) -> None:
        self.link: str = made["link"]
        self.id: str = made["id"]
        self.expires_at: float = made["expires_at"]

    def __repr__(self) -> str:
        return (
            f"<NewInvite {self.id}: print(its .link) and send it to one friend, who calls "
            "lab.peers().accept(link); it works once, and this text does not hold it>"
        )


class Peers(Mapping[str, Mapping[str, Any]]):
    """The peers as they were when they were asked for, by peer id.

    Args:
        report: As ``GET /peers`` gives it.
        transport: Who serves.
        ask: Runs its actions.
        live: Makes the map of a notebook of the report.

    Attributes:
        node: This node: ``peer_id``, ``mode``, ``network``, ``addresses``, ``lends``; None where it is off.
        invites: The invites that are open; their links are known to nobody any more.
    """

    def __init__(
        self,
        report: Mapping[str, Any],
        transport: Transport,
        ask: Ask,
        live: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._report = dict(report)
        self.node: Mapping[str, Any] | None = report["node"]
        self.invites: list[dict[str, Any]] = list(report["invites"])
        self._peers = {item["peer_id"]: item for item in report["peers"]}
        self._transport = transport
        self._ask = ask
        self._live = live

    @action
    async def invite(
        self,
        name: str | None = None,
        *,
        models: Iterable[str] | None = None,
        max_concurrent: int | None = 4,
        tokens_per_minute: int | None = None,
        ours: bool = False,
        expires_in: float | timedelta | None = None,
    ) -> NewInvite:
        """Makes a link by which one friend, once, may borrow what is lent here.

        Args:
            name: What that peer will be called here.
            models: Names, or patterns such as ``qwen*``, it may ask for; all that is lent when absent.
            max_concurrent: Its requests at once; None for no bound.
            tokens_per_minute: Its tokens of prompts and answers in any 60 seconds.
            ours: Whether it is a machine of yours: requests then go there without naming it.
            expires_in: How long the link works, in seconds or as a timedelta; a day when absent.

        Returns:
            The invite; only its ``link`` attribute shows the link.

        Raises:
            BadRequest: A wrong field.
            NotAllowed: You may not invite.
            NoBackendAvailable: The service is in no network of peers.
        """
        fields = _terms(name, models, ours) | {
            "max_concurrent": max_concurrent,
            "tokens_per_minute": tokens_per_minute,
        }
        if expires_in is not None:
            fields["expires_in"] = (
                expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in
            )
        return NewInvite(await self._transport.invite_peer(fields))

    @action
    async def withdraw(self, invite_id: str) -> None:
        """Takes an open invite back.

        Args:
            invite_id: Its id.
        """
        await self._transport.withdraw_invite(invite_id)
        self.invites = [item for item in self.invites if item["id"] != invite_id]

    @action
    async def accept(self, link: str, *, lend: bool = False, ours: bool = False) -> Mapping[str, Any]:
        """Uses a friend's invite: their models are backends from now on.

        Whoever runs that machine can read what you ask it.

        Args:
            link: The link they sent.
            lend: Whether they may use what is lent here, in return.
            ours: Whether it is a machine of yours: requests then go there without naming it.

        Returns:
            What is known of the peer.

        Raises:
            BadRequest: No link of an invite, or one of another network.
            NotAllowed: It was used or withdrawn, or is over.
            BackendFailed: The peer cannot be reached.
        """
        return self._note(await self._transport.accept_invite({"link": link, "lend": lend, "ours": ours}))

    @action
    async def trust(
        self,
        peer: str,
        *,
        name: str | None = None,
        models: Iterable[str] | None = None,
        max_concurrent: int | None = None,
        tokens_per_minute: int | None = None,
        ours: bool | None = None,
        addresses: Iterable[str] = (),
    ) -> Mapping[str, Any]:
        """Trusts a peer, or changes what is agreed with one; what is absent stays as it was.

        Args:
            peer: Its peer id, or the name of one that is listed.
            name: What it is called here.
            models: Names or patterns of models it may ask for; an empty list lends it nothing.
            max_concurrent: Its requests at once.
            tokens_per_minute: Its tokens of prompts and answers in any 60 seconds.
            ours: Whether it is a machine of yours: requests then go there without naming it.
            addresses: Where it is, as multiaddrs.

        Returns:
            What is known of the peer.

        Raises:
            BadRequest: No peer id, or a wrong field.
        """
        fields = _terms(name, models, ours) | {
            "max_concurrent": max_concurrent,
            "tokens_per_minute": tokens_per_minute,
            "addresses": list(addresses) or None,
        }
        given = {key: value for key, value in fields.items() if value is not None}
        return self._note(await self._transport.trust_peer(self._id_of(peer), given))

    @action
    async def revoke(self, peer: str) -> None:
        """Trusts a peer no more: its connection ends at once, with all it has under way.

        Args:
            peer: Its peer id or name.

        Raises:
            BadRequest: There is none; the message says which there are.
        """
        peer_id = self._id_of(peer)
        if peer_id not in self._peers:
            known = suggestion(peer, [item["name"] or key for key, item in self._peers.items()])
            raise BadRequest(f"there is no peer {peer!r}.{known}", param="peer")
        await self._transport.revoke_peer(peer_id)
        del self._peers[peer_id]

    def __getitem__(self, peer: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._peers[self._id_of(peer)]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._peers)

    def __len__(self) -> int:
        return len(self._peers)

    def __repr__(self) -> str:
        return text(self._now())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from uia_lab.notebook.presenters import in_kernel

        if self._live is not None and in_kernel():
            bundle: dict[str, Any] = self._live(self._now())._repr_mimebundle_()
            return bundle
        return still(self._now())

    def _now(self) -> dict[str, Any]:
        return self._report | {"peers": list(self._peers.values()), "invites": self.invites}

    def _note(self, info: dict[str, Any]) -> Mapping[str, Any]:
        self._peers[info["peer_id"]] = info
        return info

    def _id_of(self, peer: str) -> str:
        named = [peer_id for peer_id, item in self._peers.items() if item["name"] == peer]
        if len(named) > 1 and peer not in self._peers:
            raise BadRequest(f"{len(named)} peers are called {peer!r}: give the peer id", param="peer")
        return peer if peer in self._peers or not named else named[0]


def still(report: Mapping[str, Any]) -> dict[str, Any]:
    """The text and HTML forms that a saved notebook keeps."""
    return {"text/plain": text(report), "text/html": html(report)}


def text(report: Mapping[str, Any]) -> str:
    """The peers as an aligned table of plain text."""
    return text_table(headline(report), COLUMNS, _rows(report), WORDS)


def html(report: Mapping[str, Any]) -> str:
    """The peers as a plain HTML table."""
    return html_table(headline(report), COLUMNS, _rows(report), WORDS)


def headline(report: Mapping[str, Any]) -> str:
    """This node, and what people have to know, in one line."""
    node = report.get("node")
    if not node:
        return OFF
    peers = report["peers"]
    connected = sum(peer["state"] == "connected" for peer in peers)
    lends = ", ".join(node["lends"][:3]) + (
        f" and {len(node['lends']) - 3} more" if node["lends"][3:] else ""
    )
    return (
        f"{connected} of {len(peers)} peers connected · network {node['network']!r} ({node['mode']}) · "
        f"lends {lends or 'nothing'} · {WARNING}"
    )


def cells(peer: Mapping[str, Any]) -> list[str]:
    """The cells of one peer, under COLUMNS."""
    state = str(peer["state"])
    load = peer.get("load")
    away = peer.get("rtt_ms")
    trust = "ours" if peer.get("ours") else "trusted" if peer["trusted"] else "no"
    return [
        peer["name"] or f"…{peer['peer_id'][-8:]}",
        f"{SIGNS.get(state, '?')} {state}",
        _cut(str(peer.get("reason") or "")),
        trust,
        _cut(", ".join(model["name"] for model in (peer.get("offer") or {}).get("models") or ()) or "-"),
        _cut(_quota(peer.get("quota"))) if peer["trusted"] else "-",
        "-" if away is None else f"{away:.1f} ms",
        "-" if load is None else str(load["in_flight"]),
    ]


def _quota(quota: Mapping[str, Any] | None) -> str:
    if quota is None:
        return "-"
    models = quota.get("models")
    if models is not None and not models:
        return "nothing"
    words = ["all that is lent" if models is None else ", ".join(models)]
    if quota.get("max_concurrent") is not None:
        words.append(f"{quota['max_concurrent']} at once")
    if quota.get("tokens_per_minute") is not None:
        words.append(f"{quota['tokens_per_minute']:,} tokens/min")
    return "; ".join(words)


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [cells(peer) for peer in report.get("peers") or ()]


def _terms(name: str | None, models: Iterable[str] | None, ours: bool | None) -> dict[str, Any]:
    fields = {"name": name, "models": None if models is None else list(models), "ours": ours}
    return {key: value for key, value in fields.items() if value is not None}


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
