"""Finds the Jupyter server that this kernel belongs to, where nobody has told it."""

import http.client
import json
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from uia_lab.notebook.transport import NotConnected

LOOK_S = 2.0
MOST_SERVERS = 20
MOST_BYTES = 4 * 1024 * 1024
UNIX = "http+unix"
HERE = "this kernel (local mode)"
ENABLE = "`jupyter server extension enable --sys-prefix uia_lab_server`, then restart the server"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a uia_lab may be.

    Args:
        url: Its address, ending in ``uia/``; of a UNIX socket ``http+unix://<path, percent-encoded>/...``.
        token: What opens it, if something is known.
        what: What it is, in words.
        gone: Whether its process has ended; whoever is at its address now is somebody else.
    """

    url: str
    token: str | None
    what: str
    gone: bool = False

    def __repr__(self) -> str:
        return f"<Place {self.what}>"


def address(url: str) -> str:
    """An address of a server as it may be shown: without credentials, which would end up in messages.

    Raises:
        NotConnected: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", UNIX) or not parts.netloc:
        raise NotConnected(f"{url!r} is no address of a server; write http://host:port/path/")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/", "", ""))


def told() -> Place | None:
    """What the server of this kernel left in its environment, if it did."""
    url = os.environ.get("UIA_LAB_URL")
    return Place(url, os.environ.get("UIA_LAB_TOKEN"), url) if url else None


def find() -> tuple[Place | None, str]:
    """The server of this kernel, asked whether it is one of ours.

    In order: the server that started this kernel, by its file in the runtime folder; JupyterHub, by its
    environment; a running server that lists this kernel among its sessions.

    Returns:
        The place, or None, and why a server that is there cannot be used; both empty where none is there.
    """
    reasons: list[str] = []
    for place in _places():
        reason = obstacle(place)
        if not reason:
            return place, ""
        reasons.append(reason)
    return None, "; ".join(dict.fromkeys(reasons))


def obstacle(place: Place) -> str:
    """Why a place cannot be used and what to do about it; empty if it can."""
    if place.gone:
        return f"{place.what} does not answer: its process has ended"
    try:
        health, body = _get(place.url + "health", None)
        if health not in (200, 503) or b'"status"' not in body:
            return f"{place.what} runs without uia_lab_server: {ENABLE}"
        status, body = _get(place.url + "status", place.token)
    except (OSError, http.client.HTTPException):
        return f"{place.what} does not answer"
    if status == 200 and b'"instance_id"' in body:
        return ""
    if status in (301, 302, 401, 403):
        return (
            f"{place.what} takes no token that this kernel knows, as with a password only: restart the "
            "kernel there, or give uia_lab.connect(url, token) a key that `lab.keys.create()` made there"
        )
    return f"{place.what} answers with status {status}: it may be older than this uia_lab; upgrade it there"


def _places() -> Iterator[Place]:
    files = _server_files()
    parent = os.environ.get("JPY_PARENT_PID", "")
    mine = files.pop(parent, None) if parent else None
    hub_url, hub_token = (os.environ.get(f"JUPYTERHUB_{name}") for name in ("SERVICE_URL", "API_TOKEN"))
    if mine is not None:
        # Behind a hub the server's file has no token, and the hub's is taken.
        yield replace(mine, token=mine.token or hub_token or None)
    elif hub_url:
        url = _reachable(hub_url.rstrip("/") + "/uia/")
        yield Place(url, hub_token, f"the JupyterHub server at {url.removesuffix('uia/')}")
    elif (kernel := _kernel_id()) is not None:
        for place in list(files.values())[:MOST_SERVERS]:
            if not place.gone and _has_kernel(place, kernel):
                yield place


def _server_files() -> dict[str, Place]:
    """What the files of running servers say, by process id, the newest first."""
    from jupyter_core.paths import jupyter_runtime_dir
    from psutil import pid_exists

    def age(path: Path) -> float:
        try:
            return -path.stat().st_mtime
        except OSError:
            return 0.0

    found = {}
    for path in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json"), key=age):
        try:
            told = json.loads(path.read_text("utf-8"))
            url, token = _address(told), told.get("token")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        what = f"the Jupyter server at {told.get('sock') or url.removesuffix('uia/')}"
        process = path.stem.removeprefix("jpserver-")
        # One that was killed leaves its file, with a token that may open the next one.
        gone = not (process.isdecimal() and pid_exists(int(process)))
        found[process] = Place(url, None if gone else token or None, what, gone)
    return found


def _address(told: dict[str, Any]) -> str:
    base = told["base_url"].rstrip("/") + "/uia/"
    if told.get("sock"):
        return f"{UNIX}://{quote(told['sock'], safe='')}{base}"
    parts = urlsplit(told["url"])
    return _reachable(f"{parts.scheme}://{parts.netloc}{base}")


def _reachable(url: str) -> str:
    """The address from this machine: nobody connects to 0.0.0.0."""
    parts = urlsplit(url)
    if parts.hostname not in ("0.0.0.0", "::", ""):  # noqa: S104 - recognised here, never bound
        return url
    return parts._replace(netloc=f"127.0.0.1:{parts.port}" if parts.port else "127.0.0.1").geturl()


def _kernel_id() -> str | None:
    if "ipykernel" not in sys.modules:
        return None
    from ipykernel.connect import get_connection_file

    try:
        name = Path(get_connection_file()).stem
    except (RuntimeError, OSError):
        return None
    return name.removeprefix("kernel-") if name.startswith("kernel-") else None


def _has_kernel(place: Place, kernel: str) -> bool:
    try:
        status, body = _get(place.url.removesuffix("uia/") + "api/sessions", place.token)
        listed = json.loads(body) if status == 200 else []
        return any(session["kernel"]["id"] == kernel for session in listed)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False


def _get(url: str, token: str | None) -> tuple[int, bytes]:
    """Status and body of an address, which is on this machine or the hub's; redirects are not followed."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == UNIX:
        connection = _UnixConnection(unquote(parts.netloc))
    elif parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.netloc, timeout=LOOK_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=LOOK_S)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", parts.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(MOST_BYTES)
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LOOK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LOOK_S)
        self.sock.connect(self._path)
