"""A recording given with a request."""

import hashlib


class Audio:
    """The inputs of the task ``audio-transcription``.

    Its text and its place in logs are a summary: recordings are large, and log lines are not.

    Args:
        data: The file's bytes.
        filename: Its name; its ending tells many servers the format.
        content_type: Its media type.
    """

    __slots__ = ("content_type", "data", "filename")

    def __init__(self, data: bytes, filename: str, content_type: str = "application/octet-stream") -> None:
        self.data = data
        self.filename = filename
        self.content_type = content_type

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.data).hexdigest()
        return f"Audio({self.filename!r}, {self.content_type}, {len(self.data)} bytes, sha256 {digest})"
