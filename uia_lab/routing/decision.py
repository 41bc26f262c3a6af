"""Why a backend was chosen, for a person to read."""

from typing import Any

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """One backend as a decision saw it.

    Args:
        backend_id: Its id.
        kept: Whether it could have served.
        reason: Why not, or why it only waits; empty when it could.
        score: What the strategy compared (its own scale), if it did.
        tier: 0 for the best preferred type.
    """

    backend_id: str
    kept: bool
    reason: str = ""
    score: float | None = None
    tier: int = 0


class Decision(msgspec.Struct, frozen=True):
    """One choice.

    Args:
        strategy: Name of the strategy.
        winner: Id of the backend chosen, or None.
        candidates: Those compared; in a preview by ``explain`` every registered one.
        eligible: How many could have served.
        task: The task asked for.
        model: The model asked for or the default; the winner's own where it has just one.
        lower_is_better: How to read the scores.
    """

    strategy: str
    winner: str | None
    candidates: tuple[Candidate, ...] = ()
    eligible: int = 0
    task: str = ""
    model: str | None = None
    lower_is_better: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain
