"""Settings in Jupyter's config files, and those that a system's administrator has locked there."""

import functools
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, JSONFileConfigLoader, PyFileConfigLoader

log = logging.getLogger(__name__)

SECTION = "InferenceServiceConfig"
LOCKS = "locked_settings"
DEFAULT = object()
"""The value of a setting that is locked as it is when nobody says anything."""
_SYSTEM = ("/usr/local/etc/jupyter", "/etc/jupyter")
# The names under which Jupyter's server looks for the settings of this extension.
_NAMES = ("jupyter_config", "jupyter_server_config", "jupyter_uia_lab_server_config")


def load(folders: Iterable[str]) -> Config:
    """The section of our settings in the config files of some folders.

    Args:
        folders: The folders, the most important first.

    Returns:
        A configuration with that one section.

    Raises:
        Exception: Whatever a broken file raises, as Jupyter does.
    """
    merged = Config()
    for folder in reversed(list(folders)):
        for name in _NAMES:
            for loader in (PyFileConfigLoader, JSONFileConfigLoader):
                suffix = ".py" if loader is PyFileConfigLoader else ".json"
                try:
                    found = loader(name + suffix, path=folder).load_config()
                except ConfigFileNotFound:
                    continue
                merged.merge(Config({SECTION: found.get(SECTION, Config())}))
    return merged


def of_jupyter() -> Config:
    """The section in the files that a Jupyter server started by this user reads."""
    from jupyter_core.paths import jupyter_config_path

    return load(jupyter_config_path())


def locked() -> Mapping[str, Any]:
    """Settings that are locked, with their values.

    Only the folders of the whole system count, which a user cannot write: ``locked_settings`` names the
    settings there, and their values stand beside it; DEFAULT where none does.

    Raises:
        RuntimeError: A file there cannot be read, or names no settings where it should.
    """
    from jupyter_core.paths import SYSTEM_CONFIG_PATH

    # Jupyter takes its own list from the environment where it is told to follow the platform's folders.
    return _locked(tuple(dict.fromkeys((*SYSTEM_CONFIG_PATH, *_SYSTEM))))


@functools.cache
def _locked(folders: tuple[str, ...]) -> Mapping[str, Any]:
    if not any(Path(folder).is_dir() for folder in folders):
        return MappingProxyType({})
    try:
        section = load(folders)[SECTION]
        names = section.get(LOCKS, [])
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{LOCKS} must be a list of names, not {names!r}")
    except Exception as error:
        # Going on as if nothing were locked would undo what its administrator meant.
        raise RuntimeError(f"the configuration in {', '.join(folders)} cannot be read: {error}") from error
    return MappingProxyType({name: section.get(name, DEFAULT) for name in names})
