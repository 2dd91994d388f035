"""What remains of a provider's own rate limit, by what it says with each answer.

The rules:

1. Until the reset that the provider names, no more starts than it said remains; from then on, no more than its whole
   limit, until it says something newer. Where it never named the limit, or says nothing for as long again, nothing is
   known.
2. Answers come late and out of order: the one whose request was sent last counts. What was begun after that request is
   not in its figure, and is taken off.
3. Others use the same limit: other processes of this run, other stages, other programs. By how much more a figure falls
   than was begun here, their part is known, and only the own part of what remains is used.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

__all__ = ["Remaining"]

LONGEST_SECONDS: Final = 600.0
"""A reset that is farther away is no pace to keep but a day's quota; whoever uses that up is told so by the service."""

_MEMORY: Final = 256.0
"""About how many of the last starts, of others too, their part is reckoned from."""

_MOST_OTHERS: Final = 8.0
"""So many times as much as is begun here is allowed for at the most: who gives way is seen to need less, and more so
where the others do as well."""

_JUMP: Final = 0.1
"""A figure that rises by more than this part of the limit is one after a reset."""

_MARGIN: Final = 0.25
"""Seconds by which a reset is later than it seems: a request takes a while to come in, and resets are rounded."""

_STARTS: Final = 1 << 16
"""So many starts since the newest answer are remembered."""

_SHORTEST_SECONDS: Final = 1.0
"""What was said is kept at least for so long after the reset."""


class Remaining:
    """One quota of one provider: of calls, or of tokens.

    Pure: the time comes in as a number, and the answer is how long to wait.

    Attributes:
        share: The part of the limit that is this process's, where that is known.
    """

    __slots__ = (
        "_began",
        "_from",
        "_left",
        "_limit",
        "_others",
        "_own",
        "_reset",
        "_since",
        "_started",
        "_unit",
        "_until",
        "share",
    )

    def __init__(self) -> None:
        self._began = -inf
        self._from = inf
        self._left = 0.0
        self._limit: float | None = None
        self._reset = self._until = -inf
        self._started: deque[tuple[float, float]] = deque()
        self._since = 0.0
        self._own = self._others = 0.0
        self._unit = 1.0  # what a call takes
        self.share = 1.0

    def heed(self, now: float, *, began: float, remaining: float, reset: float, limit: float | None) -> None:
        """The provider has said what remains.

        Args:
            began: When the request was sent.
            remaining: >= 0.
            reset: Seconds after ``began``.
            limit: All there is.
        """
        if began < self._began or reset > LONGEST_SECONDS:
            return
        known = now < self._until
        if self._from == inf:
            self._from = now  # what was begun before is not known here
        newer = began > self._began
        own, calls = self._forget(began)
        if self._started and self._started[0][0] == began:  # it is in the figure itself
            _, amount = self._started.popleft()
            self._since -= amount
            own, calls = own + amount, calls + 1
        # Of requests that were sent at the same moment the one that came in last has the figure of them all.
        left = remaining if newer else min(self._left, remaining)
        if known and self._began >= self._from:
            whole = limit or self._limit or 0.0
            self._learn(own, calls, whole if newer and began >= self._reset else self._left, left, whole)
        self._left = left
        self._began = began
        # Where it is not said, it is the most that was ever left.
        self._limit = limit or max(self._limit or 0.0, remaining) or None
        self._reset = began + reset + _MARGIN
        self._until = max(self._reset, now) + max(reset, _SHORTEST_SECONDS)

    def wait(self, now: float, amount: float = 1.0) -> float:
        """How long until so much may start, if nothing newer is heard; 0 where it may now."""
        if self.there(now, amount) >= self.fitting(amount):
            return 0.0
        comes = now < self._reset and (self._limit is None or self._whole(self._limit, amount) >= self.fitting(amount))
        return (self._reset if comes else self._until) - now

    def there(self, now: float, amount: float = 1.0) -> float:
        """How much may start now, in calls of that amount; infinite where nothing is known."""
        if now < self._reset:
            return self._left * self.part - self._since
        if self._limit is None or now >= self._until:
            return inf
        return self._whole(self._limit, amount)

    def fitting(self, amount: float) -> float:
        """What a call of that amount has to wait for: what is more than all of the limit has to start, too."""
        return amount if self._limit is None else min(amount, self._limit)

    def take(self, now: float, amount: float = 1.0) -> None:
        """So much has started."""
        self._started.append((now, amount))
        self._since += amount
        if len(self._started) > _STARTS:  # of a provider that says nothing any more
            self._since -= self._started.popleft()[1]

    def give_back(self) -> None:
        """What was taken last is not made."""
        if self._started:
            self._since -= self._started.pop()[1]

    @property
    def part(self) -> float:
        """The own part of what is used, above 0 to 1."""
        own = max(self._own, self._unit)
        return min(self.share, own / (own + min(max(0.0, self._others), _MOST_OTHERS * own)))

    def _whole(self, limit: float, amount: float) -> float:
        # Of what is whole again one call is everybody's, however small the own part.
        return max(limit * self.part, min(limit, amount)) - self._since

    def _forget(self, began: float) -> tuple[float, int]:
        """Drop what was begun before; returns how much that was, in how many starts."""
        own, calls = 0.0, 0
        while self._started and self._started[0][0] < began:
            own += self._started.popleft()[1]
            calls += 1
        self._since = self._since - own if self._started else 0.0
        return own, calls

    def _learn(self, own: float, calls: int, before: float, remaining: float, limit: float) -> None:
        """Between two answers so much was begun here, and the figure has come to this from that."""
        fallen = before - remaining
        if fallen < -max(2.0, _JUMP * limit):
            return
        if fallen < own and remaining < self._unit:
            return  # nothing was left: calls that are refused take nothing
        self._unit = own / calls if calls else self._unit
        fade = max(0.0, 1.0 - (own + max(0.0, fallen - own)) / (_MEMORY * self._unit))
        # Not clipped: what one answer has too much for being overtaken, the next one has too little.
        self._own = self._own * fade + own
        self._others = self._others * fade + fallen - own
