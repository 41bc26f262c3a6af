"""Kernels of this server know where it is and how to come in; its other children do not."""

import os
from collections.abc import Mapping
from typing import Any

URL, TOKEN = "UIA_LAB_URL", "UIA_LAB_TOKEN"


class KernelAccess:
    """Puts an address and a key into the environment of each kernel that starts, and nowhere else.

    The server's own environment would be inherited by terminals and everything else that it starts.

    Args:
        kernel_manager: Jupyter's manager of kernels.
        url: Where the doors are.
        key: A key that opens them.
    """

    def __init__(self, kernel_manager: Any, url: str, key: str) -> None:
        self._kernel_manager = kernel_manager
        self._variables = {URL: url, TOKEN: key}
        self._start = kernel_manager.start_kernel
        kernel_manager.start_kernel = self._start_kernel

    def close(self) -> None:
        """Kernels that start from now on know nothing."""
        # Somebody else may have wrapped it meanwhile; then theirs stays, and ours adds nothing any more.
        self._variables = {}
        if self._kernel_manager.__dict__.get("start_kernel") == self._start_kernel:
            del self._kernel_manager.start_kernel

    async def _start_kernel(self, *args: Any, env: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        given = dict(os.environ if env is None else env)
        return await self._start(*args, env=given | self._variables, **kwargs)
