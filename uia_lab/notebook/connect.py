"""Finds who serves this process and keeps the one Lab that magics and cells share."""

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from uia_lab.notebook.finding import HERE, address, find, told

# ``%load_ext`` opens nothing, so it does not wait for what only a Lab needs.
if TYPE_CHECKING:
    from uia_lab.notebook.async_lab import AsyncLab
    from uia_lab.notebook.http_transport import HttpTransport
    from uia_lab.notebook.lab import Lab
    from uia_lab.notebook.local_transport import InProcessTransport

LOCAL = "local"

_lock = threading.Lock()
_default: "Lab | None" = None


def connect(url: str | None = None, token: str | None = None) -> "Lab":
    """Opens a Lab, which is from then on this process's default one.

    In order: the address given; ``UIA_LAB_URL`` and ``UIA_LAB_TOKEN``, which a Jupyter server with
    uia_lab_server gives its kernels; the server that started this kernel, by its file; JupyterHub, by its
    environment; a running server that lists this kernel; local mode, which runs the same service in this
    process. ``lab.where`` tells which, and in local mode why a server that is there was not taken. Without
    arguments, a default Lab that is still open is given back instead of a second one.

    Args:
        url: Address of a uia_lab server, for example ``http://127.0.0.1:8000/``, or of one on a UNIX socket,
            ``http+unix://%2Frun%2Fjupyter.sock/uia/``; ``local`` runs the service in this process, also where
            a server could be found.
        token: A key of that server, or a Jupyter token.

    Raises:
        NotConnected: Nobody answers there; the message says what to do.
        Unauthenticated: The server does not take the token.
    """
    from uia_lab.notebook.lab import Lab

    global _default  # noqa: PLW0603  # the default Lab is the process's, as a database's default connection is
    with _lock:
        if url is None and token is None and _default is not None and not _default.closed:
            return _default
        _default = Lab(_transport(url, token))
        return _default


async def connect_async(url: str | None = None, token: str | None = None) -> "AsyncLab":
    """As :func:`connect`, to await; it gives a new one each time, which its caller closes.

    ``async with await uia_lab.connect_async() as lab`` closes it at the end.
    """
    from uia_lab.notebook.async_lab import AsyncLab

    return await AsyncLab(await asyncio.to_thread(_transport, url, token)).open()


def current() -> "Lab":
    """The default Lab; the first call opens it."""
    return connect()


def opened() -> "Lab | None":
    """The default Lab if it is open; nothing opens it."""
    lab = _default
    return lab if lab is not None and not lab.closed else None


def forget() -> None:
    """Closes the default Lab, if there is one."""
    global _default
    with _lock:
        lab, _default = _default, None
    if lab is not None:
        lab.close()


def destination() -> str:
    """In words, where :func:`connect` would go; nobody is contacted."""
    if _default is not None and not _default.closed:
        return _default.where
    place = told()
    if place is not None:
        return address(place.url)
    if os.environ.get("JPY_PARENT_PID") or os.environ.get("JUPYTERHUB_SERVICE_URL"):
        return "this kernel's Jupyter server if uia_lab_server is enabled there, else this kernel itself"
    return HERE


def _transport(url: str | None, token: str | None) -> "HttpTransport | InProcessTransport":
    from uia_lab.notebook.http_transport import HttpTransport
    from uia_lab.notebook.local_transport import InProcessTransport

    place = told()
    if url == LOCAL:
        return InProcessTransport()
    if url is not None:
        if token is None and place is not None and _same(url, place.url):
            token = place.token
        return HttpTransport(url, token)
    if place is None:
        place, why = find()
        if place is None:
            return InProcessTransport(why=why) if why else InProcessTransport()
    return HttpTransport(place.url, token or place.token)


def _same(url: str, other: str) -> bool:
    return address(url) == address(other)
