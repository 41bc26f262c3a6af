"""A bare libp2p host in a trio thread of its own, for tests that speak to a node as no node of ours would."""

import asyncio
import contextlib
import warnings

from uia_lab.p2p.thread import TrioThread

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio
    from libp2p.peer.id import ID
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    from uia_lab.p2p.libp2p_host import hang_up, make_host, parsed
    from uia_lab.p2p.streams import open_stream


class BareHost:
    """Made by :func:`bare_host`; its methods run in its thread.

    Attributes:
        host: The libp2p host.
        thread: Its thread.
    """

    def __init__(self, host, thread):
        self.host = host
        self.thread = thread
        self.peer_id = str(host.get_id())
        self.dialled = []

    async def dial(self, address):
        """A connection to a node."""
        where, peer_id = parsed(address)

        async def dial():
            connection = await self.host.get_network().dial_addr(Multiaddr(where), ID.from_string(peer_id))
            self.dialled.append(connection)
            return connection

        return await self.thread.call(dial)

    async def open(self, connection, protocol):
        """A stream on a connection."""
        return await self.thread.call(open_stream, connection, protocol)

    async def run(self, function, *args):
        """Anything else in its thread."""
        return await self.thread.call(function, *args)


@contextlib.asynccontextmanager
async def bare_host(seed, host=None, listen=()):
    """A host with this key that listens where it is told."""
    made = host or make_host(seed)
    thread = TrioThread(asyncio.get_running_loop(), "bare-host")
    bare = BareHost(made, thread)

    async def main(ready):
        async with background_trio_service(made.get_network()):
            try:
                await made.get_network().listen(*map(Multiaddr, listen))
                ready()
                await trio.sleep_forever()
            finally:
                for connection in bare.dialled:
                    # libp2p leaves the socket of a connection open that the other side has ended.
                    await hang_up(connection, 1.0, politely=False)
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                    await made.close()

    await thread.start(main)
    try:
        yield bare
    finally:
        await thread.stop()
