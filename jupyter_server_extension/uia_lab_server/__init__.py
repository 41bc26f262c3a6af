"""uia_lab inside Jupyter: the same doors under ``<base_url>uia/``, open to Jupyter's own users."""

from typing import Any

from uia_lab._version import __version__

__all__ = ["__version__"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from uia_lab_server.app import UiaLabServer

    return [{"module": "uia_lab_server", "app": UiaLabServer}]
