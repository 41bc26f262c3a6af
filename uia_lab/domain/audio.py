"""A recording given with a request."""

import hashlib


class Audio:
    """The inputs of the task ``audio-transcription``.

    Its text, and so its place in logs, is a summary: recordings are large, and log lines are not.

    Args:
        data: The file's bytes.
        filename: Its name; its ending tells many servers the format. Line breaks and the like are left out.
        content_type: Its media type.
    """

    __slots__ = ("_summary", "content_type", "data", "filename")

    def __init__(self, data: bytes, filename: str, content_type: str = "application/octet-stream") -> None:
        self.data = data
        # It stands in a header when it goes on to another server.
        self.filename = "".join(filter(str.isprintable, filename)) or "audio"
        self.content_type = content_type
        self._summary: str | None = None

    def __repr__(self) -> str:
        if self._summary is None:
            digest = hashlib.sha256(self.data).hexdigest()
            what = f"{self.filename!r}, {self.content_type}, {len(self.data)} bytes, sha256 {digest}"
            self._summary = f"Audio({what})"
        return self._summary
