"""Whose process listens at a port of this machine."""

import os
from pathlib import Path

FIRST_USER = 1000
_LISTEN = "0A"
# 127.0.0.1 and 0.0.0.0 as the kernel writes them, and the same over IPv6.
_LOCAL = {
    "tcp": ("0100007F", "00000000"),
    "tcp6": ("0" * 32, "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"),
}


def stranger_at(port: int, proc: Path = Path("/proc/net"), own: int | None = None) -> int | None:
    """The user whose process listens at a loopback port, if that is another person's.

    On a machine that people share, anybody can listen at a known port and read the prompts that come. The
    system's own users, such as the one Ollama is installed under, are trusted.

    Args:
        port: The port.
        proc: Where the kernel lists sockets; where it does not, nobody is a stranger.
        own: Our own user id.
    """
    me = (os.getuid() if hasattr(os, "getuid") else 0) if own is None else own
    for name, addresses in _LOCAL.items():
        try:
            lines = (proc / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) < 8 or fields[3] != _LISTEN:
                continue
            address, _, number = fields[1].partition(":")
            user = int(fields[7])
            if (
                address in addresses
                and int(number, 16) == port
                and user not in (0, me)
                and user >= FIRST_USER
            ):
                return user
    return None
