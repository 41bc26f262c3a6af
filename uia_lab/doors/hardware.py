"""``GET /hardware``: what this machine has, and what is missing and why."""

from uia_lab.doors.base import Door


class HardwareDoor(Door):
    """``GET /hardware``."""

    async def get(self) -> None:
        """Cores, memory, devices with their number formats, and what is missing and why."""
        self.answer((await self.service.models.hardware()).to_dict())
