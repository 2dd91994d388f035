"""When a call that takes long is made a second time, for whichever answers first. Pure: durations come in as numbers.

A service that is slow now and then, and not for the same request twice, is best asked again: where 2 % of the calls
take fifty times as long, a second one for these alone cuts the tail to what both together make.

* The second calls are at most a share ``extra`` of all calls, at every moment. What is not used is saved up for a while
  only: when all calls of a service that has trouble take long, they are not doubled by what was saved in an hour.
* The quantile after which a second call is made is never below what ``extra`` suffices for: it would else be spent on
  calls that are about to end anyway, and be lacking for the slowest.

Source: J. Dean, L. A. Barroso, "The Tail at Scale", 2013, "Hedged requests".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from stageflow.counters import INSTANT, Histogram
from stageflow.errors import SettingError

__all__ = ["Hedge", "Hedging", "hedge_of", "is_share"]

_MARGIN: Final = 0.8
"""The part of the extra calls that is planned for; the rest is for moments in which more calls than usual are slow."""

_KNOWN: Final = 100
"""Calls after which a quantile of their durations says something."""

_REMEMBERED: Final = 1_000
"""Of so many calls, to twice as many, the quantile is taken: services change in the course of a night. What as many
calls allow of extra ones is the most that is saved up."""

_WITHIN: Final = 2.0 ** (1 / 16)
"""From the middle of a histogram's bucket to its end: where most calls take the same time, hardly any takes longer."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """For ``hedge=``: a call that takes long is made a second time, and the first answer counts.

    Giving it says that the stage is idempotent: two calls for one record do no harm.

    Args:
        extra: The most calls that are made in addition, as a share of all calls; more than 0, at most 1.
        quantile: A call takes long when it takes longer than this share of the calls before it; at least 0.5, below 1.
            Where ``extra`` is too little for that, only later ones are made twice.

    Raises:
        SettingError: A number is out of range.
    """

    extra: float = 0.05
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if not is_share(self.extra):
            raise SettingError(f"extra must be a share of the calls, above 0 and at most 1, not {self.extra!r}")
        if not _is_number(self.quantile) or not 0.5 <= self.quantile < 1:
            raise SettingError(f"quantile must be a number from 0.5 to below 1, not {self.quantile!r}")


class Hedging:
    """The account of one stage's calls.

    Attributes:
        calls: Calls that were begun for records. ``hedges``: those that were begun in addition.
    """

    def __init__(self, hedge: Hedge) -> None:
        self._extra = hedge.extra
        self._quantile = max(hedge.quantile, 1.0 - _MARGIN * hedge.extra)
        self._most_saved = max(1.0, hedge.extra * _REMEMBERED)
        self._forgone = 0.0
        self._now, self._before = Histogram(), Histogram()
        self._counted = 0
        self._patience: float | None = None
        self.calls = 0
        self.hedges = 0

    def begin(self) -> float | None:
        """A call begins.

        Returns:
            Seconds after which a second one may be made; ``None`` while too little is known.
        """
        self.calls += 1
        return self._patience

    @property
    def may(self) -> bool:
        """Whether a second call stays within the bound."""
        allowed = self._extra * self.calls
        # Whoever saves up only gains between two looks, so that nothing is missed by looking at such moments alone.
        self._forgone = max(self._forgone, allowed - self.hedges - self._most_saved)
        return self.hedges + 1 <= allowed - self._forgone

    def take(self) -> bool:
        """Make a second call, if that stays within the bound."""
        if not self.may:
            return False
        self.hedges += 1
        return True

    def end(self, seconds: float) -> None:
        """An answer was there after so many seconds, of whichever call."""
        self._now.add(seconds)
        self._counted += 1
        if self._counted % _KNOWN == 0:
            known = Histogram()
            known.merge(self._now)
            known.merge(self._before)
            self._patience = max(INSTANT, _WITHIN * (known.quantile(self._quantile) or 0.0))
        if self._counted == _REMEMBERED:
            self._now, self._before, self._counted = Histogram(), self._now, 0


def hedge_of(value: float | Hedge | None) -> Hedge | None:
    """The setting ``hedge`` as a policy; a number is the most extra calls.

    Raises:
        SettingError: It is neither a policy nor a share.
    """
    if value is None or isinstance(value, Hedge):
        return value
    return Hedge(value)


def is_share(value: Any) -> bool:
    """Whether it is a number above 0 and at most 1."""
    return _is_number(value) and 0 < value <= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
