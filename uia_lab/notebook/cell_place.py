"""A place below the running cell, which can be filled anew later and from other threads."""

import uuid
from typing import Any


class CellPlace:
    """An output of the running cell.

    Args:
        bundle: What it shows at first, by MIME type.
    """

    def __init__(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        self._display_id = uuid.uuid4().hex
        display(bundle, raw=True, display_id=self._display_id)

    def put(self, bundle: dict[str, Any]) -> None:
        """Shows something else in its place, on behalf of whichever cell runs then.

        A page finds the place by its id; who executes notebooks without a page hears the running cell only.
        """
        from IPython.display import display

        display(bundle, raw=True, display_id=self._display_id, update=True)
