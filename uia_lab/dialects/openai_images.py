"""``POST /v1/images/generations``, as a door answers it and as an upstream is asked."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.object_reader import ObjectReader, count
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.upstream import Outgoing
from uia_lab.domain.errors import BackendFailed, BadRequest, Unsupported
from uia_lab.domain.events import Event, Finished, Result, Usage
from uia_lab.domain.requests import InferenceRequest, Wire
from uia_lab.domain.tasks import IMAGE_GENERATION

NAME = "openai-images"
_TEXTS = ("size", "quality", "style", "background", "moderation", "output_format", "response_format", "user")


def parse(body: bytes) -> Call:
    """The call in a body; fields we do not know go on to upstreams of this dialect.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
        Unsupported: A stream was asked for.
    """
    fields = Fields(decode_object(body))
    prompt = fields.text("prompt", 1_000_000)
    if prompt is None:
        raise BadRequest("prompt is missing", param="prompt")
    if fields.flag("stream"):
        raise Unsupported("images are not streamed here; leave stream out", param="stream")
    parameters: dict[str, Any] = {name: fields.text(name, 512) for name in _TEXTS}
    parameters["n"] = fields.whole("n", 1, 10)
    parameters["output_compression"] = fields.whole("output_compression", 0, 100)
    return Call(
        IMAGE_GENERATION,
        model=fields.text("model", 512),
        inputs=prompt,
        parameters={name: value for name, value in parameters.items() if value is not None},
        hints=fields.mapping("uia") or {},
        wire=Wire(NAME, body),
    )


def whole(answer: Answer) -> dict[str, Any]:
    """The body of an answer.

    Raises:
        BackendFailed: The backend's result is no image and no list of images.
    """
    result = answer.finished.result
    made = result if isinstance(result, (list, tuple)) else [result]
    usage = answer.finished.usage
    body: dict[str, Any] = {"created": int(time.time()), "data": [_image(item) for item in made]}
    if not usage.estimated:
        body["usage"] = {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"text_tokens": usage.input_tokens, "image_tokens": 0},
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
    return body


def _image(made: Any) -> dict[str, Any]:
    """One image: as this dialect writes it, or the bytes of its file."""
    match made:
        case {"url": str()} | {"b64_json": str()}:
            return dict(made)
        case bytes():
            return {"b64_json": base64.b64encode(made).decode()}
    raise BackendFailed("the backend's result is no image: neither url, nor b64_json, nor bytes")


class OpenAIImages:
    """One call of the endpoint of an upstream."""

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's images.

        Raises:
            BadRequest: The inputs are no prompt.
        """
        if request.wire is not None and request.wire.dialect == NAME:
            body: dict[str, Any] = msgspec.json.decode(request.wire.body)
            body.pop("uia", None)
        elif isinstance(request.inputs, str):
            body = {"prompt": request.inputs, **request.parameters}
        else:
            raise BadRequest("images are made from a prompt of text", param="inputs")
        if request.model is not None:
            body["model"] = request.model
        return Outgoing("images/generations", body)

    def reader(self, request: InferenceRequest) -> "ImageReader":  # noqa: ARG002
        """A fresh reader of the answer."""
        return ImageReader()


class ImageReader(ObjectReader):
    """Images, which come at once."""

    def frame(self, frame: dict[str, Any]) -> Iterator[Event]:
        """Nothing of this dialect is streamed.

        Raises:
            BackendFailed: Always.
        """
        raise BackendFailed(f"streams images, which were not asked for so ({str(frame)[:80]})")

    def message(self, message: dict[str, Any]) -> Iterator[Event]:
        """All the images and the end."""
        images = [_image(item) for item in message["data"]]
        usage = Usage(estimated=True)
        if given := message.get("usage"):
            usage = Usage(count(given.get("input_tokens")), count(given.get("output_tokens")))
        yield self.answer.chunk(Result(images))
        yield Finished(images, usage)
