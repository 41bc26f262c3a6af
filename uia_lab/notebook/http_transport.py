"""A Lab over HTTP: the OpenAI dialect and the status door of a uia_lab server."""

import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec
import numpy as np

from uia_lab._version import __version__
from uia_lab.dialects import sse
from uia_lab.domain import errors
from uia_lab.domain.events import (
    Attempted,
)
from uia_lab.domain.requests import InferenceRequest
from uia_lab.notebook.finding import UNIX, address
from uia_lab.notebook.http_errors import error_of
from uia_lab.notebook.http_stream import SILENCE_S, HttpStream
from uia_lab.notebook.transport import CLOSED, EventStream, NotConnected, Publication
from uia_lab.worker import ServedFunction, Worker

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 5.0
ANSWER_S = 15.0
# Where there is an accelerator, the first report waits for torch to say which.
HARDWARE_S = 150.0
DETAILS_S = 3.0
# The server recognises what is at an address and probes it.
LOOK_S = 45.0
# What a server says of an address that it has no door for.
NOTHING = "there is nothing at this address"


class HttpTransport:
    """Speaks to a server; one client session, opened at first use.

    Args:
        url: Address of the service, for example ``http://127.0.0.1:8888/uia/``.
        token: A key or a Jupyter token; it is sent and never shown.
    """

    kind: Literal["server", "local"] = "server"

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = self.where = address(url)
        parts = urlsplit(self.url)
        # aiohttp knows no such scheme: the path of the socket goes to its connector.
        self._socket = unquote(parts.netloc) if parts.scheme == UNIX else None
        self._base = f"http://localhost{parts.path}" if self._socket else self.url
        self._token = token
        self._version: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"HttpTransport({self.url!r})"

    def _client(self) -> "aiohttp.ClientSession":
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._session is None:
            import aiohttp

            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=ANSWER_S)
            connector = aiohttp.UnixConnector(self._socket) if self._socket else None
            self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
        return self._session

    @contextlib.asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        *,
        read_s: float = ANSWER_S,
        head: Callable[[Mapping[str, str]], None] = lambda _: None,
        **options: Any,
    ) -> AsyncGenerator["aiohttp.ClientResponse", None]:
        """A response with a good status, or the typed error; ``head`` sees the headers of either."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=read_s)
        try:
            # A redirect is never followed: it could take the token to another host.
            async with self._client().request(
                method, self._base + path, timeout=timeout, allow_redirects=False, **options
            ) as response:
                head(response.headers)
                if 300 <= response.status < 400:
                    target = urlsplit(response.headers.get("Location", ""))
                    raise NotConnected(
                        f"{self.where} redirects to {target.netloc or 'itself'}{target.path}; no token is "
                        "taken there. Give the final address to uia_lab.connect(url, token); if that is a "
                        "login page, give a token too."
                    )
                if response.status >= 400:
                    error = error_of(response.status, await _json(response), self.where)
                    if response.status == 404 and error.message == NOTHING and self._version != __version__:
                        raise errors.Unsupported(
                            f"{self.where} runs uia_lab {self._version or '(an old one)'} and has no "
                            f"/{path.partition('?')[0]}, which uia_lab {__version__} here asks for; "
                            "upgrade it there"
                        )
                    raise error
                yield response
        except aiohttp.ClientConnectorError as error:
            raise NotConnected(
                f"nobody answers at {self.where} ({error.strerror or error}). Start a server with "
                "`python -m uia_lab serve`, or unset UIA_LAB_URL and call uia_lab.connect() for local mode."
            ) from None
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{self.where} was silent for {read_s:g} s") from None
        except aiohttp.ClientError as error:
            raise errors.BackendFailed(f"the connection to {self.where} broke: {error}") from None

    async def status(self) -> dict[str, Any]:
        """The status report of the server."""
        try:
            async with self._asked("GET", "status") as response:
                report = await _json(response)
        except errors.ModelNotFound:
            report = None
        if not isinstance(report, dict) or "instance_id" not in report:
            raise NotConnected(
                f"something answers at {self.where}, but it is not uia_lab. Inside Jupyter the address ends "
                "in uia/ and `jupyter server extension list` must show uia_lab_server as enabled."
            )
        self._version = report.get("version")
        return report

    async def models(self) -> list[str]:
        """Names of the models the server offers."""
        async with self._asked("GET", "v1/models") as response:
            return [item["id"] for item in (await response.json())["data"]]

    def stream(self, request: InferenceRequest) -> EventStream:
        """Starts a request at ``POST /infer``."""
        return HttpStream(request, self._asked, self.attempts, self.where)

    async def embed(self, texts: Sequence[str], model: str | None) -> np.ndarray:
        """Embeddings as little-endian floats over base64, which is a third of the JSON numbers."""
        body: dict[str, Any] = {"input": list(texts), "encoding_format": "base64"}
        if model is not None:
            body["model"] = model
        async with self._asked("POST", "v1/embeddings", json=body, read_s=600) as response:
            data = (await response.json())["data"]
        rows = [_vector(item["embedding"]) for item in sorted(data, key=lambda item: item["index"])]
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    async def cancel(self, request_id: str) -> None:
        """Cancels a request; one that has ended meanwhile is fine."""
        with contextlib.suppress(errors.ModelNotFound):
            async with self._asked("DELETE", f"requests/{quote(request_id, safe='')}"):
                pass

    async def hardware(self) -> dict[str, Any]:
        """What the server's machine has."""
        async with self._asked("GET", "hardware", read_s=HARDWARE_S) as response:
            report: dict[str, Any] = await response.json()
            return report

    async def local_models(self) -> list[dict[str, Any]]:
        """The models of the server's machine; the first look reads the heads of their files."""
        listed: list[dict[str, Any]] = (await self._told("GET", "models", read_s=LOOK_S))["models"]
        return listed

    async def load_model(
        self, fields: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Loads a model; its steps come as events."""
        async with self._asked(
            "POST",
            "models/load",
            json=dict(fields),
            headers={"Accept": "text/event-stream"},
            read_s=SILENCE_S,
        ) as response:
            async for name, data in sse.events(response.content):
                payload = json.loads(data)
                if name == "progress":
                    tell(payload)
                elif name == "error":
                    raise error_of(502, payload, self.where)
                elif name == "loaded":
                    loaded: dict[str, Any] = payload
                    return loaded
        raise errors.StreamInterrupted(
            f"the connection to {self.where} ended before the load did; it may go on: look at lab.models"
        )

    async def unload_model(self, model_id: str) -> dict[str, Any]:
        """Gives a model's memory back."""
        return await self._told("POST", "models/unload", json={"model_id": model_id}, read_s=LOOK_S)

    async def keys(self) -> list[dict[str, Any]]:
        """The scoped keys of the server."""
        async with self._asked("GET", "keys") as response:
            listed: list[dict[str, Any]] = (await response.json())["keys"]
            return listed

    async def create_key(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a key."""
        async with self._asked("POST", "keys", json=dict(fields)) as response:
            made: dict[str, Any] = await response.json()
            return made

    async def revoke_key(self, key_id: str) -> None:
        """Ends a key; one that has ended meanwhile is fine."""
        with contextlib.suppress(errors.ModelNotFound):
            async with self._asked("DELETE", f"keys/{quote(key_id, safe='')}"):
                pass

    async def backends(self) -> dict[str, Any]:
        """The backends of the server, and what it found besides."""
        return await self._told("GET", "backends")

    async def add_backend(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Registers a backend; the server looks at it before it answers."""
        return await self._told("POST", "backends", json=dict(fields), read_s=LOOK_S)

    async def change_backend(self, backend_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Changes a backend."""
        return await self._told("PATCH", f"backends/{quote(backend_id, safe='')}", json=dict(fields))

    async def probe_backend(self, backend_id: str) -> dict[str, Any]:
        """Looks at a backend now."""
        return await self._told("POST", f"backends/{quote(backend_id, safe='')}/probe", read_s=LOOK_S)

    async def remove_backend(self, backend_id: str) -> None:
        """Takes a backend out."""
        await self._told("DELETE", f"backends/{quote(backend_id, safe='')}")

    async def peers(self) -> dict[str, Any]:
        """The network of peers of the server."""
        return await self._told("GET", "peers")

    async def invite_peer(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an invite."""
        return await self._told("POST", "peers/invites", json=dict(fields))

    async def withdraw_invite(self, invite_id: str) -> None:
        """Takes an invite back; one that is used meanwhile is fine."""
        with contextlib.suppress(errors.ModelNotFound):
            await self._told("DELETE", f"peers/invites/{quote(invite_id, safe='')}")

    async def accept_invite(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Uses an invite; the server dials the peer before it answers."""
        return await self._told("POST", "peers/accept", json=dict(fields), read_s=LOOK_S)

    async def trust_peer(self, peer_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Trusts a peer."""
        return await self._told("POST", f"peers/{quote(peer_id, safe='')}/trust", json=dict(fields))

    async def revoke_peer(self, peer_id: str) -> None:
        """Trusts a peer no more; one that is gone meanwhile is fine."""
        with contextlib.suppress(errors.ModelNotFound):
            await self._told("DELETE", f"peers/{quote(peer_id, safe='')}/trust")

    async def backend(self, backend_id: str) -> dict[str, Any]:
        """A backend with what went wrong there lately."""
        return await self._told("GET", f"backends/{quote(backend_id, safe='')}")

    async def history(self, after: int = 0, limit: int = 900) -> dict[str, Any]:
        """The last quarter of an hour."""
        return await self._told("GET", f"history?after={after}&limit={limit}")

    async def strategies(self) -> dict[str, Any]:
        """How backends are chosen, and how they might be."""
        return await self._told("GET", "strategy")

    async def set_strategy(self, name: str) -> dict[str, Any]:
        """Changes how backends are chosen."""
        return await self._told("PUT", "strategy", json={"name": name})

    async def explain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A decision that nothing comes of."""
        return await self._told("POST", "explain", json=dict(fields))

    async def request(self, request_id: str) -> dict[str, Any]:
        """One request."""
        return await self._told("GET", f"requests/{quote(request_id, safe='')}")

    async def requests(self, limit: int = 100, **filters: Any) -> dict[str, Any]:
        """The last requests."""
        asked = {"limit": limit} | {name: value for name, value in filters.items() if value is not None}
        return await self._told("GET", f"requests?{urlencode(asked)}")

    async def replay(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Past requests under another strategy."""
        return await self._told("POST", "replay", json=dict(fields), read_s=LOOK_S)

    async def aliases(self) -> list[dict[str, Any]]:
        """The aliases of the server."""
        listed: list[dict[str, Any]] = (await self._told("GET", "aliases"))["aliases"]
        return listed

    async def set_alias(self, name: str, targets: Sequence[str]) -> dict[str, Any]:
        """Sets an alias."""
        return await self._told("PUT", f"aliases/{quote(name, safe='')}", json={"targets": list(targets)})

    async def delete_alias(self, name: str) -> None:
        """Forgets an alias."""
        await self._told("DELETE", f"aliases/{quote(name, safe='')}")

    async def _told(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._asked(method, path, **options) as response:
            told: dict[str, Any] = await response.json()
            return told

    async def attempts(self, request_id: str | None) -> tuple[Attempted, ...]:
        """Who was tried for a request that has ended, as the server's log has it; empty where it has not."""
        if request_id is None:
            return ()
        try:
            async with self._asked(
                "GET", f"requests/{quote(request_id, safe='')}", read_s=DETAILS_S
            ) as response:
                return msgspec.convert((await response.json())["attempts"], tuple[Attempted, ...])
        except (errors.InferenceError, NotConnected, KeyError, msgspec.ValidationError):
            # The answer is there; how it came about is an extra that an older server may not tell.
            return ()

    def publish(
        self, function: ServedFunction, backend_id: str, name: str, max_concurrency: int
    ) -> Publication:
        """A worker of the server, over a WebSocket."""
        if self._socket:
            raise errors.BadRequest(
                "functions cannot be served to a server on a UNIX socket; start it on a port of 127.0.0.1"
            )
        return Worker(
            self.url,
            self._token,
            function,
            model=function.model,
            task=function.task,
            backend_id=backend_id,
            name=name,
            max_concurrency=max_concurrency,
        )

    async def aclose(self) -> None:
        """Closes the session and with it every running request."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _vector(value: str | Sequence[float]) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), "<f4")
    return np.asarray(value, np.float32)


async def _json(response: "aiohttp.ClientResponse") -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(await response.read())
    return None
