"""Images and recordings through the official client, and forms that are none."""

import base64
import io

import aiohttp
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import BackendFailed, BadRequest
from uia_lab.doors.forms import multipart
from uia_lab.doors.media import MAX_RECORDING

PNG = base64.b64encode(b"\x89PNG").decode()
AUDIO = b"RIFF\r\n--x\r\n\x00\xff" * 50


@pytest.fixture
async def client(house):
    url = house.server.url + "v1"
    async with openai.AsyncOpenAI(api_key="uia-test-key-of-infer", base_url=url, max_retries=0) as client:
        yield client


@pytest.fixture
def heard(house):
    """What the backends for images and for recordings were asked."""
    asked = []

    def paint(request):
        asked.append(request)
        return [{"b64_json": PNG}, {"url": "http://127.0.0.1/a.png", "revised_prompt": "a cat"}]

    def paint_file():
        return b"\x89PNG"

    def hear(request):
        asked.append(request)
        if request.model == "deaf":
            raise BackendFailed("too noisy")
        if request.parameters["response_format"] == "verbose_json":
            return {"text": "so it is", "duration": 1.5, "language": "english", "segments": []}
        return "so it is"

    def hear_words():
        yield from ("so ", "it ", "is")

    for task, name, function in (
        ("image-generation", "paint", paint),
        ("image-generation", "paint-file", paint_file),
        ("audio-transcription", "hear", hear),
        ("audio-transcription", "deaf", hear),
        ("audio-transcription", "hear-words", hear_words),
    ):
        house.manager.register_backend(name, "gpu", name, function, BackendCapabilities({task}, {name}))
    return asked


async def test_images(client, heard):
    made = await client.images.generate(
        model="paint", prompt="a cat", n=2, size="1024x1024", response_format="b64_json"
    )
    first, second = made.data
    assert first.b64_json == PNG
    assert (second.url, second.revised_prompt) == ("http://127.0.0.1/a.png", "a cat")
    (asked,) = heard
    assert (asked.task, asked.inputs) == ("image-generation", "a cat")
    assert asked.parameters == {"n": 2, "size": "1024x1024", "response_format": "b64_json"}
    assert (await client.images.generate(model="paint-file", prompt="x")).data[0].b64_json == PNG


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"n": 11}, openai.BadRequestError, "n"),
        ({"stream": True}, openai.BadRequestError, "stream"),
        ({"model": "echo"}, openai.BadRequestError, "model"),
        ({"model": "nobody"}, openai.NotFoundError, "model"),
    ],
)
async def test_images_that_cannot_be_made(client, heard, fields, kind, param):
    with pytest.raises(kind) as caught:
        await client.images.generate(**({"model": "paint", "prompt": "x"} | fields))
    assert caught.value.param == param


async def test_a_transcript(client, heard):
    made = await client.audio.transcriptions.create(
        model="hear", file=("a.wav", AUDIO, "audio/wav"), language="en", temperature=0.5, prompt="Names: Ann"
    )
    assert made.text == "so it is"
    (asked,) = heard
    recording = asked.inputs
    assert (recording.data, recording.filename, recording.content_type) == (AUDIO, "a.wav", "audio/wav")
    assert len(repr(recording)) < 200
    assert asked.parameters == {
        "response_format": "json",
        "language": "en",
        "temperature": 0.5,
        "prompt": "Names: Ann",
    }


async def test_the_formats_of_a_transcript(client, heard):
    file = ("a.wav", AUDIO)
    create = client.audio.transcriptions.create
    assert await create(model="hear", file=file, response_format="text") == "so it is"
    verbose = await create(
        model="hear", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert (verbose.text, verbose.duration) == ("so it is", 1.5)
    assert heard[-1].parameters["timestamp_granularities"] == ["word", "segment"]
    with pytest.raises(openai.BadRequestError) as plain:
        await create(model="hear-words", file=file, response_format="verbose_json")
    assert plain.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as unknown:
        await create(model="hear", file=file, response_format="pdf")
    assert unknown.value.param == "response_format"


async def test_a_streamed_transcript(client, heard):
    for model in ("hear-words", "hear"):
        stream = await client.audio.transcriptions.create(model=model, file=("a.wav", AUDIO), stream=True)
        events = [event async for event in stream]
        told = "".join(event.delta for event in events if event.type == "transcript.text.delta")
        assert told == events[-1].text == "so it is"
    with pytest.raises(openai.InternalServerError):
        await client.audio.transcriptions.create(model="deaf", file=("a.wav", AUDIO), stream=True)


async def test_strangers_are_refused_before_a_form_is_read(house, heard):
    form = aiohttp.FormData({"model": "hear"})
    form.add_field("file", AUDIO, filename="a.wav")
    async with house.call("POST", "v1/audio/transcriptions", None, data=form) as response:
        assert response.status == 401
    assert heard == []


async def test_a_result_that_is_no_image_has_failed_for_client_and_log(house):
    capabilities = BackendCapabilities({"image-generation"}, {"blind"})
    house.manager.register_backend("blind", "gpu", "Blind", lambda: {"text": "a cat"}, capabilities)
    house.manager.on_record = (records := []).append
    body = {"model": "blind", "prompt": "a cat"}
    async with house.call("POST", "v1/images/generations", "infer", json=body) as response:
        assert response.status == 502
        assert "no image" in (await response.json())["error"]["message"]
    assert [(record.outcome, record.error) for record in records] == [("failed", "backend_failed")]


async def test_bodies_that_are_no_forms_and_files_that_are_none(house, heard):
    kept = {"Content-Type": "application/json", "X-Uia-Content-Type": "multipart/form-data; boundary=x"}
    for headers in ({}, {"Content-Type": "multipart/form-data"}, {"Content-Type": "text/plain"}, kept):
        async with house.call("POST", "v1/audio/transcriptions", data=b"--x--", headers=headers) as response:
            assert response.status == 400
            assert "multipart" in (await response.json())["error"]["message"]
    for content in (b"", None):
        form = aiohttp.FormData({"model": "hear"}, default_to_multipart=True)
        if content is not None:
            form.add_field("file", content, filename="a.wav")
        async with house.call("POST", "v1/audio/transcriptions", data=form) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "file")


@pytest.mark.parametrize(("size", "status"), [(MAX_RECORDING - 1024, 200), (MAX_RECORDING, 413)])
async def test_recordings_may_be_larger_than_other_bodies_but_not_by_any_amount(house, heard, size, status):
    form = aiohttp.FormData({"model": "hear"})
    form.add_field("file", io.BytesIO(b" " * size), filename="a.wav")
    async with house.call("POST", "v1/audio/transcriptions", data=form) as response:
        assert response.status == status
        assert status == 200 or "25 MiB" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; " + "(" * 900,
        "multipart/form-data; " + "(" * 60_000,
        "multipart/form-data; " + "a=b; " * 12_000 + "boundary=x",
        "multipart/form-data; " + "; ".join(f"b*{number}*=a" for number in range(90)),
        "multipart/form-data; boundary*=utf-8''x",
        f"multipart/form-data; boundary*{'9' * 900}*=x",
        "multipart/form-data; boundary=" + "=?utf-8?q?a?= " * 70,
    ],
)
def test_hostile_headers_of_a_form_are_refused(content_type):
    with pytest.raises(BadRequest):
        multipart(content_type, b"--x--")


def test_a_boundary_in_quotes_and_more_parameters():
    body = b'--a;b\r\nContent-Disposition: form-data; name="model"\r\n\r\nhear\r\n--a;b--'
    content_type = 'Multipart/Form-Data; charset=utf-8; boundary="a;b"'
    assert multipart(content_type, body) == ({"model": ["hear"]}, {})


pieces = st.sampled_from(
    [
        b"--x",
        b"--x--",
        b"\r\n",
        b"\r\n\r\n",
        b'Content-Disposition: form-data; name="file"; filename="a"',
        b'Content-Disposition: form-data; name="model"',
        b"Content-Disposition: form-data; filename*=UTF-8''%ff",
        b"Content-Type: audio/wav",
        b"\xff\x00",
        b"value",
    ]
)


@given(
    st.lists(pieces | st.binary(max_size=8), max_size=14),
    st.sampled_from(["multipart/form-data; boundary=x", 'multipart/form-data; boundary="x"', "", "x\ny"])
    | st.text(max_size=30),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_body_is_a_form_or_a_bad_request(parts, content_type):
    try:
        fields, files = multipart(content_type, b"".join(parts))
    except BadRequest:
        return
    assert all(isinstance(value, str) for values in fields.values() for value in values)
    assert all(item.filename for items in files.values() for item in items)
