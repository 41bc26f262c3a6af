"""How much was taken in the last minute: a sliding window that never lets more through than it says."""

from collections import deque
from dataclasses import dataclass

WINDOW_S = 60.0
# What was taken within a slot is counted until the slot's end is a whole window ago.
SLOT_S = 1.0


@dataclass(slots=True)
class Slot:
    """What was taken in one second."""

    began_at: float
    amount: float = 0.0


class Window:
    """Amounts taken in any 60 seconds, at most a limit.

    A bucket that refills would let twice the limit through in its first minute; this counts by the second.

    Args:
        limit: Amount in 60 seconds.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._slots: deque[Slot] = deque()

    def taken(self, now: float) -> float:
        """What counts now; may be more than the limit where it was corrected upwards."""
        while self._slots and self._slots[0].began_at + SLOT_S + WINDOW_S <= now:
            self._slots.popleft()
        return sum(slot.amount for slot in self._slots)

    def remaining(self, now: float) -> float:
        """What may still be taken now."""
        return max(0.0, self.limit - self.taken(now))

    def wait(self, amount: float, now: float) -> float:
        """Seconds until an amount may be taken; 0 if now, infinity if it is more than the limit."""
        if amount > self.limit:
            return float("inf")
        excess = self.taken(now) + amount - self.limit
        for slot in self._slots:
            if excess <= 0:
                break
            excess -= slot.amount
            if excess <= 0:
                return slot.began_at + SLOT_S + WINDOW_S - now
        return 0.0

    def reset(self, now: float) -> float:
        """Seconds until all of it may be taken again."""
        self.taken(now)
        return self._slots[-1].began_at + SLOT_S + WINDOW_S - now if self._slots else 0.0

    def take(self, amount: float, now: float) -> Slot:
        """Takes an amount, whether it may be taken or not.

        Returns:
            Where it is counted, for :meth:`give_back`.
        """
        if not self._slots or now >= self._slots[-1].began_at + SLOT_S:
            self._slots.append(Slot(now))
        self._slots[-1].amount += amount
        return self._slots[-1]

    @staticmethod
    def give_back(slot: Slot, amount: float) -> None:
        """Uncounts what was taken; nothing happens where it has passed out of the window."""
        slot.amount -= amount
