"""Multipart forms, read by a door once it is known who sends them."""

from email.message import Message

from tornado.httputil import HTTPFile, HTTPInputError, ParseMultipartConfig, parse_multipart_form_data

from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import BadRequest

KEPT_TYPE = "X-Uia-Content-Type"
"""Where the standalone mount keeps the Content-Type of a body, out of tornado's sight."""
_LIMITS = ParseMultipartConfig(max_parts=64, max_part_header_size=4096)
_LONGEST_HEADER = 1024
_LONGEST_BOUNDARY = 200
_LONGEST_FIELD = 64 * 1024


def multipart(content_type: str, body: bytes) -> tuple[dict[str, list[str]], dict[str, list[Audio]]]:
    """The fields and files of a form.

    Args:
        content_type: The header of the request.
        body: Its body.

    Returns:
        Texts by the name of their field, and files by theirs.

    Raises:
        BadRequest: It is no multipart form, or one with more or larger fields than any client sends.
    """
    fields: dict[str, list[bytes]] = {}
    files: dict[str, list[HTTPFile]] = {}
    try:
        parse_multipart_form_data(_boundary(content_type), body, fields, files, config=_LIMITS)
        texts = {name: [value.decode() for value in values] for name, values in fields.items()}
    except (HTTPInputError, UnicodeError, ValueError) as error:
        raise BadRequest(f"the body is no multipart/form-data: {error}") from None
    for name, values in texts.items():
        if any(len(value) > _LONGEST_FIELD for value in values):
            raise BadRequest(f"the field {name[:64]!r} is longer than {_LONGEST_FIELD} characters")
    recordings = {
        name: [Audio(item["body"], item["filename"], item["content_type"]) for item in items]
        for name, items in files.items()
    }
    return texts, recordings


def _boundary(content_type: str) -> bytes:
    if len(content_type) > _LONGEST_HEADER:
        raise BadRequest(f"the Content-Type is longer than {_LONGEST_HEADER} characters")
    # Not EmailMessage, whose grammar of mail takes seconds and all of the stack for hostile headers.
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise BadRequest(
            "the body must be multipart/form-data with a boundary, as a form with a file is sent"
        )
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise BadRequest("the boundary of the form is empty or too long")
    return boundary.encode()
