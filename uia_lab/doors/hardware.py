"""``GET /hardware``: what this machine has, and what is missing and why."""

from uia_lab.doors.base import Door


class HardwareDoor(Door):
    """Cores, memory, devices with their number formats."""

    async def get(self) -> None:
        """The report."""
        self.answer((await self.service.models.hardware()).to_dict())
