"""Peers of the local network by mDNS, with zeroconf in a thread of its own."""

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

LOOK_UP_MS = 3000
GOODBYE_S = 1.0
END_S = 5.0
MOST_ADDRESSES = 8


def service_type(network: str) -> str:
    """The type of the service that nodes of a network announce; another network is not even asked for."""
    return f"_uia-{hashlib.sha256(network.encode()).hexdigest()[:8]}._tcp.local."


class Mdns:
    """Announces this node and looks for others, until it is stopped. A network without mDNS is no error.

    Args:
        network: Name of the network.
        peer_id: Id of this node.
        addresses: Where it listens, as multiaddrs without ``/p2p/<id>``.
        found: Told of each other node and its addresses, in the thread of mDNS; it must not wait.
    """

    def __init__(
        self,
        network: str,
        peer_id: str,
        addresses: tuple[str, ...],
        found: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self._type = service_type(network)
        self._peer_id = peer_id
        self._addresses = addresses[:MOST_ADDRESSES]
        self._found = found
        self._thread: threading.Thread | None = None
        self._inner: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = threading.Event()
        self._ended: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Begins; what goes wrong is logged, and the node does without."""
        outer = asyncio.get_running_loop()

        def run() -> None:
            try:
                asyncio.run(self._run())
            except Exception as error:  # noqa: BLE001 - whatever a network does, the node does without
                log.info("peers cannot be found by mDNS here: %s", error)
            finally:
                with contextlib.suppress(RuntimeError):
                    outer.call_soon_threadsafe(self._ended.set)

        self._thread = threading.Thread(target=run, name="uia-mdns", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begins to say goodbye."""
        self._stopping.set()
        if self._inner is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._inner.call_soon_threadsafe(self._stop.set)

    async def ended(self) -> None:
        """Done when its thread has ended.

        Raises:
            TimeoutError: It did not end within END_S.
        """
        if self._thread is not None:
            async with asyncio.timeout(END_S):
                await self._ended.wait()
            self._thread.join()

    async def _run(self) -> None:
        from zeroconf import ServiceStateChange
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

        self._stop = asyncio.Event()
        self._inner = asyncio.get_running_loop()
        if self._stopping.is_set():
            return
        looks: set[asyncio.Task[None]] = set()
        hosts = [_host(address) for address in self._addresses]
        interfaces = [host for host in dict.fromkeys(hosts) if ":" not in host]
        node = AsyncZeroconf(interfaces=interfaces)

        async def look(name: str) -> None:
            info = AsyncServiceInfo(self._type, name)
            if await info.async_request(node.zeroconf, LOOK_UP_MS):
                self._take(info.decoded_properties)

        def changed(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:  # noqa: ARG001
            if state_change is not ServiceStateChange.Removed:
                task = asyncio.ensure_future(look(name))
                looks.add(task)
                task.add_done_callback(looks.discard)

        mine = AsyncServiceInfo(
            self._type,
            f"{self._peer_id[-24:]}.{self._type}",
            addresses=[ipaddress.ip_address(host).packed for host in dict.fromkeys(hosts)],
            port=int(self._addresses[0].split("/")[4]),
            properties={
                "id": self._peer_id,
                **{f"a{number}": address for number, address in enumerate(self._addresses)},
            },
            server=f"{self._peer_id[-24:]}.local.",
        )
        browser = None
        try:
            browser = AsyncServiceBrowser(node.zeroconf, self._type, handlers=[changed])
            # The name has our key's hash in it: nobody has to be asked whether it is free.
            announced = await node.async_register_service(mine, cooperating_responders=True)
            looks.add(asyncio.ensure_future(announced))
            await self._stop.wait()
        finally:
            for task in looks:
                task.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    if browser is not None:
                        await browser.async_cancel()
                    await (await node.async_unregister_service(mine))
            await node.async_close()

    def _take(self, properties: dict[str, str | None]) -> None:
        peer_id = properties.get("id") or ""
        if not peer_id or len(peer_id) > 128 or peer_id == self._peer_id:
            return
        addresses = [properties.get(f"a{number}") for number in range(MOST_ADDRESSES)]
        self._found(peer_id, tuple(address for address in addresses if address and _is_near(address)))


def _host(address: str) -> str:
    return address.split("/")[2]


def _is_near(address: str) -> bool:
    """Whether an address is one of the local network: what anybody there can announce leads nowhere else."""
    parts = address.split("/")
    try:
        host = ipaddress.ip_address(parts[2])
        return len(parts) == 5 and parts[3] == "tcp" and 0 < int(parts[4]) < 65536 and host.is_private
    except (IndexError, ValueError):
        return False
