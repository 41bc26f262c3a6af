"""Images and transcripts as upstreams are asked for them, in the shapes of OpenAI's public API reference."""

import json

import pytest

from tests.dialects.conftest import read, sse_bytes
from uia_lab.dialects import openai_images, openai_transcriptions
from uia_lab.dialects.openai_images import OpenAIImages
from uia_lab.dialects.openai_transcriptions import OpenAITranscriptions
from uia_lab.domain import errors
from uia_lab.domain.audio import Audio
from uia_lab.domain.events import Result, Text
from uia_lab.domain.requests import InferenceRequest, RoutingHints

RECORDING = Audio(b"RIFF", "a.wav", "audio/wav")


def images(inputs="a cat", **parameters):
    return InferenceRequest("image-generation", "painter", inputs=inputs, parameters=parameters)


def transcript(inputs=RECORDING, *, stream=False, **parameters):
    return InferenceRequest("audio-transcription", "ear", inputs=inputs, parameters=parameters, stream=stream)


def test_images_are_asked_for():
    out = OpenAIImages().outgoing(images(n=2, size="auto"))
    assert (out.path, dict(out.body), out.stream) == (
        "images/generations",
        {"prompt": "a cat", "n": 2, "size": "auto", "model": "painter"},
        False,
    )
    with pytest.raises(errors.BadRequest):
        OpenAIImages().outgoing(images([1, 2]))


def test_images_asked_for_in_this_dialect_keep_what_only_it_has():
    body = {"model": "alias", "prompt": "a cat", "uia": {"priority": 1}, "negative_prompt": "a dog"}
    request = openai_images.parse(json.dumps(body).encode()).request("req-1", "me", RoutingHints())
    out = OpenAIImages().outgoing(request)
    assert out.body == {"model": "alias", "prompt": "a cat", "negative_prompt": "a dog"}


def test_images_are_read():
    made = [{"b64_json": "aGk="}, {"url": "https://example.org/a.png", "revised_prompt": "cat"}]
    usage = {"input_tokens": 5, "output_tokens": 40, "total_tokens": 45}
    raw = json.dumps({"created": 1, "data": made, "usage": usage}).encode()
    dialect, request = OpenAIImages(), images()
    chunk, end = read(dialect.reader(request), raw[:7], raw[7:])
    assert chunk.delta == Result(made)
    assert end.result == made
    assert (end.usage.input_tokens, end.usage.output_tokens) == (5, 40)
    for bad in (
        b"",
        b"{}",
        b'{"data": 3}',
        b'{"data": [{}]}',
        b"[]",
        b'{"data": [], "usage": {"input_tokens": "x"}}',
    ):
        with pytest.raises(errors.BackendFailed):
            read(dialect.reader(request), bad)


def test_a_transcript_is_asked_for_as_a_form():
    out = OpenAITranscriptions().outgoing(
        transcript(language="en", temperature=0.5, timestamp_granularities=["word"], stream=True)
    )
    assert (out.path, out.stream, dict(out.files)) == ("audio/transcriptions", True, {"file": RECORDING})
    assert out.body == {
        "model": "ear",
        "response_format": "json",
        "language": "en",
        "temperature": "0.5",
        "timestamp_granularities[]": ["word"],
        "stream": "true",
    }
    with pytest.raises(errors.BadRequest):
        OpenAITranscriptions().outgoing(transcript("text"))


@pytest.mark.parametrize(
    ("wanted", "raw", "result"),
    [
        ("json", b'{"text": "so", "usage": {"type": "duration", "seconds": 3}}', "so"),
        ("json", '{"text": "zwölf"}'.encode(), "zwölf"),
        ("verbose_json", b'{"text": "so", "duration": 3}', {"text": "so", "duration": 3}),
        ("text", b"so\n", "so\n"),
        ("text", b'{"text": "so"}', "so"),
        ("srt", b"1\n00:00:00,000 --> 00:00:01,000\nso\n", "1\n00:00:00,000 --> 00:00:01,000\nso\n"),
    ],
)
def test_transcripts_are_read(wanted, raw, result):
    dialect, request = OpenAITranscriptions(), transcript(response_format=wanted)
    chunk, end = read(dialect.reader(request), *(raw[at : at + 1] for at in range(len(raw))))
    assert (chunk.delta, end.result) == (Result(result), result)


def test_a_streamed_transcript_cut_anywhere(cut_everywhere):
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
    body = sse_bytes(
        {"type": "transcript.text.delta", "delta": "zwö"},
        {"type": "transcript.text.delta", "delta": "lf"},
        {"type": "transcript.text.done", "text": "zwölf", "usage": usage},
    )
    dialect, request = OpenAITranscriptions(), transcript(stream=True)
    events = cut_everywhere(lambda: dialect.reader(request), body)
    assert [event.delta for event in events[:-1]] == [Text("zwö"), Text("lf")]
    assert (events[-1].result, events[-1].usage.input_tokens) == ("zwölf", 14)
    with pytest.raises(errors.BackendFailed):
        read(dialect.reader(request), body[: len(body) // 2])


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"temperature": ["hot"]}, "temperature"),
        ({"temperature": ["nan"]}, "temperature"),
        ({"stream": ["maybe"]}, "stream"),
        ({"response_format": ["pdf"]}, "response_format"),
        ({"model": ["m" * 600]}, "model"),
    ],
)
def test_fields_of_a_form_that_are_wrong(form, param):
    with pytest.raises(errors.BadRequest) as caught:
        openai_transcriptions.parse(form, {"file": [RECORDING]})
    assert caught.value.param == param
