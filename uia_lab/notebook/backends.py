"""``lab.backends``: who can serve, as a table that adds, drains and removes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.notebook.asking import Ask, action
from uia_lab.notebook.status import SIGNS
from uia_lab.notebook.tables import html_table, text_table
from uia_lab.notebook.transport import Transport

COLUMNS = ("id", "type", "status", "why", "endpoint", "models", "weight", "in flight")
WORDS = 6
LONGEST = 60


class OneBackend(Mapping[str, Any]):
    """One backend as it was when it was asked for; a mapping of its report. An action brings it up to date.

    Args:
        report: What the service reports of it.
        transport: Who serves.
        ask: Runs its actions.
    """

    def __init__(self, report: Mapping[str, Any], transport: Transport, ask: Ask) -> None:
        self._report = dict(report)
        self._transport = transport
        self._ask = ask

    @property
    def id(self) -> str:
        """Its id."""
        return str(self._report["id"])

    @property
    def status(self) -> str:
        """How it is."""
        return str(self._report["status"])

    @property
    def reason(self) -> str:
        """Why it is so."""
        return str(self._report["reason"])

    @action
    async def drain(self) -> "OneBackend":
        """Sends it no new requests; those it works on end as they would."""
        return self._after(await self._transport.change_backend(self.id, {"draining": True}))

    @action
    async def enable(self) -> "OneBackend":
        """Sends it requests again."""
        return self._after(await self._transport.change_backend(self.id, {"enabled": True}))

    @action
    async def set_weight(self, weight: float) -> "OneBackend":
        """Changes its share of the traffic against its peers.

        Args:
            weight: Above 0; 2 gets twice as much as 1.

        Raises:
            BadRequest: A weight out of range.
        """
        return self._after(await self._transport.change_backend(self.id, {"weight": weight}))

    @action
    async def probe(self) -> "OneBackend":
        """Looks at it now, which costs nothing."""
        return self._after(await self._transport.probe_backend(self.id))

    @action
    async def remove(self) -> None:
        """Takes it out, for the next start too; what it works on ends."""
        await self._transport.remove_backend(self.id)

    def __getitem__(self, name: str) -> Any:
        return self._report[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._report)

    def __len__(self) -> int:
        return len(self._report)

    def __repr__(self) -> str:
        return text_table(f"backend {self.id}", COLUMNS, [cells(self._report)], WORDS)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        table = html_table(f"backend {self.id}", COLUMNS, [cells(self._report)], WORDS)
        return {"text/plain": repr(self), "text/html": table}

    def _after(self, report: Mapping[str, Any]) -> "OneBackend":
        self._report = dict(report)
        return self


class Backends:
    """The backends as they were when they were asked for, by id.

    Args:
        listed: What the service answered: its ``backends``, and what was ``found`` besides.
        transport: Who serves.
        ask: Runs its actions.

    Attributes:
        found: What discovery found, used or not, each with its reason.
    """

    def __init__(self, listed: Mapping[str, Any], transport: Transport, ask: Ask) -> None:
        self._transport = transport
        self._ask = ask
        self._backends = {item["id"]: OneBackend(item, transport, ask) for item in listed["backends"]}
        self.found: list[dict[str, Any]] = list(listed.get("found") or ())

    @action
    async def add(
        self,
        endpoint: str,
        *,
        id: str | None = None,  # noqa: A002 - what the contract calls it
        name: str | None = None,
        dialect: str | None = None,
        models: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
        api_key_env: str | None = None,
        weight: float | None = None,
        max_concurrency: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> OneBackend:
        """Registers an API by its address, and keeps it; which server it is shows by asking.

        Args:
            endpoint: ``http://host:port``, or its base URL.
            id: Its id; made from the address when absent.
            name: What people call it.
            dialect: ``openai``, ``anthropic``, ``ollama`` ... or a provider such as ``vllm``.
            models: Models it is asked for; what it lists when absent.
            tasks: Tasks it does; those of its kind when absent.
            api_key_env: Name of the key it is called with: an environment variable, a file or a keyring entry
                of the server. The key itself never goes through a notebook.
            weight: Share of the traffic against its peers.
            max_concurrency: Requests at once.
            options: ``headers``, ``query`` and ``body``: what is sent with each call besides.

        Returns:
            The backend, as the first look found it.

        Raises:
            BadRequest: A wrong field, or an id that is taken.
            NoBackendAvailable: Nobody answers there.
            Unauthenticated: It wants a key.
            BackendFailed: What answers is no known server; the message says what was tried.
        """
        fields: dict[str, Any] = {
            "type": "api",
            "endpoint": endpoint,
            "id": id,
            "name": name,
            "dialect": dialect,
            "models": None if models is None else list(models),
            "tasks": None if tasks is None else list(tasks),
            "api_key_env": api_key_env,
            "weight": weight,
            "max_concurrency": max_concurrency,
            "options": None if options is None else dict(options),
        }
        given = {name: value for name, value in fields.items() if value is not None}
        report = await self._transport.add_backend(given)
        added = self._backends[report["id"]] = OneBackend(report, self._transport, self._ask)
        return added

    def __getitem__(self, backend_id: str) -> OneBackend:
        try:
            return self._backends[backend_id]
        except KeyError:
            known = suggestion(str(backend_id), self._backends)
            raise BadRequest(f"there is no backend {backend_id!r}.{known}", param="id") from None

    def __contains__(self, backend_id: object) -> bool:
        return backend_id in self._backends

    def __iter__(self) -> Iterator[str]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)

    def __repr__(self) -> str:
        return text_table(self._title(), COLUMNS, self._rows(), WORDS)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {
            "text/plain": repr(self),
            "text/html": html_table(self._title(), COLUMNS, self._rows(), WORDS),
        }

    def _title(self) -> str:
        count = len(self._backends)
        return f"{count} backend{'' if count == 1 else 's'} · lab.backends.add('http://host:port') adds one"

    def _rows(self) -> list[list[str]]:
        """Every backend, and below them what was found and cannot be used."""
        unused = [item for item in self.found if item["backend_id"] is None]
        return [cells(backend) for backend in self._backends.values()] + [
            ["-", "api", "not used", _cut(item["reason"]), item["endpoint"], "-", "-", "-"] for item in unused
        ]


def cells(report: Mapping[str, Any]) -> list[str]:
    """The cells of one backend, under COLUMNS."""
    models = list(report.get("models") or ())
    status = str(report.get("status", "unknown"))
    if not report.get("enabled", True):
        status += ", drained"
    running = (report.get("metrics") or {}).get("active_connections", 0)
    limit = report.get("max_concurrency")
    return [
        str(report["id"]),
        str(report["type"]),
        f"{SIGNS.get(str(report.get('status')), '?')} {status}",
        _cut(str(report.get("reason") or "")),
        str(report.get("endpoint") or "-"),
        _cut(", ".join(models[:2]) + (f" and {len(models) - 2} more" if len(models) > 2 else "") or "any"),
        f"{report.get('weight', 1.0):g}",
        f"{running}" if limit is None else f"{running} of {limit}",
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
