"""Pictures and other media of a chat, where the server that reads it could fetch them itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from uia_lab.domain.errors import Unsupported

_MEDIA = ("image", "audio", "video")


def only_data(messages: Sequence[Mapping[str, Any]]) -> None:
    """Passes where every medium is in the message itself, as a ``data:`` address.

    A server of this machine that fetched one would reach, for whoever asks, what only this machine reaches:
    its files, its other servers, the secrets of its cloud.

    Args:
        messages: Of the chat.

    Raises:
        Unsupported: One is an address to be fetched from.
    """
    for index, message in enumerate(messages):
        content = message.get("content")
        for number, part in enumerate(content) if isinstance(content, list) else ():
            for name, value in part.items() if isinstance(part, dict) else ():
                if (name.endswith("url") or name in _MEDIA) and not _is_data(value):
                    raise Unsupported(
                        f"messages[{index}].content[{number}].{name} must be a data: address: a server of "
                        "this machine is not sent to fetch anything; send the content itself, in base64",
                        param="messages",
                    )


def _is_data(value: Any) -> bool:
    address = value.get("url") if isinstance(value, dict) else value
    return value is None or (isinstance(address, str) and address[:5].lower() == "data:")
