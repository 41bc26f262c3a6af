"""A unified inference backend that lives in the Jupyter server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from uia_lab._version import __version__

if TYPE_CHECKING:
    from uia_lab.config import ConfigError as ConfigError
    from uia_lab.config import InferenceServiceConfig as InferenceServiceConfig
    from uia_lab.inference_backend_manager import (
        BackendCapabilities as BackendCapabilities,
    )
    from uia_lab.inference_backend_manager import BackendManager as BackendManager
    from uia_lab.inference_backend_manager import BackendStatus as BackendStatus
    from uia_lab.inference_backend_manager import BackendType as BackendType
    from uia_lab.inference_backend_manager import get_backend_manager as get_backend_manager
    from uia_lab.notebook.async_lab import AsyncLab as AsyncLab
    from uia_lab.notebook.connect import connect as connect
    from uia_lab.notebook.connect import connect_async as connect_async
    from uia_lab.notebook.lab import Lab as Lab
    from uia_lab.unified_inference_service import UnifiedInferenceService as UnifiedInferenceService
    from uia_lab.unified_inference_service import start_unified_service as start_unified_service
    from uia_lab.worker import Worker as Worker

_HOMES = {
    "AsyncLab": "notebook.async_lab",
    "BackendCapabilities": "inference_backend_manager",
    "BackendManager": "inference_backend_manager",
    "BackendStatus": "inference_backend_manager",
    "BackendType": "inference_backend_manager",
    "ConfigError": "config",
    "InferenceServiceConfig": "config",
    "Lab": "notebook.lab",
    "UnifiedInferenceService": "unified_inference_service",
    "Worker": "worker",
    "connect": "notebook.connect",
    "connect_async": "notebook.connect",
    "get_backend_manager": "inference_backend_manager",
    "start_unified_service": "unified_inference_service",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - names of a table


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import uia_lab`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'uia_lab' has no attribute {name!r}")
    value = getattr(import_module(f"uia_lab.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext uia_lab``: the magics, and a line that says where they go."""
    from uia_lab.notebook.extension import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext uia_lab``: undoes it."""
    from uia_lab.notebook.extension import unload_ipython_extension as unload

    unload(shell)
