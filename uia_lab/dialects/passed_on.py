"""A stream that is passed on, as the door that does so has to know it to add something of its own."""

from collections.abc import Callable
from typing import Any

import msgspec

from uia_lab.dialects import sse
from uia_lab.dialects.stream_relay import tells_usage
from uia_lab.domain.events import Relayed

_SHARED = ("id", "created", "model", "system_fingerprint")


class PassedOn:
    """What was passed on of one answer; its first bytes are read only when something is added.

    Args:
        head: The fields that all chunks of ours share; they become those of the upstream's chunks.
        usage_asked: Whether the caller asked for a chunk of usage.
    """

    def __init__(self, head: dict[str, Any], *, usage_asked: bool) -> None:
        self._head = head
        self._usage_due = usage_asked
        self._first: bytes | None = None
        self._adopted = False

    def take(self, relayed: Relayed) -> bytes:
        """The bytes to pass on."""
        data = relayed.wire[1]
        if self._first is None:
            self._first = data
        if self._usage_due and tells_usage(data):
            self._usage_due = False
        return data

    def end(self, last: Relayed, usage: Callable[[], bytes]) -> bytes:
        """The last bytes; before ``[DONE]`` the usage, where it was asked for and the upstream told none.

        Args:
            last: The upstream's last bytes.
            usage: Makes the chunk of usage.
        """
        data = self.take(last)
        if not self._usage_due:
            return data
        self.adopt()
        at = data.rfind(b"data:")
        return data[:at] + usage() + data[at:]

    def adopt(self) -> bool:
        """Makes the head that of the upstream's chunks; False where nothing was passed on."""
        if self._first is None:
            return False
        if not self._adopted:
            self._adopted = True
            for _, text in sse.Parser().feed(self._first):
                first: Any = msgspec.json.decode(text)
                self._head.update({name: first[name] for name in _SHARED if name in first})
                break
        return True
