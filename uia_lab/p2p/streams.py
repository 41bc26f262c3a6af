"""Streams of frames over a connection, with a deadline on every opening."""

from collections import deque
from typing import Any, Generic, TypeVar

import trio
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from uia_lab.p2p.frames import FrameError, Splitter, pack
from uia_lab.p2p.messages import Frame

OPEN_S = 2.0
CLOSE_S = 1.0
READ = 64 << 10

T = TypeVar("T")


class StreamGone(Exception):
    """The stream has ended or was reset, or could not be opened; a killed peer looks like a proper end."""


class FrameStream(Generic[T]):
    """Reads and writes frames.

    Args:
        stream: A stream of libp2p.
        kinds: Union of the frames that may come.
    """

    def __init__(self, stream: Any, kinds: Any) -> None:
        self._stream = stream
        self._splitter: Splitter[T] = Splitter(kinds)
        self._ready: deque[T] = deque()

    async def batch(self) -> list[T]:
        """The frames that have come, at least one.

        Raises:
            StreamGone: Nothing more comes.
            FrameError: The other side broke the protocol.
        """
        while not self._ready:
            try:
                data = await self._stream.read(READ)
            except Exception as error:
                raise StreamGone(f"the stream has ended ({type(error).__name__})") from error
            if not data:
                raise StreamGone("the stream has ended")
            self._ready.extend(self._splitter.feed(data))
        frames = list(self._ready)
        self._ready.clear()
        return frames

    async def one(self) -> T:
        """The next frame; errors as for :meth:`batch`."""
        if not self._ready:
            self._ready.extend(await self.batch())
        return self._ready.popleft()

    async def send(self, frame: Frame) -> None:
        """Writes a frame; errors as for :meth:`write`."""
        await self.write(pack(frame))

    async def write(self, data: bytes) -> None:
        """Writes frames that are packed.

        Raises:
            StreamGone: The other side has gone, or did not read for too long.
        """
        try:
            await self._stream.write(data)
        except Exception as error:
            raise StreamGone(f"nothing can be written ({type(error).__name__})") from error

    async def close(self) -> None:
        """Ends our direction properly, where that is possible within a moment."""
        await _let_go(self._stream.close)

    async def reset(self) -> None:
        """Ends both directions at once."""
        await _let_go(self._stream.reset)


async def open_stream(connection: Any, protocol: str) -> Any:
    """A new stream of that protocol on this very connection.

    ``host.new_stream`` would choose among all connections of the peer, a dead one included, and dial if
    there is none.

    Raises:
        StreamGone: It could not be opened within OPEN_S, or the peer does not speak the protocol.
    """
    stream = None
    try:
        with trio.fail_after(OPEN_S):
            stream = await connection.new_stream()
            chosen = await MultiselectClient().select_one_of(
                [protocol], MultiselectCommunicator(stream), OPEN_S
            )
            stream.set_protocol(chosen)
            opened, stream = stream, None
            return opened
    except trio.TooSlowError:
        raise StreamGone(f"no stream for {protocol} within {OPEN_S:g} s") from None
    except MultiselectClientError as error:
        raise StreamGone(f"it does not speak {protocol}: it is no uia_lab, or an older one") from error
    except Exception as error:
        raise StreamGone(f"no stream for {protocol} ({type(error).__name__})") from error
    finally:
        if stream is not None:
            await _let_go(stream.reset)


async def _let_go(end: Any) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
        try:
            await end()
        except Exception:  # noqa: BLE001
            # It is given up either way, and the connection's end takes it along.
            return


__all__ = ["FrameError", "FrameStream", "StreamGone", "open_stream"]
