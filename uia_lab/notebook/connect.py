"""Finds who serves this process and keeps the one Lab that magics and cells share."""

import threading

from uia_lab.notebook.async_lab import AsyncLab
from uia_lab.notebook.http_transport import HttpTransport, of_environment
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport

_lock = threading.Lock()
_default: Lab | None = None


def connect(url: str | None = None, token: str | None = None) -> Lab:
    """Opens a Lab, which is from then on this process's default one.

    In order: the address given; the Jupyter server of this kernel (``UIA_LAB_URL`` and ``UIA_LAB_TOKEN``);
    local mode, which runs the same service in this process. Without arguments, a default Lab that is
    still open is given back instead of a second one.

    Args:
        url: Address of a uia_lab server, for example ``http://127.0.0.1:8000/``.
        token: A key of that server, or a Jupyter token.

    Raises:
        NotConnected: Nobody answers there; the message says what to do.
        Unauthenticated: The server does not take the token.
    """
    global _default  # noqa: PLW0603  # the default Lab is the process's, as a database's default connection is
    with _lock:
        if url is None and token is None and _default is not None and not _default.closed:
            return _default
        _default = Lab(_transport(url, token))
        return _default


async def connect_async(url: str | None = None, token: str | None = None) -> AsyncLab:
    """As :func:`connect`, to await; it gives a new one each time, which its caller closes.

    ``async with await uia_lab.connect_async() as lab`` closes it at the end.
    """
    return await AsyncLab(_transport(url, token)).open()


def current() -> Lab:
    """The default Lab; the first call opens it."""
    return connect()


def opened() -> Lab | None:
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
    found = of_environment()
    return HttpTransport(*found).where if found else InProcessTransport.where


def _transport(url: str | None, token: str | None) -> HttpTransport | InProcessTransport:
    found = of_environment()
    if url is None:
        if found is None:
            return InProcessTransport()
        url, token = found[0], token or found[1]
    elif token is None and found is not None and _same(url, found[0]):
        token = found[1]
    return HttpTransport(url, token)


def _same(url: str, other: str) -> bool:
    return HttpTransport(url).url == HttpTransport(other).url
