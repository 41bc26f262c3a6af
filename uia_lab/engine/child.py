"""What every process that this one starts for a model has in common."""

import os
import signal
from pathlib import Path


def environment() -> dict[str, str]:
    """The child's environment: the server's without its secrets, and without a way to the hub."""
    values = {
        name: value for name, value in os.environ.items() if not name.upper().endswith(("_API_KEY", "_TOKEN"))
    }
    values["HF_HUB_OFFLINE"] = "1"
    values["TOKENIZERS_PARALLELISM"] = "false"
    root = Path(__file__).parents[2]
    if root.name != "site-packages":
        # A checkout that is not installed: found by the server through its own sys.path only.
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), values.get("PYTHONPATH", "")]))
    return values


def ending(code: int) -> str:
    """How a process ended, in words, by its return code."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
