"""``{python}`` in a prompt."""

import re
from collections.abc import Mapping
from typing import Any

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


class ExpansionError(ValueError):
    """An expression of the prompt does not work; the message is one line."""


def expand(text: str, namespace: Mapping[str, Any]) -> str:
    """The text with each ``{expression}`` replaced by its value.

    Braces that hold no Python expression stay as they are, so that code and JSON pass unharmed; ``{{``
    and ``}}`` stand for single braces.

    Args:
        text: The prompt.
        namespace: Where names are looked up: the user's own.

    Raises:
        ExpansionError: An expression that raises, such as a name that does not exist.
    """

    def value(match: re.Match[str]) -> str:
        expression = match[1]
        if expression is None:
            return match[0][0]
        try:
            code = compile(expression.strip(), "<prompt>", "eval")
        except (SyntaxError, ValueError):
            return match[0]
        try:
            return str(eval(code, dict(namespace)))  # noqa: S307  # the user's own code in the user's own kernel
        except Exception as error:  # noqa: BLE001  # it is the user's code: anything may come out of it
            cause = f"{type(error).__name__}: {error}"
            raise ExpansionError(
                f"{{{expression}}} in the prompt: {cause} (write {{{{ }}}} for braces)"
            ) from None

    return _FIELD.sub(value, text)
