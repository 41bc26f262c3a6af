"""Answers of a batch in a file, so that it goes on after a restart of the kernel."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.requests import InferenceRequest


def keys_of(requests: Iterable[InferenceRequest]) -> list[str]:
    """A digest of each request: of all that its answer depends on, and which of several equal ones it is."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        hints = request.routing
        said = [
            request.task,
            request.model,
            list(request.messages or ()),
            dict(request.parameters),
            hints.backend_id,
        ]
        digest = hashlib.sha256(
            json.dumps(said, sort_keys=True, default=str).encode(errors="replace")
        ).hexdigest()
        keys.append(f"{digest[:40]}-{seen[digest]}")
        seen[digest] += 1
    return keys


class BatchFile:
    """One JSON object a line: the digest of a request, and its answer. Prompts are not in it.

    Args:
        path: Where it is; made at the first answer, readable to its owner only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock = threading.Lock()

    def read(self, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The answers to those of the digests that it has.

        Raises:
            BadRequest: It cannot be read, or holds something else.
        """
        names = set(wanted)
        found: dict[str, dict[str, Any]] = {}
        torn = 0
        try:
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    try:
                        item = json.loads(line)
                        key, text = item["key"], item["text"]
                    except (ValueError, KeyError, TypeError):
                        # The line that was being written when the kernel ended.
                        torn += 1
                        continue
                    if key in names and isinstance(text, str):
                        found[key] = item
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"the answers in {self.path} cannot be read: {error}", param="keep") from None
        if torn and not found and self._foreign():
            raise BadRequest(
                f"{self.path} holds something else than answers; name another file", param="keep"
            )
        return found

    def add(self, item: dict[str, Any]) -> None:
        """Appends an answer."""
        line = json.dumps(item, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                # A line that was torn must not take this one with it.
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line
                os.write(file, line)
            finally:
                os.close(file)

    def _foreign(self) -> bool:
        with self.path.open("rb") as file:
            return not file.read(8).startswith(b'{"key"')
