"""A queue's flows over a window → how fast it fills and drains, and when it would be empty."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from opslib.durations import spell

#: Chance alone makes a count differ from its mean by its root: twice that is hardly ever passed.
_DEVIATIONS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """
    What came to a queue and went from it, over all its priorities.

    Attributes:
        depth: Messages waiting at the window's end.

        before: Messages waiting at its start.

        arrived: Messages that were pushed meanwhile, at either end; of an inexact row the least that can have been.

        served: Messages that nodes took meanwhile; of an inexact row the least that can have been.

        watched_s: How long the window was; 0 where nobody watched.

        exact: False where messages may have come and gone unseen.
    """

    queue: str
    depth: int
    before: int = 0
    arrived: int = 0
    served: int = 0
    watched_s: float = 0.0
    exact: bool = True

    @property
    def arrival_per_min(self) -> float:
        """Messages that come in a minute."""
        return self._per_min(self.arrived)

    @property
    def drain_per_min(self) -> float:
        """Messages that nodes take in a minute."""
        return self._per_min(self.served)

    @property
    def growth_per_min(self) -> float:
        """Messages by which it grows in a minute, below zero where it drains; exact even where the others are not."""
        return self._per_min(self.depth - self.before)

    @property
    def doubt_per_min(self) -> float:
        """By how much the growth may be chance: what comes and goes one by one does so unevenly."""
        return self._per_min(self._doubt)

    @property
    def grows(self) -> bool:
        """Whether it grew by more than chance makes of as much coming as going."""
        return self.watched_s > 0 and self.depth - self.before > self._doubt

    @property
    def drains(self) -> bool:
        """Whether it drained by more than chance makes of as much coming as going."""
        return self.watched_s > 0 and self.before - self.depth > self._doubt

    @property
    def empty_in_s(self) -> float | None:
        """When it is empty if all goes on like this; None where that is never, or cannot be told."""
        if not self.depth:
            return 0.0
        return self.depth * 60 / -self.growth_per_min if self.drains else None

    @property
    def speed(self) -> str:
        """What comes and goes, as a sentence says it; no words where nobody watched."""
        if not self.watched_s:
            return ""
        if not self.arrived and not self.served and self.exact:
            return f"nothing came or went in {spell(self.watched_s)}"
        least = "" if self.exact else "at least "
        return f"{least}{figure(self.arrival_per_min)} come and {least}{figure(self.drain_per_min)} are taken a minute"

    @property
    def outlook(self) -> str:
        """When it will be empty, as a sentence says it; no words where nobody watched."""
        if not self.watched_s:
            return ""
        if self.grows:
            return f"never empty: it grows by {figure(self.growth_per_min)} a minute"
        if not self.depth:
            return "empty now"
        if self.empty_in_s is not None:
            return f"empty in about {spell(self.empty_in_s)}"
        if not self.arrived and not self.served and self.exact:
            return "it stands still"
        return f"in {spell(self.watched_s)} it neither grew nor drained clearly"

    @property
    def _doubt(self) -> float:
        return _DEVIATIONS * sqrt(self.arrived + self.served)

    def _per_min(self, messages: float) -> float:
        return messages * 60 / self.watched_s if self.watched_s > 0 else 0.0


def figure(rate: float) -> str:
    """Return a rate with as many digits as it deserves."""
    return f"{rate:,.1f}" if 0 < rate < 10 else f"{rate:,.0f}"
