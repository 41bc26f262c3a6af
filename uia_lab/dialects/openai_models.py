"""``GET /v1/models``: the models that can be asked for now."""

from collections.abc import Iterable, Mapping
from typing import Any

from uia_lab.domain.backends import BackendInfo
from uia_lab.domain.errors import ModelNotFound, suggestion


def owners(backends: Iterable[BackendInfo]) -> dict[str, list[str]]:
    """Ids of the routable backends that serve each model."""
    found: dict[str, list[str]] = {}
    for backend in backends:
        if backend.routable and backend.enabled:
            for model in backend.models:
                found.setdefault(model, []).append(backend.backend_id)
    return found


def model_object(name: str, backend_ids: Iterable[str], created: int) -> dict[str, Any]:
    """One model.

    Args:
        name: Its name.
        backend_ids: Who serves it.
        created: Unix time given as its creation.
    """
    return {"id": name, "object": "model", "created": created, "owned_by": ",".join(sorted(backend_ids))}


def model_list(models: Mapping[str, Iterable[str]], created: int) -> dict[str, Any]:
    """All models, by name."""
    return {"object": "list", "data": [model_object(name, models[name], created) for name in sorted(models)]}


def one_model(models: Mapping[str, Iterable[str]], name: str, created: int) -> dict[str, Any]:
    """One model by its name.

    Raises:
        ModelNotFound: No routable backend serves it; the message lists what there is.
    """
    if name not in models:
        raise ModelNotFound(f"the model {name!r} does not exist.{suggestion(name, models)}", param="model")
    return model_object(name, models[name], created)
