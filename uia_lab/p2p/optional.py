"""The modules that need libp2p, which not everybody has."""

import importlib
import warnings
from typing import Any

from uia_lab.domain.errors import BackendFailed


def modules() -> tuple[Any, Any]:
    """The hub and the thread.

    Raises:
        BackendFailed: libp2p cannot be imported; the message says what to do.
    """
    try:
        with warnings.catch_warnings():
            # libp2p imports what its own dependencies have marked as deprecated.
            warnings.simplefilter("ignore")
            return importlib.import_module("uia_lab.p2p.hub"), importlib.import_module("uia_lab.p2p.thread")
    except ImportError as error:
        raise BackendFailed(
            f"the peer-to-peer network needs libp2p, which cannot be imported ({error}). Run pip install "
            "'uia-lab[p2p]'; where that fails at fastecdsa, install gcc, the headers of Python and of GMP "
            "first (Debian: gcc python3-dev libgmp-dev). Everything else works without it."
        ) from error
