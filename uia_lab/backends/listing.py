"""The names of the models in what a server answers, whichever way it lists them."""

from typing import Any

MOST_MODELS = 10_000
LONGEST_NAME = 512


def models_in(body: Any) -> list[str]:
    """Names of the models, in the order they come; empty where the body lists none.

    Known shapes: OpenAI's ``{"data": [{"id"}]}``, Ollama's ``{"models": [{"name"}]}``, and the
    ``{"model_id"}`` of TGI and TEI.
    """
    if isinstance(body, dict):
        if isinstance(body.get("model_id"), str):
            return [body["model_id"]]
        body = body.get("data") or body.get("models")
    names = []
    for item in body[:MOST_MODELS] if isinstance(body, list) else ():
        name = (item.get("id") or item.get("name")) if isinstance(item, dict) else None
        if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME:
            # Gemini writes the collection before the name, and takes it without.
            names.append(name.removeprefix("models/"))
    return list(dict.fromkeys(names))
