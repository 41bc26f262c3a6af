"""The prompts of a batch: texts, or rows that a template makes texts of."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion

MOST = 100_000


def prompts_of(given: Any, template: str | None) -> tuple[list[str], Any]:
    """The prompts in order, and the DataFrame they come from, if they do.

    Args:
        given: Texts, mappings, or a DataFrame.
        template: Text with ``{column}`` for columns or keys, or ``{prompt}`` for a text; rows need one.

    Raises:
        BadRequest: No prompts, too many, or a template that names what is not there.
    """
    pandas = sys.modules.get("pandas")
    frame = given if pandas is not None and isinstance(given, pandas.DataFrame) else None
    rows: Iterable[Any]
    if frame is not None:
        rows = frame.to_dict("records")
    elif isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise BadRequest(
            "prompts must be several: a list of texts, of mappings, or a DataFrame", param="prompts"
        )
    else:
        rows = given
    made = []
    for number, row in enumerate(rows):
        if number >= MOST:
            raise BadRequest(f"more than {MOST:,} prompts; give them in several batches", param="prompts")
        made.append(_prompt(row, template, number))
    if not made:
        raise BadRequest("there are no prompts", param="prompts")
    return made, frame


def _prompt(row: Any, template: str | None, number: int) -> str:
    if isinstance(row, Mapping):
        if template is None:
            raise BadRequest(
                "rows need a template that makes a prompt of them, such as template='Summarize: {text}'",
                param="template",
            )
        values = {str(name): value for name, value in row.items()}
    elif isinstance(row, str):
        values = {"prompt": row}
    else:
        raise BadRequest(f"prompt {number} must be a text or a mapping, not {row!r:.80}", param="prompts")
    if template is None:
        text = row
    else:
        try:
            text = template.format_map(values)
        except KeyError as error:
            known = suggestion(str(error.args[0]), values)
            raise BadRequest(
                f"the template names {error}, which row {number} lacks.{known}", param="template"
            ) from None
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise BadRequest(
                f"the template does not work for row {number}: {error}", param="template"
            ) from None
    if not text.strip():
        raise BadRequest(f"prompt {number} is empty", param="prompts")
    return str(text)
