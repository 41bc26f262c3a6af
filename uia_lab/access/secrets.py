"""Secrets that backends are called with: found by name, shown to nobody."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
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
    """Looks a name up in the configured files, then the environment, then the system's keyring.

    Args:
        files: Files by name of the secret each one holds.
        environ: The environment; that of the process when absent.
    """

    def __init__(
        self, files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._files = dict(files or {})
        self._looked_at: set[str] = set()
        self._environ = os.environ if environ is None else environ

    def find(self, name: str) -> Secret | None:
        """The secret of that name, or None. Files and keyrings may take a while: not on an event loop."""
        found = self.given(name)
        return found if found is not None or name in self._files else _from_keyring(name)

    def given(self, name: str) -> Secret | None:
        """The secret of that name out of files and environment; no keyring is opened for it."""
        if name in self._files:
            # Discovery asks every minute: what is wrong with a file is said once.
            first = name not in self._looked_at
            self._looked_at.add(name)
            return _from_file(name, Path(self._files[name]).expanduser(), log.warning if first else log.debug)
        value = self._environ.get(name, "").strip()
        return Secret(value) if value else None


def not_set(name: str) -> str:
    """What to tell somebody whose secret was not found."""
    return (
        f"the key {name} is not set: put it into the environment, into a file that "
        f"InferenceServiceConfig.api_key_files names, or into the keyring (service {KEYRING_SERVICE})"
    )


def _from_file(name: str, path: Path, tell: Callable[..., None]) -> Secret | None:
    try:
        if path.stat().st_mode & 0o077:
            tell("%s, which holds %s, can be read by others: chmod 600 it", path, name)
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        tell("%s cannot be read from its file: %s", name, type(error).__name__)
        return None
    return Secret(value) if value else None


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
