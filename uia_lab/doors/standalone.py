"""The mount without Jupyter: our keys are the only identity."""

from uia_lab.access.principals import Principal
from uia_lab.doors.base import Door


class Standalone(Door):
    """Knows nobody but the holders of keys."""

    async def identify(self) -> Principal | None:
        """Nobody."""
        return None


def standalone_door(door: type[Door]) -> type[Door]:
    """A door as it stands without Jupyter."""
    return type(door.__name__, (Standalone, door), {"__doc__": door.__doc__, "__module__": door.__module__})
