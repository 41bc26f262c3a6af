"""Commands that backends run on this machine, and what of the environment they get to see.

Who may register a backend is the doors' question; they ask for an administrator, which Jupyter's own user is.
"""

import re
from collections.abc import Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest

MOST_ARGUMENTS = 256
LONGEST = 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def command_of(value: Any, param: str) -> tuple[str, ...]:
    """A command as the list of its arguments; no shell ever reads it.

    Args:
        value: What was given.
        param: The field, for the error.

    Raises:
        BadRequest: It is no list of strings, or one that no program can be started with.
    """
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
        raise BadRequest(
            f"{param} must be a list of strings, the program first; no shell reads it", param=param
        )
    if len(value) > MOST_ARGUMENTS or not all(
        isinstance(item, str) and len(item) <= LONGEST and "\0" not in item for item in value
    ):
        raise BadRequest(
            f"{param} must be at most {MOST_ARGUMENTS} strings of at most {LONGEST} characters", param=param
        )
    if not value[0].strip():
        raise BadRequest(f"{param}: the program is missing", param=param)
    return tuple(value)


def variables_of(value: Any, param: str) -> dict[str, str]:
    """Variables of the environment that a command gets besides the harmless ones.

    Args:
        value: What was given; None for none.
        param: The field, for the error.

    Raises:
        BadRequest: No object of strings, or one that seems to hold a secret, which would be kept as it is.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(text, str) and "\0" not in text for name, text in value.items()
    ):
        raise BadRequest(f"{param} must be an object of strings", param=param)
    for name in value:
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{param}: {name[:64]!r} is no name of a variable", param=param)
        if _SECRET.search(name):
            raise BadRequest(
                f"{param} must not hold {name}: it would be kept as it is; name the secret in api_key_env, "
                "and the command finds it in its environment under that name",
                param=f"{param}.{name}",
            )
    return dict(value)
