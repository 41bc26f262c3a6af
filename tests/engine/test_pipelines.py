"""Each task on a tiny model built here, against the model itself."""

import base64
import io
import math
import wave

import pytest

from tests.engine import tiny
from uia_lab.domain.errors import BadRequest, ContextTooLong, InferenceError, Unsupported
from uia_lab.engine.frames import Done, Failed

TEXTS = ["the cat sat", "a dog ran over the red house and under the blue river", "the river"]


def logits(parts, *texts):
    import torch

    model, tokenizer = parts
    with torch.inference_mode():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0]


@pytest.fixture(scope="module")
def classifier(pipeline):
    return pipeline("text-classification", tiny.bert, "BertForSequenceClassification")


def test_text_classification(asked, classifier):
    engine, parts = classifier
    results = asked.result(engine, "text-classification", TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        scores = logits(parts, text).softmax(-1)
        (best,) = result
        assert best["label"] == parts[0].config.id2label[int(scores.argmax())]
        assert best["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    both = asked.result(engine, "text-classification", TEXTS[0], top_k=2)
    assert [item["label"] for item in both] == sorted(
        ("NEGATIVE", "POSITIVE"), key=lambda n: n != both[0]["label"]
    )
    assert sum(item["score"] for item in both) == pytest.approx(1)


@pytest.mark.parametrize(
    ("inputs", "parameters", "error", "param"),
    [
        ("", {}, BadRequest, "inputs"),
        ([], {}, BadRequest, "inputs"),
        ([TEXTS[0], 3], {}, BadRequest, "inputs"),
        ({"text": "a"}, {}, BadRequest, "inputs"),
        ("cat " * 200, {}, ContextTooLong, "inputs"),
        ("cat", {"top_k": "all"}, BadRequest, "top_k"),
        ("cat", {"top_k": True}, BadRequest, "top_k"),
        ("cat", {"temperature": 1}, Unsupported, "temperature"),
        ("cat", {"function_to_apply": "os.system"}, BadRequest, "function_to_apply"),
    ],
)
def test_what_cannot_be_done_says_so(asked, classifier, inputs, parameters, error, param):
    with pytest.raises(InferenceError) as caught:
        asked.start(classifier[0], "text-classification", inputs, **parameters)
    assert type(caught.value) is error
    assert caught.value.param == param


def test_a_model_that_raises_fails_its_request_only(asked, classifier, monkeypatch):
    engine, _ = classifier
    with pytest.raises(Unsupported):
        asked.start(engine, "summarization", "a")
    whole = engine._task.run

    def run(items, settings):
        if any("dog" in item.value for item in items):
            raise ZeroDivisionError("no dogs")
        return whole(items, settings)

    monkeypatch.setattr(engine._task, "run", run)
    rids = [asked.start(engine, "text-classification", text) for text in TEXTS]
    ends = [asked.wait(rid)[-1] for rid in rids]
    assert [type(end) for end in ends] == [Done, Failed, Done]
    assert "no dogs" in ends[1].message
    assert engine.stats() == {"running": 0.0, "waiting": 0.0}


def test_token_classification(asked, pipeline):
    engine, parts = pipeline(
        "token-classification", tiny.bert, "BertForTokenClassification", ("O", "B-ANIMAL", "B-PLACE")
    )
    for text in TEXTS:
        scores = logits(parts, text).softmax(-1)
        expected = [
            parts[0].config.id2label[int(row.argmax())] for row in scores[1:-1] if int(row.argmax()) != 0
        ]
        found = asked.result(engine, "token-classification", text)
        assert [item["entity"] for item in found] == expected
        assert all(text[item["start"] : item["end"]].strip("#") for item in found)
    grouped = asked.result(engine, "token-classification", TEXTS, aggregation_strategy="simple")
    assert len(grouped) == 3
    assert all("entity_group" in item for group in grouped for item in group)


def test_fill_mask(asked, pipeline):
    engine, parts = pipeline("fill-mask", tiny.bert, "BertForMaskedLM")
    text = "the [MASK] sat"
    scores = logits(parts, text).softmax(-1)
    place = parts[1](text).input_ids.index(parts[1].mask_token_id)
    found = asked.result(engine, "fill-mask", text, top_k=3)
    best = scores[place].topk(3)
    assert [item["token"] for item in found] == best.indices.tolist()
    assert [item["score"] for item in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    with pytest.raises(BadRequest, match="no mask"):
        asked.start(engine, "fill-mask", "the cat sat")


def test_zero_shot_classification(asked, pipeline):
    engine, parts = pipeline(
        "zero-shot-classification", tiny.bert, "BertForSequenceClassification",
        ("contradiction", "neutral", "entailment"),
    )  # fmt: skip
    labels = ["cat", "river"]
    found = asked.result(engine, "zero-shot-classification", TEXTS, candidate_labels=labels)
    for text, result in zip(TEXTS, found, strict=True):
        entail = {label: float(logits(parts, text, f"This example is {label}.")[2]) for label in labels}
        total = sum(math.exp(value) for value in entail.values())
        assert result["labels"] == sorted(labels, key=entail.get, reverse=True)
        assert result["scores"][0] == pytest.approx(math.exp(max(entail.values())) / total, abs=1e-4)
    with pytest.raises(BadRequest, match="candidate_labels is missing"):
        asked.start(engine, "zero-shot-classification", "a cat")
    with pytest.raises(BadRequest):
        asked.start(
            engine, "zero-shot-classification", "a", candidate_labels=["x"], hypothesis_template="{0.x}"
        )


def test_question_answering(asked, pipeline):
    import torch

    engine, (model, tokenizer) = pipeline("question-answering", tiny.bert, "BertForQuestionAnswering")
    question, context = "red house", TEXTS[1]
    found = asked.result(
        engine, "question-answering", {"question": question, "context": context}, max_answer_len=4
    )
    assert context[found["start"] : found["end"]] == found["answer"]
    batch = tokenizer(question, context, return_tensors="pt")
    inside = [place for place, part in enumerate(batch.sequence_ids(0)) if part == 1]
    with torch.inference_mode():
        output = model(**batch)
    begin, end = output.start_logits[0][inside].softmax(0), output.end_logits[0][inside].softmax(0)
    best = max(
        (float(begin[i] * end[j]), i, j)
        for i in range(len(inside))
        for j in range(i, min(i + 4, len(inside)))
    )
    assert found["score"] == pytest.approx(best[0], abs=1e-5)
    several = asked.result(
        engine, "question-answering", [{"question": question, "context": context}] * 2, top_k=3
    )
    assert [len(answers) for answers in several] == [3, 3]
    with pytest.raises(BadRequest):
        asked.start(engine, "question-answering", {"question": "what?"})


@pytest.mark.parametrize("task", ["summarization", "translation"])
def test_sequence_tasks(asked, pipeline, task):
    import torch

    engine, (model, tokenizer) = pipeline(task, tiny.t5)
    options = {"src_lang": "en", "tgt_lang": "de"} if task == "translation" else {}
    prefix = "translate English to German: " if task == "translation" else "summarize: "
    found = asked.result(engine, task, TEXTS, max_new_tokens=8, **options)
    for text, result in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            ids = model.generate(
                **tokenizer(prefix + text, return_tensors="pt", return_token_type_ids=False),
                max_new_tokens=8, do_sample=False,
            )  # fmt: skip
        name = "translation_text" if task == "translation" else "summary_text"
        assert result == {name: tokenizer.decode(ids[0], skip_special_tokens=True)}
    with pytest.raises(BadRequest):
        asked.start(engine, task, "a", max_new_tokens=4, min_new_tokens=8)


def test_translation_refuses_a_language_the_model_does_not_know(asked, pipeline):
    engine, _ = pipeline("translation", tiny.t5)
    with pytest.raises(BadRequest, match="does not know the language"):
        asked.start(engine, "translation", "a cat", src_lang="en", tgt_lang="xx_XX")


def tone(rate=16000, seconds=0.25):
    return [0.3 * math.sin(2 * math.pi * 440 * k / rate) for k in range(int(rate * seconds))]


def test_audio_transcription(asked, pipeline):
    import torch

    engine, (model, tokenizer) = pipeline("audio-transcription", tiny.wav2vec2)
    samples = tone()
    values = torch.tensor([samples])
    values = (values - values.mean()) / torch.sqrt(values.var(correction=0) + 1e-7)
    with torch.inference_mode():
        expected = tokenizer.decode(model(values).logits[0].argmax(-1))
    by_list = asked.result(engine, "audio-transcription", samples, sampling_rate=16000)
    assert by_list == {"text": expected}
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 4, 16000, 0, "NONE", ""))
        out.writeframes(b"".join(int(v * (1 << 31)).to_bytes(4, "little", signed=True) for v in samples))
    text = base64.b64encode(file.getvalue()).decode()
    assert asked.result(engine, "audio-transcription", text) == {"text": expected}
    both = asked.result(engine, "audio-transcription", [text, {"array": tone(8000), "sampling_rate": 8000}])
    assert both[0] == {"text": expected}
    for wrong in ("/etc/passwd", "https://example.org/a.wav", [1.0] * 10, {"array": "x"}):
        with pytest.raises(BadRequest):
            asked.start(engine, "audio-transcription", wrong, sampling_rate=16000)


def test_audio_transcription_by_an_encoder_and_a_decoder(asked, pipeline):
    import torch
    from transformers import WhisperFeatureExtractor

    engine, (model, tokenizer) = pipeline("audio-transcription", tiny.whisper)
    samples = tone(seconds=0.9)
    features = WhisperFeatureExtractor(feature_size=8, chunk_length=1)(
        samples, sampling_rate=16000, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = tokenizer.decode(model.generate(features.input_features)[0], skip_special_tokens=True)
    assert expected
    assert asked.result(engine, "audio-transcription", samples, sampling_rate=16000) == {"text": expected}


def test_image_classification(asked, pipeline):
    image = pytest.importorskip("PIL.Image")
    engine, _ = pipeline("image-classification", tiny.vit)
    pixels = [[[(x * 16) % 256, (y * 16) % 256, 90] for x in range(16)] for y in range(16)]
    by_pixels = asked.result(engine, "image-classification", pixels, top_k=3)
    assert sum(item["score"] for item in by_pixels) == pytest.approx(1, abs=1e-5)
    file = io.BytesIO()
    picture = image.new("RGB", (16, 16))
    picture.putdata([tuple(pixel) for row in pixels for pixel in row])
    picture.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    both = asked.result(engine, "image-classification", [text, f"data:image/png;base64,{text}"], top_k=3)
    for result in both:
        assert [item["label"] for item in result] == [item["label"] for item in by_pixels]
    for wrong in ("/etc/passwd", "https://example.org/a.png", base64.b64encode(b"no image").decode()):
        with pytest.raises(BadRequest):
            asked.start(engine, "image-classification", wrong)


def test_a_model_of_another_kind_is_refused(pipeline):
    """Its head would be random numbers, and its answers too."""
    from uia_lab.domain.errors import BackendFailed

    with pytest.raises(BackendFailed, match="another kind of model"):
        pipeline("text-classification", tiny.bert, "BertForMaskedLM")
