"""``POST /v1/audio/transcriptions``, as a door answers it and as an upstream is asked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.object_reader import ObjectReader, count, string
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import BackendFailed, BadRequest, Unsupported
from uia_lab.domain.events import Chunk, Event, Finished, Result, Text, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION

MAX_BODY = 64 << 20
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
    """One call of the endpoint of an upstream."""

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

    def reader(self, request: InferenceRequest) -> Reader:
        """A fresh reader of the answer."""
        wanted = str(request.parameters.get("response_format", "json"))
        return PlainReader() if wanted in PLAIN and not request.stream else TranscriptReader(wanted)


class PlainReader:
    """A transcript that is the whole body."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, data: bytes) -> Sequence[Event]:
        """Nothing yet.

        Raises:
            BackendFailed: The body is larger than any transcript.
        """
        self._body += data
        if len(self._body) > MAX_BODY:
            raise BackendFailed(f"sent a transcript of more than {MAX_BODY >> 20} MiB")
        return ()

    def end(self) -> Sequence[Event]:
        """The transcript and its end; some servers send JSON whatever they were asked for."""
        raw = bytes(self._body)
        if raw.lstrip().startswith(b"{"):
            return TranscriptReader("json").whole(raw)
        text = raw.decode(errors="replace")
        return [Chunk(0, Result(text)), Finished(text)]


class TranscriptReader(ObjectReader):
    """A transcript in JSON, at once or streamed.

    Args:
        wanted: The format that was asked for.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self._wanted = wanted

    def frame(self, frame: dict[str, Any]) -> Iterator[Event]:
        """The events of one event of the dialect.

        Raises:
            InferenceError: It is an error.
        """
        if frame.get("type") == "transcript.text.delta":
            yield self.answer.chunk(Text(string(frame["delta"])))
        elif frame.get("type") == "transcript.text.done":
            self.complete = True
            yield Finished(string(frame["text"]), _counted(frame))
        elif frame.get("error"):
            raise frame_error(encode(frame))

    def message(self, message: dict[str, Any]) -> Iterator[Event]:
        """The transcript at once: its text, or the whole object where details were asked for."""
        text = string(message["text"])
        result = message if self._wanted in _DETAILED else text
        yield self.answer.chunk(Result(result))
        yield Finished(result, _counted(message))


def _counted(answer: Mapping[str, Any]) -> Usage:
    usage = answer.get("usage") or {}
    if not usage or usage.get("type") == "duration":
        return Usage(estimated=True)
    return Usage(count(usage.get("input_tokens")), count(usage.get("output_tokens")))
