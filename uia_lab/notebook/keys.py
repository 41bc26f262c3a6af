"""``lab.keys``: the scoped keys of the server, as a table that makes and revokes them."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.notebook.asking import Ask, action
from uia_lab.notebook.tables import html_table, text_table

COLUMNS = ("name", "scopes", "models", "expires", "last used", "requests/min", "tokens/min", "tokens used")
WORDS = 5


class NewKey:
    """A key that was just made. It is shown by :attr:`key` alone: a notebook is saved with its outputs.

    Args:
        made: What the server answered.

    Attributes:
        key: The key; the server does not know it any more.
        id: What the server calls it.
        name: What people call it.
    """

    def __init__(self, made: Mapping[str, Any]) -> None:
        self.key: str = made["key"]
        self.id: str = made["id"]
        self.name: str = made["name"]

    def __repr__(self) -> str:
        return f"<NewKey {self.name!r}: its .key is readable now and never again; this text does not hold it>"


class Keys(Sequence[Mapping[str, Any]]):
    """The keys as they were when they were asked for.

    Args:
        listed: What the server listed.
        create: Makes a key of the fields of ``POST /keys``.
        revoke: Revokes a key by its id.
        ask: Runs its actions.
    """

    def __init__(
        self,
        listed: Iterable[Mapping[str, Any]],
        create: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]],
        revoke: Callable[[str], Awaitable[None]],
        ask: Ask,
    ) -> None:
        self._listed = list(listed)
        self._create = create
        self._revoke = revoke
        self._ask = ask

    @action
    async def create(
        self,
        name: str,
        scopes: str | Iterable[str] = ("infer",),
        *,
        models: Iterable[str] | None = None,
        backend_types: Iterable[str] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
        token_budget: int | None = None,
        expires_at: str | float | datetime | None = None,
    ) -> NewKey:
        """Makes a key, for a script or another person.

        Args:
            name: What people call it.
            scopes: Out of ``infer``, ``read`` and ``admin``.
            models: Names, or patterns such as ``gpt-*``, it may ask for; all when absent.
            backend_types: Backend types that may serve it; all when absent.
            requests_per_minute: Requests in any 60 seconds.
            tokens_per_minute: Tokens in any 60 seconds.
            max_concurrent: Requests at once.
            token_budget: Tokens in its whole life.
            expires_at: When it ends: a date, its ISO form, or seconds since the epoch.

        Returns:
            The key; only its ``key`` attribute shows it.

        Raises:
            BadRequest: A wrong field, or a name that is taken.
            NotAllowed: You may not make keys.
        """
        fields: dict[str, Any] = {
            "name": name,
            "scopes": [scopes] if isinstance(scopes, str) else list(scopes),
            "models": None if models is None else list(models),
            "backend_types": None if backend_types is None else [str(item) for item in backend_types],
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_concurrent": max_concurrent,
            "token_budget": token_budget,
            "expires_at": expires_at.isoformat() if isinstance(expires_at, datetime) else expires_at,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return NewKey(await self._create(given))

    @action
    async def revoke(self, name: str) -> None:
        """Ends a key at once, with all it has under way.

        Args:
            name: Its name or id.

        Raises:
            BadRequest: There is none; the message says which there are.
        """
        for key in self._listed:
            if name in (key["name"], key["id"]):
                await self._revoke(key["id"])
                self._listed.remove(key)
                return
        known = suggestion(name, [key["name"] for key in self._listed])
        raise BadRequest(f"there is no key {name!r}.{known}", param="name")

    def __getitem__(self, index: Any) -> Any:
        return self._listed[index]

    def __len__(self) -> int:
        return len(self._listed)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._listed)

    def __repr__(self) -> str:
        return text_table(self._title(), COLUMNS, rows(self._listed), WORDS)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {
            "text/plain": repr(self),
            "text/html": html_table(self._title(), COLUMNS, rows(self._listed), WORDS),
        }

    def _title(self) -> str:
        count = len(self._listed)
        return f"{count} key{'' if count == 1 else 's'} · lab.keys.create(name) makes one"


def rows(listed: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a table of keys, under COLUMNS."""
    return [
        [
            key["name"],
            ", ".join(key["scopes"]),
            ", ".join(key.get("models") or ["all"]),
            _day(key.get("expires_at"), "never"),
            _day(key.get("last_used_at"), "never"),
            _limit(key.get("requests_per_minute")),
            _limit(key.get("tokens_per_minute")),
            f"{key.get('tokens_used', 0):,}" + _of(key.get("token_budget")),
        ]
        for key in listed
    ]


def _day(seconds: float | None, otherwise: str) -> str:
    return otherwise if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _limit(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _of(budget: int | None) -> str:
    return "" if budget is None else f" of {budget:,}"
