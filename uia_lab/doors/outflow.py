"""What waits for a client to take what was written to it: slowly is well, not at all is the end."""

import asyncio
import contextlib
import fcntl
import sys
import termios
from typing import Any

# Looks at a stream's progress during the time in which it has to make some.
LOOKS = 4


async def taken(sent: "asyncio.Future[None]", stream: Any, stalled_s: float) -> bool:
    """Waits until everything up to one write has been taken, for as long as the client takes something.

    Args:
        sent: The write's future. It is tornado's, and is never cancelled: what is left in the stream's buffer
            when a waiter leaves goes out all the same. Its error is the caller's to look at.
        stream: The stream it is written to.
        stalled_s: Seconds in which at least one byte has to be taken.

    Returns:
        False when nothing was taken for so long.
    """
    now = asyncio.get_running_loop().time
    gone_out, since = _gone_out(stream), now()
    while not sent.done():
        await asyncio.wait((sent,), timeout=stalled_s / LOOKS)
        if (total := _gone_out(stream)) > gone_out:
            gone_out, since = total, now()
        elif now() - since >= stalled_s:
            return sent.done()
    return True


def _gone_out(stream: Any) -> int:
    """Bytes of a stream that its peer has acknowledged, where the system says so; else those sent off.

    The kernel takes more from us only when megabytes have gone out, which on a slow line is minutes.
    """
    # Tornado keeps this count to itself.
    total: int = getattr(stream, "_total_write_done_index", 0)
    if not stream.closed():
        with contextlib.suppress(OSError):
            queued = fcntl.ioctl(stream.fileno(), termios.TIOCOUTQ, bytes(4))
            total -= int.from_bytes(queued, sys.byteorder)
    return total
