"""What is remembered of a backend's traffic: its figures, its speed and its luck."""

import math
from dataclasses import dataclass, field

from uia_lab.domain.events import Usage
from uia_lab.routing.figures import Ending, Figures

TAU_S = 10.0
RISE = 0.25
SUCCESS_TAU_S = 30.0
SUCCESS_FLOOR = 0.05
MODELS = 64
ESTIMATES = 256
OTHER = "other"


class PeakEwma:
    """A latency estimate that rises quickly and comes down slowly (after Finagle's peak EWMA).

    A sample above the value takes it up by RISE of the difference; below,
    ``value = value * w + sample * (1 - w)`` with ``w = exp(-dt / tau)``. Finagle rises the whole way at once:
    with the long answers of language models one of them then hides a good backend for seconds.
    """

    __slots__ = ("at", "value")

    def __init__(self, sample: float, now: float) -> None:
        self.value = sample
        self.at = now

    def add(self, sample: float, now: float) -> None:
        """Takes a sample in seconds, observed at ``now``."""
        if sample >= self.value:
            self.value += RISE * (sample - self.value)
        else:
            weight = math.exp(-max(0.0, now - self.at) / TAU_S)
            self.value = self.value * weight + sample * (1 - weight)
        self.at = now

    def read(self, now: float, rest: float) -> float:
        """The estimate, decayed towards ``rest`` for the time nothing was seen."""
        weight = math.exp(-max(0.0, now - self.at) / TAU_S)
        return self.value * weight + rest * (1 - weight)


@dataclass(slots=True)
class BackendStats:
    """Figures of one backend and of each model at it; estimates by (model, task, streamed or not).

    A backend that takes any model name must not grow without bound: beyond MODELS names the figures go
    to OTHER, and beyond ESTIMATES the oldest estimate goes.
    """

    figures: Figures = field(default_factory=Figures)
    by_model: dict[str, Figures] = field(default_factory=dict)
    last_success: float = -math.inf
    _estimates: dict[tuple[str | None, str, bool], PeakEwma] = field(default_factory=dict)
    _good: float = 0.0
    _tries: float = 0.0
    _decayed_at: float = 0.0

    def begin(self, model: str | None) -> Figures:
        """An attempt begins; gives the model's figures, which :meth:`end` takes back."""
        name = OTHER if model is None else model
        figures = self.by_model.get(name)
        if figures is None:
            name = name if len(self.by_model) < MODELS else OTHER
            figures = self.by_model.setdefault(name, Figures())
        self.figures.counters.begin()
        figures.counters.begin()
        return figures

    def undo(self, of_model: Figures) -> None:
        """An attempt that :meth:`begin` counted never took place."""
        self.figures.counters.total -= 1
        of_model.counters.total -= 1

    def end(self, of_model: Figures, ending: Ending) -> None:
        """An attempt has ended.

        Args:
            of_model: What :meth:`begin` gave.
            ending: How it ended.
        """
        self.figures.counters.end(ending)
        of_model.counters.end(ending)

    def succeeded(
        self,
        of_model: Figures,
        *,
        model: str | None,
        task: str,
        stream: bool,
        latency: float,
        first_token: float | None,
        usage: Usage,
        whole: bool,
        now: float,
    ) -> None:
        """Takes in an attempt that ended well, ``whole`` where it came in one piece; times in seconds."""
        self._decay(now)
        self._good += 1
        self._tries += 1
        self.last_success = now
        for figures in (self.figures, of_model):
            figures.succeeded(latency, first_token, usage, whole=whole)
        per_token = latency / max(1, usage.output_tokens)
        sample = first_token if stream and first_token is not None else per_token
        self._estimate(model, task, stream, sample, now)

    def failed(self, *, model: str | None, task: str, stream: bool, elapsed: float, now: float) -> None:
        """Takes in a fault; it may raise the latency estimate, never lower it."""
        self._decay(now)
        self._tries += 1
        known = self._estimates.get((model, task, stream))
        if known is None or elapsed > known.value:
            self._estimate(model, task, stream, elapsed, now)

    def estimate(self, model: str | None, task: str, *, stream: bool) -> PeakEwma | None:
        """The latency estimate for such requests, if any was seen."""
        return self._estimates.get((model, task, stream))

    def success(self, now: float) -> float:
        """Decayed success rate, from SUCCESS_FLOOR to 1; 1 where nothing was seen lately."""
        if self._good == self._tries:
            # The usual case, and exact: both are decayed by the same factors.
            return 1.0
        self._decay(now)
        return max(SUCCESS_FLOOR, (self._good + 1) / (self._tries + 1))

    def _estimate(self, model: str | None, task: str, stream: bool, sample: float, now: float) -> None:
        key = (model, task, stream)
        known = self._estimates.get(key)
        if known is not None:
            known.add(sample, now)
            return
        if len(self._estimates) >= ESTIMATES:
            del self._estimates[next(iter(self._estimates))]
        self._estimates[key] = PeakEwma(sample, now)

    def _decay(self, now: float) -> None:
        factor = math.exp(-max(0.0, now - self._decayed_at) / SUCCESS_TAU_S)
        self._good *= factor
        self._tries *= factor
        self._decayed_at = now
