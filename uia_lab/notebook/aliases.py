"""``lab.aliases``: names that stand for a chain of models, tried in order."""

from collections.abc import Iterator, Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.notebook.asking import Ask, action
from uia_lab.notebook.tables import html_table, text_table
from uia_lab.notebook.transport import Transport

COLUMNS = ("alias", "targets, best first")


class Aliases(Mapping[str, tuple[str, ...]]):
    """The aliases as they were when they were asked for, each with its targets.

    Args:
        listed: As ``GET /aliases`` lists them.
        transport: Who serves.
        ask: Runs its actions.
    """

    def __init__(self, listed: list[dict[str, Any]], transport: Transport, ask: Ask) -> None:
        self._targets = {item["name"]: tuple(item["targets"]) for item in listed}
        self._transport = transport
        self._ask = ask

    @action
    async def set(self, name: str, *targets: str) -> "Aliases":
        """Defines or replaces an alias, for the next start too.

        Args:
            name: What requests call it, in place of a model.
            *targets: ``model``, ``backend:model`` or ``type:model``, best first.

        Raises:
            BadRequest: A bad name or target.
            NotAllowed: The key may not change aliases.
        """
        made = await self._transport.set_alias(name, targets)
        self._targets[name] = tuple(made["targets"])
        return self

    @action
    async def delete(self, name: str) -> None:
        """Forgets an alias.

        Raises:
            BadRequest: There is none of that name.
        """
        self[name]
        await self._transport.delete_alias(name)
        del self._targets[name]

    def __getitem__(self, name: str) -> tuple[str, ...]:
        try:
            return self._targets[name]
        except KeyError:
            known = suggestion(str(name), self._targets)
            raise BadRequest(f"there is no alias {name!r}.{known}", param="name") from None

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __repr__(self) -> str:
        return text_table(self._title(), COLUMNS, self._rows(), 2)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": html_table(self._title(), COLUMNS, self._rows(), 2)}

    def _title(self) -> str:
        count = len(self)
        names = "alias" if count == 1 else "aliases"
        return f"{count} {names} · lab.aliases.set('fast', 'a-model', 'api:b') sets one"

    def _rows(self) -> list[list[str]]:
        return [[name, ", ".join(targets)] for name, targets in sorted(self._targets.items())]
