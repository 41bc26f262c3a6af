"""Secrets that backends are called with: found by name, shown to nobody."""

import logging
import os
from collections.abc import Mapping
from typing import Any, NoReturn

log = logging.getLogger(__name__)

KEYRING_SERVICE = "uia_lab"


class Secret:
    """A value that has no text, no repr and no serial form; only :meth:`reveal` gives it."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """The value, for the one place that sends it."""
        return self.__value

    def __repr__(self) -> str:
        return "<Secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not copied, pickled or written anywhere")


class Secrets:
    """Looks a name up in Jupyter's configuration, then the environment, then the system's keyring.

    Args:
        given: Values by name, of the configuration.
        environ: The environment; that of the process when absent.
    """

    def __init__(
        self, given: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._given = {name: Secret(value) for name, value in (given or {}).items()}
        self._environ = os.environ if environ is None else environ

    def find(self, name: str) -> Secret | None:
        """The secret of that name, or None. A keyring may take a while: not on an event loop."""
        if name in self._given:
            return self._given[name]
        if value := self._environ.get(name, "").strip():
            return Secret(value)
        return _from_keyring(name)


def _from_keyring(name: str) -> Secret | None:
    try:
        keyring: Any = __import__("keyring")
        value = keyring.get_password(KEYRING_SERVICE, name)
    except ImportError:
        return None
    except Exception as error:  # noqa: BLE001 - each keyring has errors of its own; none of them is ours
        log.info("the keyring cannot be asked for %s: %s", name, type(error).__name__)
        return None
    return Secret(value) if value else None
