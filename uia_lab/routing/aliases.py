"""Names that people give to ordered chains of targets: the next one serves when those before cannot."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest

MOST = 1000
TARGETS = 32
_NAME = re.compile(r"[^\s*]{1,128}")
_TYPES = frozenset(BackendType)


@dataclass(frozen=True, slots=True)
class Target:
    """One link of a chain.

    Args:
        model: The model to ask for.
        prefix: A backend's id or type that must serve it; None for anyone.
    """

    model: str
    prefix: str | None = None


class Aliases(Mapping[str, tuple[str, ...]]):
    """The aliases, each with its targets as they were written."""

    def __init__(self) -> None:
        self._chains: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._chains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)

    def set(self, name: str, targets: Sequence[str]) -> None:
        """Defines or replaces an alias.

        Args:
            name: What requests call it, in place of a model.
            targets: ``model``, ``backend:model`` or ``type:model``, best first.

        Raises:
            BadRequest: A bad name or target, or too many of them.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadRequest(
                f"an alias is 1 to 128 characters without spaces or *, not {name!r}", param="name"
            )
        if isinstance(targets, str) or not isinstance(targets, Sequence) or not 1 <= len(targets) <= TARGETS:
            raise BadRequest(f"targets must be a list of 1 to {TARGETS} names", param="targets")
        for target in targets:
            if not isinstance(target, str) or not _NAME.fullmatch(target):
                raise BadRequest(
                    f"target {target!r} is no model, backend:model or type:model", param="targets"
                )
            if target == name or target in self._chains:
                raise BadRequest(
                    f"target {target!r} is an alias itself; chains are not nested", param="targets"
                )
        if name not in self._chains and len(self._chains) >= MOST:
            raise BadRequest(f"there are {MOST} aliases already", param="name")
        self._chains[name] = tuple(targets)

    def delete(self, name: str) -> bool:
        """Forgets an alias; False if there was none."""
        return self._chains.pop(name, None) is not None

    def chain(self, name: str, backend_ids: Mapping[str, object]) -> tuple[Target, ...]:
        """The targets of an alias.

        Model names may hold colons themselves, so what stands before the first one counts as a backend or
        type only where there is one of that name.

        Args:
            name: The alias.
            backend_ids: The ids that are registered.
        """
        found = []
        for text in self._chains[name]:
            prefix, colon, model = text.partition(":")
            if colon and model and (prefix in backend_ids or prefix in _TYPES):
                found.append(Target(model, prefix))
            else:
                found.append(Target(text))
        return tuple(found)
