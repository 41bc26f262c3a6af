"""``POST /v1/audio/transcriptions``, as a door answers it and as an upstream is asked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import openai_error, typed_error
from uia_lab.dialects.upstream_reader import JsonReader, Piece, count, string
from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError, Unsupported
from uia_lab.domain.events import Chunk, Event, Finished, Result, Text, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION

NAME = "openai-transcriptions"
PLAIN = frozenset({"text", "srt", "vtt"})
"""Formats that are no JSON."""
_DETAILED = frozenset({"verbose_json", "diarized_json"})
_FORMATS = ("json", *sorted(PLAIN | _DETAILED))
_TEXTS = ("language", "prompt", "chunking_strategy")
_LISTS = ("timestamp_granularities", "include", "known_speaker_names", "known_speaker_references")


def parse(form: Mapping[str, Sequence[str]], files: Mapping[str, Sequence[Audio]]) -> Call:
    """The call in a form; fields we do not know are ignored.

    Args:
        form: The texts of its fields.
        files: Its files.

    Raises:
        BadRequest: A field is wrong; ``param`` names it.
    """
    given = files.get("file", ())
    if len(given) != 1 or not given[0].data:
        raise BadRequest("file must be one file that is not empty", param="file")
    values: dict[str, Any] = {name: texts[-1] for name, texts in form.items() if texts[-1] != ""}
    fields = Fields(values | {"temperature": _number(values.get("temperature"))})
    form_of_answer = values.get("response_format", "json")
    if form_of_answer not in _FORMATS:
        raise fields.wrong("response_format", f"one of {', '.join(_FORMATS)}")
    stream = values.get("stream", "false").lower()
    if stream not in ("true", "false", "1", "0"):
        raise fields.wrong("stream", "true or false")
    parameters: dict[str, Any] = {name: fields.text(name, 65_536) for name in _TEXTS}
    parameters["temperature"] = fields.number("temperature", 0, 1)
    # Clients write the name of a list with brackets behind it.
    parameters |= {name: list(form.get(f"{name}[]") or form.get(name) or ()) or None for name in _LISTS}
    return Call(
        AUDIO_TRANSCRIPTION,
        model=fields.text("model", 512),
        inputs=given[0],
        parameters={"response_format": form_of_answer}
        | {name: value for name, value in parameters.items() if value is not None},
        stream=stream in ("true", "1"),
    )


def _number(text: str | None) -> Any:
    # What is no number stays text, so that the field's own check names it.
    try:
        return float(text) if text is not None and len(text) <= 32 else text
    except ValueError:
        return text


def whole(call: Call, answer: Answer) -> dict[str, Any] | str:
    """The body of an answer: an object, or text in the formats that are no JSON.

    Raises:
        BackendFailed: The backend's result is no transcript.
        Unsupported: It is plain text where details were asked for.
    """
    result = answer.finished.result
    wanted = call.parameters["response_format"]
    text = result.get("text") if isinstance(result, Mapping) else result
    if not isinstance(text, str):
        raise BackendFailed("the backend's result is no transcript: neither text nor an object with a text")
    if wanted in PLAIN:
        return text
    if isinstance(result, Mapping):
        return dict(result)
    if wanted in _DETAILED:
        raise Unsupported(
            f"{answer.backend_id} transcribes to plain text only, not to {wanted}", param="response_format"
        )
    return {"text": text} | _usage(answer.finished.usage)


def _usage(usage: Usage) -> dict[str, Any]:
    if usage.estimated:
        return {}
    counts = {"type": "tokens", "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return {"usage": counts | {"total_tokens": usage.total_tokens}}


class Stream:
    """Renders the events of one answer as the events of a transcript."""

    def __init__(self) -> None:
        self._begun = False

    def render(self, event: Event) -> bytes:
        """The bytes of one event; none for events the dialect does not show."""
        if isinstance(event, Finished):
            text = event.result.get("text", "") if isinstance(event.result, Mapping) else event.result
            done = {"type": "transcript.text.done", "text": as_text(text)} | _usage(event.usage)
            first = b"" if self._begun else self._piece(as_text(text))
            return first + sse.event(done, done["type"])
        if isinstance(event, Chunk) and isinstance(event.delta, Text):
            return self._piece(event.delta.text)
        return b""

    def _piece(self, text: str) -> bytes:
        self._begun = True
        return sse.event({"type": "transcript.text.delta", "delta": text}, "transcript.text.delta")


class OpenAITranscriptions:
    """Translates for an upstream that transcribes below its base URL, which ends in ``/v1``."""

    name = NAME
    tasks = frozenset({AUDIO_TRANSCRIPTION})

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The form that asks for a request's transcript.

        Raises:
            BadRequest: The inputs are no recording.
        """
        if not isinstance(request.inputs, Audio):
            raise BadRequest("inputs must be uia_lab.domain.audio.Audio", param="inputs")
        form: dict[str, Any] = {"response_format": "json"}
        if request.model is not None:
            form["model"] = request.model
        for name, value in request.parameters.items():
            if isinstance(value, (list, tuple)):
                form[f"{name}[]"] = [str(item) for item in value]
            else:
                form[name] = str(value)
        if request.stream:
            form["stream"] = "true"
        return Outgoing("audio/transcriptions", form, request.stream, files={"file": request.inputs})

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:
        """A fresh reader of that call's answer."""
        wanted = str(outgoing.body["response_format"])
        return _TranscriptReader(wanted, stream=request.stream)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return openai_error(status, headers, body)


class _TranscriptReader(JsonReader):
    def __init__(self, wanted: str, *, stream: bool) -> None:
        super().__init__(stream=stream)
        self._wanted = wanted
        self._usage = Usage(estimated=True)
        self._result: Any = None

    def event(self, event: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of one event."""
        if event.get("type") == "transcript.text.delta":
            yield Text(string(event["delta"])), None
        elif event.get("type") == "transcript.text.done":
            self._result = string(event["text"])
            self._count(event.get("usage"))
        elif error := event.get("error"):
            raise typed_error(500, error.get("message"), {}, error.get("code"))

    def whole(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The transcript at once: its text, or the whole object where details were asked for."""
        text = string(body["text"])
        self._result = body if self._wanted in _DETAILED else text
        self._count(body.get("usage"))
        yield Result(self._result), None

    def end(self) -> Sequence[Event]:
        """The transcript and its end.

        Raises:
            BackendFailed: The body is none, or ended before its end.
        """
        raw = b"".join(self._body)
        if self._wanted in PLAIN and self._events is None and not raw.lstrip().startswith(b"{"):
            self._result = raw.decode(errors="replace")
            return [Chunk(0, Result(self._result)), Finished(self._result, self._usage)]
        return super().end()

    def finished(self, text: str) -> Finished | None:  # noqa: ARG002
        """The end, once the whole text has been told."""
        return None if self._result is None else Finished(self._result, self._usage)

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage and usage.get("type") != "duration":
            self._usage = Usage(count(usage.get("input_tokens")), count(usage.get("output_tokens")))
