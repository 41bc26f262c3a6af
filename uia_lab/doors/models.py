"""``GET /v1/models`` and ``GET /v1/models/{id}``, in the dialect of whoever asks."""

import time
from typing import Any, ClassVar

from uia_lab.access.principals import INFER, READ
from uia_lab.dialects.anthropic import models as anthropic_models
from uia_lab.dialects.anthropic.errors import envelope as anthropic_envelope
from uia_lab.dialects.openai_models import model_list, one_model, owners
from uia_lab.doors.base import Door, Fault

# Models have no date of their own here; clients only need the field to be there and not to change.
_SINCE = int(time.time())


class _Names(Door):
    # A client that may infer asks what there is before it does.
    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)

    @property
    def for_anthropic(self) -> bool:
        """Whether the client is one of Anthropic's: all of them name the version they speak."""
        return "anthropic-version" in self.request.headers

    def envelope(self, fault: Fault) -> Any:
        """The body of an error answer."""
        if self.for_anthropic:
            return anthropic_envelope(fault.status, fault.message, self.request_id)
        return super().envelope(fault)

    def names(self) -> dict[str, list[str]]:
        """What can stand in a request's ``model``, each with who it belongs to."""
        # An alias comes before a model of the same name, as it does when a request is routed.
        found = owners(self.manager.list_backends()) | {name: ["alias"] for name in self.manager.aliases}
        permits = self.service.limits.permits
        return {name: by for name, by in found.items() if permits(self.principal.name, name)}


class ModelsDoor(_Names):
    """``GET /v1/models``."""

    def get(self) -> None:
        """The models that routable backends serve now, and the aliases."""
        names = self.names()
        if self.for_anthropic:
            self.answer(anthropic_models.model_list(names, _SINCE))
        else:
            self.answer(model_list(names, _SINCE))


class ModelDoor(_Names):
    """``GET /v1/models/{id}``."""

    def get(self, name: str) -> None:
        """The model or alias, or 404 ``model_not_found`` with what there is."""
        model = one_model(self.names(), name, _SINCE)
        self.answer(anthropic_models.model_object(name, _SINCE) if self.for_anthropic else model)
