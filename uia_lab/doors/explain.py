"""``POST /explain``: who would serve a request now, and why not the others; nothing runs."""

from collections.abc import Mapping
from typing import ClassVar

from uia_lab.access.principals import READ
from uia_lab.dialects.fields import Fields
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.doors.base import Door


class ExplainDoor(Door):
    """``POST /explain {task?, model?, preferred_types?, required_protocols?, backend_id?}``."""

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"POST": (READ,)}

    def post(self) -> None:
        """Who would serve a request now, and why not the others; nothing runs."""
        fields = Fields(self.json_body())
        decision = self.manager.explain(
            fields.text("task") or TEXT_GENERATION,
            fields.text("model"),
            fields.strings("preferred_types"),
            fields.strings("required_protocols"),
            fields.text("backend_id"),
        )
        self.answer(decision.to_dict())
