"""What a reference stands for, told by data files alone; the hub's cache as the hub lays it out."""

import json
import os
import struct

import pytest

from uia_lab.domain.errors import BackendFailed, BadRequest, ModelNotFound, NotAllowed
from uia_lab.engine.catalogue import Catalogue
from uia_lab.engine.estimate import cache_bytes_per_token
from uia_lab.engine.headers import gguf_header, safetensors_header, safetensors_weights
from uia_lab.engine.hub import skills
from uia_lab.engine.references import resolve
from uia_lab.engine.sources import packaged

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


def safetensors(file, numbers=1000, dtype="BF16", width=2):
    header = json.dumps({"w": {"dtype": dtype, "shape": [numbers], "data_offsets": [0, numbers * width]}})
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(numbers * width))


def model(folder, config=LLAMA, **changes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    safetensors(folder / "model.safetensors")
    return folder


def gguf(file, entries=None):
    entries = entries or {"general.architecture": "llama", "llama.context_length": 512}
    body = b""
    for name, value in entries.items():
        body += struct.pack("<Q", len(name)) + name.encode()
        if isinstance(value, str):
            body += struct.pack("<IQ", 8, len(value)) + value.encode()
        elif isinstance(value, list):
            body += struct.pack("<IIQ", 9, 8, len(value))
            body += b"".join(struct.pack("<Q", len(item)) + item.encode() for item in value)
        else:
            body += struct.pack("<II", 4, value)
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + body)
    return file


@pytest.fixture
def hub(tmp_path):
    """A cache as huggingface_hub lays it out: blobs, snapshots that point at them, refs."""
    cache = tmp_path / "hub"

    def add(repo_id, **changes):
        repo = cache / f"models--{repo_id.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        made = model(repo / "made", **changes)
        (repo / "blobs").mkdir()
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        for number, file in enumerate(sorted(made.iterdir())):
            blob = repo / "blobs" / f"{number:040x}"
            file.rename(blob)
            (repo / "snapshots" / commit / file.name).symlink_to(
                os.path.relpath(blob, repo / "snapshots" / commit)
            )
        made.rmdir()
        return repo / "snapshots" / commit

    add.cache = cache
    return add


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def found(reference, tmp_path, **options):
    return resolve(reference, Catalogue(tmp_path / "cache"), **{"paths": True, **options})


def test_names_of_the_catalogue_come_first(tmp_path):
    source = found("smollm2", tmp_path)
    assert (source.name, source.engine, source.origin) == ("SmolLM2-135M-Instruct", "llamacpp", "catalogue")
    assert not source.is_here()
    with pytest.raises(ModelNotFound, match="smollm3"):
        found("smollm3", tmp_path)


def test_a_folder_and_what_it_needs(tmp_path):
    folder = model(tmp_path / "my-llama")
    source = found(str(folder), tmp_path)
    assert (source.name, source.task, source.engine) == ("my-llama", "text-generation", "transformers")
    assert (source.size, source.context_length) == (2000, 128)
    guess = source.estimate(16)
    # 2 x layers x key-value heads x head size x 4 bytes
    assert guess.cache_bytes_a_token == 2 * 2 * 2 * 16 * 4
    assert guess.weights_bytes == 4000
    assert guess.cache_bytes == guess.cache_bytes_a_token * 128 * 16
    assert guess.total_bytes > guess.weights_bytes + guess.cache_bytes


def test_the_figure_of_the_facts_file():
    shape = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    assert cache_bytes_per_token(shape, "bfloat16") == 23_040


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "text-classification"),
        (
            {"architectures": ["BartForSequenceClassification"], "label2id": {"entailment": 0, "neutral": 1}},
            "zero-shot-classification",
        ),
        ({"architectures": ["BertForTokenClassification"]}, "token-classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question-answering"),
        ({"architectures": ["BertForMaskedLM"]}, "fill-mask"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "summarization"),
        ({"architectures": ["MarianMTModel"], "model_type": "marian"}, "translation"),
        (
            {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"},
            "audio-transcription",
        ),
        ({"architectures": ["Wav2Vec2ForCTC"]}, "audio-transcription"),
        ({"architectures": ["ViTForImageClassification"]}, "image-classification"),
        ({"architectures": ["BertModel"]}, "text-embedding"),
        ({"architectures": ["GPT2LMHeadModel"]}, "text-generation"),
    ],
)
def test_tasks_are_told_by_the_configuration(tmp_path, config, task):
    assert found(str(model(tmp_path / "it", config)), tmp_path).task == task
    assert found(str(tmp_path / "it"), tmp_path, task="ner").task == "token-classification"


def test_gguf_files(tmp_path, models):
    file = gguf(
        tmp_path / "tiny.gguf",
        {"general.architecture": "llama", "x": ["a", "bc"], "llama.context_length": 9000},
    )
    source = found(str(file), tmp_path)
    assert (source.name, source.engine, source.task, source.context_length) == (
        "tiny",
        "llamacpp",
        "text-generation",
        8192,
    )
    assert gguf_header(file)["x"] == 2
    real = packaged(models, "smollm2")
    guess = real.estimate(4)
    assert guess.cache_bytes_a_token == 23_040
    assert guess.weights_bytes == 98_362_432
    with pytest.raises(BackendFailed, match="not fill-mask"):
        found(str(file), tmp_path, task="fill-mask")
    with pytest.raises(BadRequest):
        found(str(model(tmp_path / "safe")), tmp_path, engine="llamacpp")


def test_hub_ids_from_the_cache(tmp_path, hub):
    snapshot = hub("someone/tiny-llama")
    source = found("someone/tiny-llama", tmp_path, hub_cache=hub.cache)
    assert (source.name, source.origin, source.path) == ("someone/tiny-llama", "hub", snapshot)
    with pytest.raises(ModelNotFound, match="cannot be asked"):
        found("someone/absent", tmp_path, hub_cache=hub.cache)
    with pytest.raises(ModelNotFound):
        found("no/such/id", tmp_path, hub_cache=hub.cache)


def test_paths_are_for_administrators(tmp_path):
    for path in (str(tmp_path), "./x", "../x", "~/x", "x.gguf"):
        with pytest.raises(NotAllowed):
            found(path, tmp_path, paths=False)
    with pytest.raises(ModelNotFound, match="nothing at"):
        found(str(tmp_path / "absent"), tmp_path)


def broken(tmp_path):
    folder = model(tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    yield folder, "10 bytes are missing"
    folder = model(tmp_path / "text")
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    yield folder, "no safetensors file"
    folder = model(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    yield folder, "pickled ones are not loaded"
    folder = model(tmp_path / "no-json")
    (folder / "config.json").write_text("{")
    yield folder, "cannot be read"
    yield model(tmp_path / "odd", {"architectures": ["NobodyKnows"]}), "no task is known"
    yield model(tmp_path / "own-code", {"auto_map": {"AutoModel": "evil.Model"}}), "never executed"
    (tmp_path / "none").mkdir()
    yield tmp_path / "none", "neither a config.json nor a GGUF"
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(10))
    yield tmp_path / "bad.gguf", "no GGUF file"
    (tmp_path / "huge.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60))
    yield tmp_path / "huge.gguf", "damaged"


def test_what_is_broken_says_how(tmp_path):
    for path, message in broken(tmp_path):
        with pytest.raises(BackendFailed, match=message):
            found(str(path), tmp_path)


def test_skills_are_found_without_running_anything(tmp_path, hub, monkeypatch):
    hub("someone/tiny-llama")
    hub(
        "someone/with-code",
        model_type="my_model",
        architectures=["MyModelForCausalLM"],
        auto_map={"AutoModel": "evil.Model"},
    )
    folders = tmp_path / "mine"
    model(folders / "classifier", {"architectures": ["BertForSequenceClassification"]})
    gguf(folders / "tiny.gguf")
    (folders / "notes.txt").write_text("hello")
    (folders / "classifier" / "evil.py").write_text("raise SystemExit")
    listed = {skill.model_id: skill for skill in skills([str(folders), str(tmp_path / "absent")], hub.cache)}
    assert set(listed) == {
        "someone/tiny-llama", "someone/with-code", str(folders / "classifier"), str(folders / "tiny.gguf"),
    }  # fmt: skip
    assert listed["someone/tiny-llama"].task == "text-generation"
    assert listed["someone/tiny-llama"].size == 2000
    assert listed[str(folders / "classifier")].task == "text-classification"
    assert listed["someone/with-code"].reason
    assert skills([], tmp_path / "no cache") == []


def test_headers_of_real_weights(models):
    folder = models.path("minilm").parent
    assert safetensors_weights(folder).bytes < 90_868_376
    assert safetensors_header(folder / "model.safetensors")["embeddings.word_embeddings.weight"]["shape"] == [
        30522,
        384,
    ]
