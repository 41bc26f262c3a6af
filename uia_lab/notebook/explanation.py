"""A decision with a face: who could serve, who would, and why not the others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from uia_lab.notebook.tables import html_table, text_table

COLUMNS = ("backend", "verdict", "why", "score")
WORDS = 3


class Explanation(Mapping[str, Any]):
    """A decision as :meth:`uia_lab.routing.decision.Decision.to_dict` gives it, readable in a notebook.

    Args:
        decision: The decision.
        live: Makes the live view of a notebook from ``{"decision": ...}``.
    """

    def __init__(
        self, decision: Mapping[str, Any], live: Callable[[dict[str, Any]], Any] | None = None
    ) -> None:
        self._decision = dict(decision)
        self._live = live

    @property
    def winner(self) -> str | None:
        """Id of the backend that serves, or None."""
        winner: str | None = self._decision.get("winner")
        return winner

    def __getitem__(self, name: str) -> Any:
        return self._decision[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decision)

    def __len__(self) -> int:
        return len(self._decision)

    def __repr__(self) -> str:
        text: str = still({"decision": self._decision})["text/plain"]
        return text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from uia_lab.notebook.presenters import in_kernel

        shown = {"decision": self._decision}
        if self._live is not None and in_kernel():
            bundle: dict[str, Any] = self._live(shown)._repr_mimebundle_()
            return bundle
        return still(shown)


def still(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The text and HTML forms that a saved notebook keeps.

    Args:
        shown: A request as ``GET /requests/{id}`` tells it, or a decision under ``decision``.
    """
    decision = shown.get("decision") or {}
    if not decision:
        line = "no decision to show; lab.explain('text-generation') makes one"
        return {"text/plain": line, "text/html": f"<p>{line}</p>"}
    title, rows = _headline(decision), _rows(decision)
    return {
        "text/plain": text_table(title, COLUMNS, rows, WORDS),
        "text/html": html_table(title, COLUMNS, rows, WORDS),
    }


def _headline(decision: Mapping[str, Any]) -> str:
    winner, count = decision.get("winner"), decision.get("eligible", 0)
    asked = f"{decision.get('task', '?')}, model {decision.get('model') or 'any'}"
    if winner is None:
        return f"nobody can serve {asked} now"
    return f"{winner} serves {asked} · {decision.get('strategy', '?')} · {count} could"


def _rows(decision: Mapping[str, Any]) -> list[list[str]]:
    winner = decision.get("winner")

    def verdict(candidate: Mapping[str, Any]) -> str:
        if candidate.get("backend_id") == winner:
            return "serves"
        return "could serve" if candidate.get("kept") else "cannot"

    def score(candidate: Mapping[str, Any]) -> str:
        value = candidate.get("score")
        return "-" if value is None else f"{value:.3g}"

    return [
        [str(item.get("backend_id")), verdict(item), str(item.get("reason") or "-"), score(item)]
        for item in decision.get("candidates") or ()
    ]
