"""Loading and unloading while people work: room, eviction, refusal, and loads that meet."""

import asyncio
import io
import wave

import pytest

from tests.engine import tiny
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.audio import Audio
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    InsufficientMemory,
    ModelNotFound,
    NoBackendAvailable,
    Unsupported,
)
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.local_models import LoadOptions, LocalModels

ASK = {"temperature": 0, "max_tokens": 4}


@pytest.fixture
async def house(models):
    """A manager with the local models of a catalogue; what memory there is can be said."""
    made = []

    def build(memory=64 << 30, **settings):
        config = InferenceServiceConfig(backend_health_checks=False, **settings)
        manager = BackendManager(config)
        local = LocalModels(manager, config, models, memory=lambda: memory)
        local.offer()
        made.append((manager, local))
        return manager, local

    yield build
    for manager, local in made:
        await local.close()
        await manager.aclose()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-classifier"
    folder.mkdir()
    tiny.bert(folder, "BertForSequenceClassification")
    return folder


async def test_a_folder_is_loaded_serves_and_is_unloaded(house, classifier):
    manager, local = house()
    steps = []
    loads = [local.load(str(classifier), tell=steps.append), local.load(str(classifier))]
    first, second = await asyncio.gather(*loads)
    assert first["pid"] == second["pid"]
    assert (first["task"], first["engine"], first["state"]) == (
        "text-classification",
        "transformers",
        "loaded",
    )
    assert [step["stage"] for step in steps][:1] == ["finding"]
    assert "loading" in [step["stage"] for step in steps]
    result = await manager.infer("text-classification", "tiny-classifier", ["the cat", "a dog"])
    assert {item["label"] for (item,) in result.result} <= {"NEGATIVE", "POSITIVE"}
    assert result.usage.input_tokens > 0
    listed = {item["model_id"]: item for item in await local.listed()}
    assert listed["tiny-classifier"]["state"] == "loaded"
    assert listed["SmolLM2-135M-Instruct"]["state"] == "unloaded"
    with pytest.raises(BadRequest, match="unload it first"):
        await local.load("tiny-classifier", options=LoadOptions(concurrency=2))
    gone = await local.unload("tiny-classifier")
    assert gone["unloaded"] == ["local-tiny-classifier"]
    again = await local.load("tiny-classifier", options=LoadOptions(concurrency=2, keep_alive=9))
    assert (again["concurrency"], again["keep_alive"]) == (2, 9)
    assert again["backend_id"] == "local-tiny-classifier"


async def test_the_idle_model_that_was_not_used_for_longest_makes_room(house):
    manager, local = house(max_loaded_models=1)
    await local.load("smollm2")
    assert (await local.load("minilm"))["state"] == "loaded"
    states = {item["model_id"]: item["state"] for item in await local.listed()}
    assert states["SmolLM2-135M-Instruct"] == "unloaded"
    stream = manager.stream("chat", "SmolLM2-135M-Instruct", "A long story:", {"max_tokens": 1500})
    async with stream:
        async for _ in stream:
            break
        states = {item["model_id"]: item["state"] for item in await local.listed()}
        assert states["all-MiniLM-L6-v2"] == "unloaded"
        async for _ in stream:
            break
        with pytest.raises(NoBackendAvailable, match="all are in use") as caught:
            await local.load("minilm")
        assert caught.value.retry_after


async def test_what_does_not_fit_is_refused_with_the_numbers_and_nothing_is_broken(house):
    manager, local = house(memory=100_000_000)
    with pytest.raises(InsufficientMemory, match=r"needs 0\.\d+ GB and 0\.10 GB are free"):
        await local.load("smollm2")
    with pytest.raises(InsufficientMemory):
        await manager.infer("generation", "SmolLM2-135M-Instruct", "Once", ASK)
    info = await manager.probe("local-smollm2-135m-instruct")
    assert info.status is BackendStatus.HEALTHY
    report = manager.get_backend_status_report()
    assert (report["total_failed"], report["in_flight"]) == (1, 0)


async def test_broken_weights_and_a_wrong_task_are_typed_errors_and_the_next_load_is_fine(house, tmp_path):
    _, local = house()
    tiny.bert(tmp_path / "bert", "BertForMaskedLM")
    with pytest.raises(BackendFailed, match="another kind of model"):
        await local.load(
            str(tmp_path / "bert"), options=LoadOptions(task="token-classification", name="wrong")
        )
    assert (await local.load(str(tmp_path / "bert")))["task"] == "fill-mask"
    with pytest.raises(ModelNotFound):
        await local.load("no-such-model")
    with pytest.raises(ModelNotFound, match="no local model"):
        await local.unload("no-such-model")
    with pytest.raises(BadRequest, match="device"):
        await local.load(str(tmp_path / "bert"), "cuda:7", LoadOptions(name="elsewhere"))
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    await local.unload("bert")
    with pytest.raises(BackendFailed, match="100 bytes are missing"):
        await local.load("bert")


async def test_a_recording_of_the_transcription_door_reaches_the_model(house, tmp_path):
    manager, local = house()
    tiny.wav2vec2(tmp_path / "ears")
    await local.load(str(tmp_path / "ears"))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(range(256)) * 32)
    recording = Audio(file.getvalue(), "a.wav", "audio/wav")
    options = {"response_format": "json", "temperature": 0.0}
    heard = await manager.infer("audio-transcription", "ears", recording, options)
    assert isinstance(heard.result["text"], str)
    for wrong in ({"response_format": "srt"}, {"language": "en"}):
        with pytest.raises(Unsupported):
            await manager.infer("audio-transcription", "ears", recording, wrong)
    with pytest.raises(BadRequest, match="WAV"):
        await manager.infer("audio-transcription", "ears", Audio(b"no sound", "a.mp3", "audio/mp3"))


async def test_hardware(house):
    _, local = house()
    hardware = await local.hardware()
    report = hardware.to_dict()
    assert 1 <= report["cores"] <= report["affinity_cores"]
    assert 0 < report["available_bytes"] <= report["memory_bytes"]
    cpu = hardware.device("cpu")
    assert cpu is not None
    assert "float32" in cpu.dtypes
    assert "cuda" in report["missing"] or hardware.device("cuda") is not None
