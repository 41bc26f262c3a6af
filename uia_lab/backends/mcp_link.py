"""The connection to one MCP server: opened when it is needed, given up when it is dead, closed at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from uia_lab.access.secrets import Secret
from uia_lab.backends.client_session import SharedSession
from uia_lab.dialects.mcp import quieten
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    from mcp import Client

CONNECT_S = 30.0
"""Seconds a server may take to start and to greet."""
BEAT_S = 3.0
"""Seconds it may take to answer a ping; below the time that a look at a backend has."""
LARGEST_EVENT = 16 * 1024 * 1024

Opener = Callable[[], AbstractAsyncContextManager["Client"]]


class McpLink:
    """One connection at a time. The SDK's contexts are entered and left in one task of its own.

    A server that cannot be reached is tried again by the next who needs it, which for one that is down is the
    health check with its growing pauses.

    Args:
        opener: Opens a connection.
        what: Names the server in errors.
        without_keys: Takes the keys that the server was given out of a text.

    Attributes:
        closed: Whether it opens no connection any more.
    """

    def __init__(self, opener: Opener, what: str, without_keys: Callable[[str], str] = str) -> None:
        self._opener = opener
        self._what = what
        self.without_keys = without_keys
        self.closed = False
        self._opened: asyncio.Future[Client] | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def client(self) -> "Client":
        """The connected client; concurrent callers wait for the same connection.

        Raises:
            BackendFailed: The server cannot be started or reached, or does not greet in time.
            Unauthenticated: It does not take the key.
        """
        if self.closed:
            raise BackendFailed(f"{self._what}: the connection was closed here")
        if self._task is None or self._task.done():
            opened = self._opened = asyncio.get_running_loop().create_future()
            # Whoever began to wait for it may have left.
            opened.add_done_callback(lambda done: done.exception())
            self._task = self._begin(self._run(opened))
            # Also where it is cancelled before it begins.
            self._task.add_done_callback(
                lambda _: self._failed(opened, BackendFailed("the connection was closed here"))
            )
        assert self._opened is not None
        return await asyncio.shield(self._opened)

    async def beat(self, client: "Client", patience_s: float | None = None, *, busy: bool = False) -> None:
        """Passes when the server answers; a connection that does not is given up.

        Args:
            client: The connected client.
            patience_s: Seconds it may take; BEAT_S when absent.
            busy: Whether it works on something: then one that is slow to answer a ping is kept.

        Raises:
            BackendFailed: It does not answer.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

        patience_s = patience_s or BEAT_S
        try:
            async with asyncio.timeout(patience_s):
                if client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
                    await client.session.send_ping()
                else:
                    # Later revisions have no ping; this is the cheapest question that every server answers.
                    await client.session.send_discover(client.protocol_version)
        except TimeoutError:
            if not busy:
                await self.give_up(client)
            raise BackendFailed(f"{self._what} has not answered a ping within {patience_s:g} s") from None
        except (MCPError, RuntimeError) as error:
            await self.give_up(client)
            raise BackendFailed(f"{self._what} does not answer: {one_line(str(error))}") from None

    def doubt(self, client: "Client") -> None:
        """A call broke off: finds out, in the background, whether the connection is dead."""

        async def look() -> None:
            with suppress(InferenceError):
                await self.beat(client, CONNECT_S)

        if not self.closed:
            self._begin(look())

    async def give_up(self, client: "Client") -> None:
        """Closes a connection, unless there is a newer one already."""
        opened, task = self._opened, self._task
        if opened is None or task is None or not opened.done() or opened.exception() is not None:
            return
        if opened.result() is client:
            self._task = None
            task.cancel()
            # Not gathered: whoever is cancelled while it waits must not cut a server's orderly end.
            await asyncio.wait({task})

    async def close(self) -> None:
        """Closes the connection, and ends the server if it was started here."""
        self.closed = True
        self._task = None
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"uia-mcp-{self._what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, opened: "asyncio.Future[Client]") -> None:
        try:
            async with asyncio.timeout(CONNECT_S) as greeting, self._opener() as client:
                greeting.reschedule(None)
                opened.set_result(client)
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            self._failed(opened, BackendFailed(f"did not greet within {CONNECT_S:.0f} s"))
        except Exception as error:  # noqa: BLE001 - the SDK lets through whatever its transports meet
            self._failed(opened, _typed(error))

    def _failed(self, opened: "asyncio.Future[Client]", error: InferenceError) -> None:
        if not opened.done():
            words = one_line(self.without_keys(error.message))
            opened.set_exception(type(error)(f"{self._what}: {words}", param=error.param))


def over_http(url: str, key: Callable[[], Secret | None], session: SharedSession) -> Opener:
    """Opens connections over streamable HTTP.

    Args:
        url: The server's address.
        key: Finds its key; called off the loop.
        session: Carries the requests.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator["Client"]:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        from uia_lab.backends.mcp_http import SessionTransport

        quieten()
        secret = await asyncio.to_thread(key)
        headers = {} if secret is None else {"Authorization": f"Bearer {secret.reveal()}"}
        async with httpx2.AsyncClient(
            headers=headers, transport=SessionTransport(session), timeout=None, trust_env=False
        ) as http:
            wire = streamable_http_client(url, http_client=http, max_sse_event_size=LARGEST_EVENT)
            async with Client(wire, cache=None) as client:
                yield client

    return opened


def over_stdio(
    command: tuple[str, ...], environment: Callable[[], dict[str, str]], without_keys: Callable[[str], str]
) -> Opener:
    """Starts servers that speak over stdin and stdout, each in a process group of its own.

    Args:
        command: The program and its arguments.
        environment: Gives the variables beside the harmless ones that the SDK passes on (``PATH``, ``HOME``
            ...); called off the loop.
        without_keys: Takes the keys that the server was given out of a text.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator["Client"]:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        from uia_lab.backends.stderr_tail import StderrTail

        quieten()
        variables = await asyncio.to_thread(environment)
        started = StdioServerParameters(command=command[0], args=list(command[1:]), env=variables)
        words = await StderrTail.open()
        try:
            async with Client(stdio_client(started, errlog=words.writable), cache=None) as client:
                words.writable.close()
                yield client
        except Exception as error:
            if not (said := words.said(without_keys)):
                raise
            raise BackendFailed(f"{_typed(error).message}; it said: {said}") from error
        finally:
            words.close()

    return opened


def _typed(error: BaseException) -> InferenceError:
    """What went wrong, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error if isinstance(error, InferenceError) else BackendFailed(str(error) or type(error).__name__)
