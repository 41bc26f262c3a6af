"""Task names: the canonical ones and what people call them."""

from uia_lab.domain.errors import BadRequest, suggestion

TEXT_GENERATION = "text-generation"
TEXT_EMBEDDING = "text-embedding"
TEXT_CLASSIFICATION = "text-classification"
AUDIO_TRANSCRIPTION = "audio-transcription"
IMAGE_GENERATION = "image-generation"

TASKS = frozenset(
    {
        TEXT_GENERATION,
        TEXT_EMBEDDING,
        TEXT_CLASSIFICATION,
        "summarization",
        "translation",
        "question-answering",
        "fill-mask",
        "token-classification",
        "zero-shot-classification",
        "image-classification",
        AUDIO_TRANSCRIPTION,
        IMAGE_GENERATION,
    }
)

ALIASES = {
    "generation": TEXT_GENERATION,
    "generate": TEXT_GENERATION,
    "chat": TEXT_GENERATION,
    "chat-completion": TEXT_GENERATION,
    "completion": TEXT_GENERATION,
    "conversational": TEXT_GENERATION,
    "text2text-generation": TEXT_GENERATION,
    "embedding": TEXT_EMBEDDING,
    "embeddings": TEXT_EMBEDDING,
    "feature-extraction": TEXT_EMBEDDING,
    "sentence-embedding": TEXT_EMBEDDING,
    "sentence-similarity": TEXT_EMBEDDING,
    "classification": TEXT_CLASSIFICATION,
    "sentiment-analysis": TEXT_CLASSIFICATION,
    "ner": "token-classification",
    "zero-shot": "zero-shot-classification",
    "automatic-speech-recognition": "audio-transcription",
    "speech-recognition": "audio-transcription",
    "transcription": "audio-transcription",
    "text-to-image": "image-generation",
}


def canonical_task(name: str) -> str:
    """The canonical name of a task given by that name or an alias.

    Args:
        name: A task name; case and underscores do not matter.

    Raises:
        BadRequest: No such task; the message lists the known ones.
    """
    if not isinstance(name, str):
        raise BadRequest(f"task must be a string, not {type(name).__name__}", param="task")
    task = name.strip().lower().replace("_", "-")
    task = ALIASES.get(task, task)
    if task not in TASKS:
        raise BadRequest(f"unknown task {name!r}.{suggestion(name, TASKS)}", param="task")
    return task
