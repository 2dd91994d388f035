"""How calls start again after a pause that a service asked for: a few at first, then more and more.

Nobody has said what the service's quota is, and it is probably used up soon again. All calls at once, as many as are in
flight, would be that many attempts refused for each quota. So after a pause, in steps of a part of its length,

1. starts double with each step, from one, as long as fewer have started than the service took between the last two
   pauses (what started, less what was refused); a step has at most an eighth of that, so that little is lost where the
   quota has become smaller,
2. from there on they double from one again: the end of the quota is near, and is felt for; or it has grown,
3. until a step has so many starts that there is nothing to hold back any more; they are counted a while longer.

A service that refuses at random, and not by count, takes now this much and now that much. To ramp does not help there,
and costs time: where that is seen, calls start at once after the next pauses. So they do where one call alone was
refused and nothing is known of a quota.

Source: V. Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988 (slow start, up to a threshold that the last loss
has set); what is counted here is starts between two pauses, and not what is in flight.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["Ramp"]

_STEPS: Final = 20.0
_FEWEST: Final = 5.0
"""A step is the first part of the pause before, and up to the other as long as answers that refuse take to come."""

_ANSWERS: Final = 0.15
_LONGEST: Final = 1.0
"""Seconds of a step."""

_COUNTED: Final = 4.0
_COUNTED_LEAST: Final = 5.0
_COUNTED_MOST: Final = 120.0
"""How much longer than the pause starts are counted after it, in seconds at least and at most: what holds nothing back
any more may yet learn from the next refusal how much the service takes."""

_PARTS: Final = 8
_MANY: Final = 1 << 30
_OPEN: Final = 128
"""So many starts in one step are no ramp any more."""

_ROUNDS: Final = 8
_EARLY: Final = 3
"""So many of so many rounds that end long before the last one's count are not ended by a count."""

_LONG_BEFORE: Final = 0.5
_SKIPPED: Final = 64
"""Pauses without a ramp, where to ramp does not help."""


class Ramp:
    """The starts of one stage after a pause.

    Pure: the time comes in as a number, and the answer is how many may start, or how long to wait.

    Attributes:
        on: Starts are held back, or are to be.
    """

    __slots__ = (
        "_allowed",
        "_early",
        "_end",
        "_good",
        "_next",
        "_refused",
        "_rounds",
        "_seconds",
        "_size",
        "_skip",
        "_starts",
        "_waits",
        "on",
    )

    def __init__(self) -> None:
        self.on = False
        self._good = inf  # starts that the service took between the last two pauses
        self._starts = self._refused = 0
        self._allowed = 0
        self._size = 1
        self._next = self._seconds = self._end = 0.0
        self._waits = False
        self._rounds = self._early = self._skip = 0

    def refused(self, until: float, seconds: float) -> None:
        """A call was refused by an answer that asked for a pause of so many seconds; as of now it ends then."""
        self._refused += 1
        self._next = until
        self._seconds = min(max(seconds / _STEPS, min(seconds / _FEWEST, _ANSWERS)), _LONGEST)
        self._end = until + min(max(_COUNTED * seconds, _COUNTED_LEAST), _COUNTED_MOST)
        self.on = self._waits = True

    def there(self, now: float) -> int:
        """How many may start now; meaningless where it is not on."""
        if self._waits:
            if now < self._next:
                return 0
            self._begin()
        while self.on and now >= self._next and self._allowed < _MANY:
            self._step()
        if self._allowed == _MANY and now >= self._end:
            self._open()
        return self._allowed - self._starts

    def wait(self, now: float) -> float:
        """How long until one may start; 0 where it may now."""
        return 0.0 if self.there(now) > 0 or not self.on else self._next - now

    def take(self, count: int = 1) -> None:
        """So many have started."""
        self._starts += count

    def _begin(self) -> None:
        """The pause is over. What has happened since the one before says what the service takes."""
        alone = self._good == inf and self._refused == 1
        took = self._starts - min(self._refused, self._starts)
        if took:
            self._rounds += self._good < inf
            self._early += took < _LONG_BEFORE * self._good < inf
            self._good = took
        self._starts = self._refused = self._allowed = 0
        self._size, self._waits = 1, False
        if self._rounds >= _ROUNDS:
            self._skip = _SKIPPED if self._early >= _EARLY else 0
            self._rounds = self._early = 0
        if self._skip or alone:
            self._skip -= not alone
            self._open()

    def _step(self) -> None:
        self._next += self._seconds
        size, self._size = self._size, 2 * self._size
        if self._allowed < self._good < inf:
            left = int(self._good) - self._allowed
            size = min(size, max(1, int(self._good) // _PARTS), left)
            if size == left:
                self._size = 1
        self._allowed += size
        if size > _OPEN:
            self._allowed = _MANY

    def _open(self) -> None:
        """Hold nothing back; starts are not counted any more, so that what the service takes is not known."""
        self.on = False
        self._good = inf
        self._starts = 0
