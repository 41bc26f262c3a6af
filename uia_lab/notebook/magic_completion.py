"""Tab completion of ``%uia`` and ``%%uia``: commands, options, models and backends."""

import time
from collections.abc import Callable, Iterable

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from uia_lab.domain.backends import BackendType
from uia_lab.notebook.connect import opened
from uia_lab.notebook.magic_options import COMMANDS, option_names, parser
from uia_lab.notebook.transport import Transport

FRESH_S = 5.0
WAIT_S = 1.0
_PRIORITY = 200
_VALUES = {
    "--model": "models",
    "-m": "models",
    "--backend": "backends",
    "-b": "backends",
    "--prefer": "types",
    "-p": "types",
}
_WITHOUT_VALUE = {"--no-stream"}


class Names:
    """Names of models and backends, as the Lab that is open knows them; asked for anew after FRESH_S.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, list[str]]] = {}

    def __call__(self, kind: str) -> list[str]:
        """The names of a kind; what is known where nobody answers within WAIT_S, and nothing opens a Lab."""
        if kind == "types":
            return [item.value for item in BackendType]
        asked_at, names = self._known.get(kind, (float("-inf"), []))
        lab = opened()
        if lab is None or self._clock() - asked_at < FRESH_S:
            return names
        try:
            asked = lab._async.spawn(_asked, lab._transport, kind)  # noqa: SLF001 - a part of the same face
            try:
                names = asked.result(WAIT_S)
            finally:
                asked.cancel()
        except Exception:  # noqa: BLE001, S110  # whatever it is, a completer must not break the typing
            pass
        self._known[kind] = (self._clock(), names)
        return names


async def _asked(transport: Transport, kind: str) -> list[str]:
    if kind == "models":
        return await transport.models()
    return [str(item["id"]) for item in (await transport.backends())["backends"]]


def completer(names: Callable[[str], Iterable[str]]) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """The matcher to put among IPython's.

    Args:
        names: Gives the ``models``, ``backends`` and ``types``.
    """
    options = option_names(parser())

    @context_matcher(identifier="uia_lab", priority=_PRIORITY)  # type: ignore[untyped-decorator]
    def uia_matcher(context: CompletionContext) -> SimpleMatcherResult:
        line = context.text_until_cursor
        words = line.split()
        cell = bool(words) and words[0] == "%%uia" and context.cursor_line == 0
        if not words or not (cell or words[0] == "%uia") or line.rstrip() == words[0] == line:
            return {"completions": [], "suppress": False}
        typed = "" if line[-1].isspace() else words.pop()
        found = _candidates(words[1:], typed, options, names, cell=cell)
        # IPython replaces only the end of a word that has a colon or a comma in it.
        kept = typed[: len(typed) - len(context.token)] if typed.endswith(context.token) else ""
        completions = [
            SimpleCompletion(text[len(kept) :], type="uia") for text in found if text.startswith(typed)
        ]
        return {"completions": completions, "suppress": True, "ordered": True}

    matcher: Callable[[CompletionContext], SimpleMatcherResult] = uia_matcher
    return matcher


def _candidates(
    before: list[str],
    typed: str,
    options: list[str],
    names: Callable[[str], Iterable[str]],
    *,
    cell: bool,
) -> list[str]:
    last = before[-1] if before else ""
    if last in _VALUES:
        first, comma, _ = typed.rpartition(",")
        return [f"{first}{comma}{name}" for name in names(_VALUES[last])]
    if last.startswith("-") and last not in _WITHOUT_VALUE:
        return []
    if typed.startswith("-"):
        return [name for name in options if name not in before]
    if cell:
        return [] if typed else [name for name in options if name not in before]
    if not before:
        return list(COMMANDS)
    if before == ["use"]:
        return ["default", *names("models")]
    return list(names("models")) if before == ["explain"] else []
