"""The errors of a server's answers, as the ones they are here."""

from collections.abc import Mapping
from typing import Any

from uia_lab.domain import errors


def _known(cls: type[errors.InferenceError]) -> dict[str, type[errors.InferenceError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _known(sub)
    return found


def error_of(status: int, body: Any, where: str) -> errors.InferenceError:
    """The typed error of an OpenAI error envelope.

    Args:
        status: HTTP status, used where the body names no code of ours.
        body: Decoded body, whatever came.
        where: Who answered.
    """
    envelope = body.get("error") if isinstance(body, Mapping) else None
    envelope = envelope if isinstance(envelope, Mapping) else {}
    classes = _known(errors.InferenceError)
    cls = classes.get(str(envelope.get("code")))
    if cls is None:
        by_status = {kind.http_status: kind for kind in reversed(classes.values())}
        cls = by_status.get(status, errors.BackendFailed)
    message = envelope.get("message") or f"{where} answered with status {status}"
    if cls in (errors.Unauthenticated, errors.NotAllowed) and not envelope.get("message"):
        message += "; check the token given to uia_lab.connect(url, token)"
    return cls(str(message), param=envelope.get("param"))
