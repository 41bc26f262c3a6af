"""Requests and tasks check what they are made of."""

import pytest

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import ALIASES, TASKS, canonical_task


def test_tasks_have_aliases():
    assert canonical_task("Text_Embedding") == "text-embedding"
    assert {canonical_task(name) for name in ALIASES} <= TASKS
    assert InferenceRequest("embeddings", inputs=["x"]).task == "text-embedding"
    with pytest.raises(BadRequest, match="Did you mean 'translation'"):
        canonical_task("translatoin")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("task", {"task": "dance", "inputs": "x"}),
        ("task", {"task": 7, "inputs": "x"}),
        ("inputs", {"task": "generation"}),
        ("inputs", {"task": "generation", "inputs": "x", "messages": []}),
        ("model", {"task": "generation", "inputs": "x", "model": ""}),
        ("parameters", {"task": "generation", "inputs": "x", "parameters": [1]}),
    ],
)
def test_a_bad_field_is_named(field, arguments):
    with pytest.raises(BadRequest) as caught:
        InferenceRequest(**arguments)
    assert caught.value.param == field


def test_ids_are_unique():
    assert len({InferenceRequest("generation", inputs="x").id for _ in range(100)}) == 100
