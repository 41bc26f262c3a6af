"""The names of the models in what a server answers, whichever way it lists them."""

from typing import Any

MOST_MODELS = 10_000
LONGEST_NAME = 512


def models_in(body: Any) -> list[str]:
    """Names of the models, in the order they come; empty where the body lists none.

    Known shapes: OpenAI's ``{"data": [{"id"}]}``, Ollama's ``{"models": [{"name"}]}``, and the
    ``{"model_id"}`` of TGI and TEI. A name that has signs which cannot be printed is left out: nobody can
    type it, and a log or a terminal would obey it.
    """
    if isinstance(body, dict):
        if isinstance(name := body.get("model_id"), str):
            return [name] if _is_name(name) else []
        body = body.get("data") or body.get("models")
    names = []
    for item in body[:MOST_MODELS] if isinstance(body, list) else ():
        name = (item.get("id") or item.get("name")) if isinstance(item, dict) else None
        if isinstance(name, str) and _is_name(name):
            # Gemini writes the collection before the name, and takes it without.
            names.append(name.removeprefix("models/"))
    return list(dict.fromkeys(names))


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()
