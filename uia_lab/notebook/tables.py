"""Tables as text and as plain HTML, for consoles and saved notebooks."""

from collections.abc import Sequence
from html import escape


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An aligned table of plain text.

    Args:
        title: The line above it.
        columns: Names of the columns.
        rows: Cells, as many as there are columns.
        left: How many columns, from the first, are words; the others are numbers, aligned at the right.
    """
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    aligned = (
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join([title, "", *aligned])


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A plain HTML table, readable without any style sheet; arguments as for :func:`text_table`."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{"left" if column < left else "right"}">{escape(cell)}</{tag}>'
            for column, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f"<table><caption>{escape(title)}</caption>"
        f"<thead><tr>{line(columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    )
