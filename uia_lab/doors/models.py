"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

import time

from uia_lab.dialects.openai_models import model_list, one_model, owners
from uia_lab.doors.base import Door

# Models have no date of their own here; clients only need the field to be there and not to change.
_SINCE = int(time.time())


class ModelsDoor(Door):
    """The models that routable backends serve now."""

    def get(self) -> None:
        """All of them."""
        self.answer(model_list(owners(self.manager.list_backends()), _SINCE))


class ModelDoor(Door):
    """One model."""

    def get(self, name: str) -> None:
        """The model, or 404 ``model_not_found`` with what there is."""
        self.answer(one_model(owners(self.manager.list_backends()), name, _SINCE))
