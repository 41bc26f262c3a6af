"""``POST /v1/embeddings``: the wire to a call, and vectors to the wire."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.openai_call import Call, texts, usage_object
from uia_lab.domain.errors import BackendFailed, BadRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING


def parse(body: bytes) -> Call:
    """The call in a body; fields we do not know are ignored.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
    """
    fields = Fields(decode_object(body))
    inputs, count = texts(fields, "input")
    if inputs == "" or (isinstance(inputs, list) and "" in inputs):
        raise BadRequest("input must not have an empty string", param="input")
    dimensions = fields.whole("dimensions", 1, 65_536)
    encoding = fields.values.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise fields.wrong("encoding_format", "float or base64")
    return Call(
        TEXT_EMBEDDING,
        model=fields.text("model", 512),
        inputs=inputs,
        parameters={} if dimensions is None else {"dimensions": dimensions},
        choices=count,
        encoding=encoding,
        hints=fields.mapping("uia") or {},
    )


def whole(call: Call, answer: Answer) -> dict[str, Any]:
    """The body of an answer.

    Raises:
        BackendFailed: The backend's result is not one finite vector for each input.
    """
    rows = vectors(answer.finished.result, call.choices)
    if call.encoding == "base64":
        written: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in rows]
    else:
        written = rows.tolist()
    usage = usage_object(answer.finished.usage)
    del usage["completion_tokens"]
    usage["total_tokens"] = usage["prompt_tokens"]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(written)
        ],
        "model": call.model or answer.backend_id,
        "usage": usage,
    }


def vectors(result: Any, count: int) -> npt.NDArray[np.float32]:
    """A backend's result as a (count, dimensions) array of little-endian float32.

    Args:
        result: A list of vectors, an array, or one vector where one text was given.
        count: Texts that were given.

    Raises:
        BackendFailed: Anything else; the message says what came.
    """
    try:
        rows = np.asarray(result, dtype="<f4")
    except (TypeError, ValueError, OverflowError):
        raise BackendFailed("the backend's embeddings are not vectors of numbers") from None
    if rows.ndim == 1 and count == 1:
        rows = rows[np.newaxis]
    if rows.ndim != 2 or rows.shape[0] != count or rows.shape[1] == 0:
        raise BackendFailed(f"the backend gave embeddings of shape {rows.shape} for {count} texts")
    if not np.isfinite(rows).all():
        raise BackendFailed("the backend's embeddings have values that are not finite")
    return rows
