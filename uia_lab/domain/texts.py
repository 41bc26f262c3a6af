"""Texts that somebody else wrote, before they reach a log, a table or a terminal."""


def one_line(text: str) -> str:
    """The text without what moves a cursor or begins a line: each run of blanks is one space.

    Args:
        text: Anything, of any length.
    """
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(sign if sign.isprintable() else "�" for sign in joined)
