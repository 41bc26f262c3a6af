"""One WebSocket to a uia_lab server, kept open: shared by backends elsewhere and by workers."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secret
from uia_lab.dialects.json_body import decode_object, encode
from uia_lab.dialects.upstream_errors import open_to_others
from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError, NotAllowed, Unauthenticated
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

CONNECT_S = 10.0
HEARTBEAT_S = 20.0
CLOSE_S = 1.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
MOST_BYTES = 64 * 1024 * 1024
"""Of one message that comes in."""
LONGEST_WORDS = 2000
_SOCKET_SCHEMES = {"http": "ws", "https": "wss"}


def socket_address(endpoint: str, client_id: str) -> str:
    """The address of ``/ws/{client_id}`` at a server.

    Args:
        endpoint: Where the server is, for example ``http://host:8000`` or ``wss://host/user/uia/ws``.
        client_id: What the connection is called there.
    """
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    if not path.endswith("/ws"):
        path += "/ws"
    scheme = _SOCKET_SCHEMES.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, f"{path}/{quote(client_id, safe='')}", "", ""))


class SocketLink:
    """Connects, hands over what comes, and connects again with exponential back-off and full jitter.

    Args:
        endpoint: Where the server is.
        client_id: What the connection is called there.
        key: Finds the key of the server, off the loop; sent as a header, shown nowhere.
        opened: Called with the server's greeting; an InferenceError from it counts as a failed connection.
        receive: Called with each message and its size in bytes; nothing more is read until it returns.
        lost: Called when a connection is closed or could not be made.
        policy: Which addresses may be called.
        rng: Source of the jitter.

    Raises:
        BadRequest: The endpoint is no address of a server.
        NotAllowed: It is one that may not be called.

    Attributes:
        trouble: Why there is no connection now; None while there is one.
        refused: Status with which the server refused the last attempt; None where it did not.
        close_code: Code with which the last connection was closed; None while there is one.
        farewell: Code with which we close.
    """

    def __init__(
        self,
        endpoint: str,
        client_id: str,
        key: Callable[[], Secret | None],
        *,
        opened: Callable[[Mapping[str, Any]], Awaitable[None]],
        receive: Callable[[dict[str, Any], int], Awaitable[None]],
        lost: Callable[[InferenceError], None],
        policy: EndpointPolicy | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._policy = policy or EndpointPolicy()
        self.endpoint = self._policy.check(endpoint)
        self.address = socket_address(self.endpoint, client_id)
        self._key = key
        self._sent_key: Secret | None = None
        self._opened = opened
        self._receive = receive
        self._lost = lost
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._failures = 0
        self._hurry = asyncio.Event()
        self.trouble: InferenceError | None = BackendFailed(f"not connected to {self.endpoint} yet")
        self.refused: int | None = None
        self.close_code: int | None = None
        self.farewell = 1000

    async def run(self, *, give_up: Callable[[InferenceError], bool] = lambda _: False) -> None:
        """Keeps the connection open until it is cancelled.

        Args:
            give_up: Whether an error is one that trying again will not mend.

        Raises:
            InferenceError: One that ``give_up`` said yes to.
        """
        import aiohttp

        connector = aiohttp.TCPConnector(resolver=self._policy.resolver())
        # A redirection could lead to an address that the policy refuses.
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_refuse_redirect)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing]) as session:
            while True:
                try:
                    await self._connection(session)
                    error: InferenceError = BackendFailed(f"the connection to {self.endpoint} was closed")
                except InferenceError as caught:
                    error = caught
                except (aiohttp.ClientError, TimeoutError, OSError) as caught:
                    error = self._explained(caught)
                except Exception:
                    log.exception("unexpected error on the connection to %s", self.endpoint)
                    error = BackendFailed(f"the connection to {self.endpoint} broke")
                finally:
                    self._socket = None
                self.trouble = error
                self._lost(error)
                if give_up(error):
                    raise error
                await self._pause()

    def hurry(self) -> None:
        """Somebody waits: the next attempt comes at once."""
        self._hurry.set()

    async def send(self, name: str, /, **fields: Any) -> None:
        """Sends one message, and returns when there is room for more.

        Raises:
            BackendFailed: There is no connection.
        """
        await self.send_encoded(encode({"type": name, **fields}))

    async def send_encoded(self, message: bytes) -> None:
        """Sends a message that is JSON already; errors as for :meth:`send`."""
        socket = self._socket
        if socket is None or socket.closed:
            raise self.broken()
        try:
            await socket.send_str(message.decode())
        except ConnectionError:
            raise self.broken() from None

    def broken(self) -> InferenceError:
        """A fresh error that says why there is no connection."""
        trouble = self.trouble
        if trouble is None:
            return BackendFailed(f"the connection to {self.endpoint} was closed")
        return open_to_others(type(trouble)(trouble.message))

    def cleaned(self, text: str) -> str:
        """Words of the server for people and logs: without the key it was sent, and on one line.

        Args:
            text: What it says of itself, or of an error.
        """
        key = self._sent_key.reveal() if self._sent_key is not None else ""
        said = text.replace(key, "<key>") if key else text
        return one_line(said[:LONGEST_WORDS])

    async def _connection(self, session: "aiohttp.ClientSession") -> None:
        """One connection from its beginning to its end."""
        import aiohttp

        self.close_code = self.refused = None
        # Looked up for each connection: whoever changes a key expects it to count.
        key = self._sent_key = await asyncio.to_thread(self._key)
        headers = {} if key is None else {"Authorization": f"Bearer {key.reveal()}"}
        async with asyncio.timeout(CONNECT_S):
            socket = await session.ws_connect(
                self.address,
                headers=headers,
                heartbeat=HEARTBEAT_S,
                max_msg_size=MOST_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        try:
            async with asyncio.timeout(CONNECT_S):
                greeting = _decoded(await socket.receive())
            if greeting is None or greeting[0].get("type") != "connection":
                raise BackendFailed(f"something answers at {self.endpoint}, but it is not uia_lab")
            self._socket = socket
            await self._opened(greeting[0])
            self.trouble = None
            self._failures = 0
            async for message in socket:
                decoded = _decoded(message)
                if decoded is not None:
                    await self._receive(*decoded)
        finally:
            self.close_code = socket.close_code
            with contextlib.suppress(ConnectionError):
                await socket.close(code=self.farewell)

    def _explained(self, error: Exception) -> InferenceError:
        self.refused = status = getattr(error, "status", None)
        match status:
            case 401:
                return Unauthenticated(f"{self.endpoint} does not take the key")
            case 403:
                return NotAllowed(f"{self.endpoint} does not let this key in")
            case int():
                return BackendFailed(
                    f"{self.endpoint} answered with status {status}: there is no WebSocket door of uia_lab "
                    "at that address, or it is switched off"
                )
        # Without the address's own words: an error of aiohttp may repeat headers.
        why = getattr(error, "strerror", None) or type(error).__name__
        return BackendFailed(f"cannot connect to {self.endpoint}: {why}")

    async def _pause(self) -> None:
        self._failures += 1
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10))
        try:
            # Full jitter: many that lost one server must not come back in step.
            async with asyncio.timeout(0.1 + self._rng.uniform(0, longest)):
                await self._hurry.wait()
        except TimeoutError:
            pass
        finally:
            self._hurry.clear()


async def _refuse_redirect(*_: Any) -> None:
    raise ConnectionRefusedError(0, "it redirects to another address, which is not followed")


def _decoded(message: "aiohttp.WSMessage") -> tuple[dict[str, Any], int] | None:
    import aiohttp

    if message.type is not aiohttp.WSMsgType.TEXT:
        return None
    raw = message.data.encode()
    try:
        return decode_object(raw), len(raw)
    except BadRequest:
        # A broken message is the other side's mistake; the answers beside it are still good.
        return None
