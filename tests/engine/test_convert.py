"""A GGUF file becomes a folder that transformers loads, with the same weights."""

import pytest

from tests.engine import tiny
from uia_lab.domain.errors import BackendFailed
from uia_lab.engine.convert import convert


@pytest.mark.timeout(300)
def test_the_converted_model_says_what_the_original_says(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = tiny.gguf(tmp_path / "original", tmp_path / "tiny.gguf")
    told = []
    folder = tmp_path / "cache" / "tiny"
    convert(tmp_path / "tiny.gguf", folder, lambda done, total: told.append((done, total)))
    assert (0, 1) in told
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("the cat sat over", return_tensors="pt").input_ids
    assert AutoTokenizer.from_pretrained(folder)("the cat sat over").input_ids == ids[0].tolist()
    # The weights are kept in bf16, which is all that may be lost.
    weights = converted.state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value.to(torch.bfloat16).float()), name
    with torch.inference_mode():
        assert torch.allclose(converted(ids).logits, model(ids).logits, atol=0.1)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    convert(tmp_path / "tiny.gguf", folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert sorted(item.name for item in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_a_file_that_is_none_leaves_nothing_and_says_why(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(BackendFailed, match=r"broken.gguf cannot be converted for transformers: \S"):
        convert(tmp_path / "broken.gguf", tmp_path / "cache" / "broken")
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [".broken.lock"]
