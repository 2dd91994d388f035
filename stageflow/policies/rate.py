"""How often calls may start: permits per second, and tokens per minute that are known only after the call."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from stageflow.errors import SettingError

__all__ = ["RateLimit", "TokenBucket", "TokenEstimate"]

_ROUNDING: Final = 1e-6
"""What may lack of a permit: times are rounded."""

_MEMORY: Final = 20
"""About how many of the last calls the estimate of tokens is the mean of: prompts change along a file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RateLimit:
    """For ``rate_limit=``: how often calls may start. Stages that are given the same object share its permits.

    Args:
        per_second: Calls per second, finite and > 0. Or
        per_minute: calls per minute, likewise.
        tokens_per_minute: Tokens per minute, finite and > 0, as the calls report them with ``call.report(tokens=...)``.
        burst: How many calls may start at once after a pause; finite and >= 1. One second's worth of calls, at least 1,
            where it is not given. Tokens have one second's worth.
        adaptive: Keep to what the provider says remains of its own limits, too, where calls report that: no more start
            than that, and never more than is given here.

    Raises:
        SettingError: Nothing is limited, calls are given both per second and per minute, a number is out of range, or
            ``burst`` is given and calls are not limited.
    """

    per_second: float | None = None
    per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst: float | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        for name in ("per_second", "per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not _is_at_least(value, 0, above=True):
                raise SettingError(f"{name} must be a number above 0, not {value!r}")
        if self.per_second is not None and self.per_minute is not None:
            raise SettingError("a rate limit takes per_second or per_minute, not both")
        if self.rate_per_second is None and self.tokens_per_minute is None:
            raise SettingError("a rate limit needs a rate", hint="for instance RateLimit(per_minute=3000)")
        if self.burst is not None and not _is_at_least(self.burst, 1):
            raise SettingError(f"burst must be a number of calls, at least 1, not {self.burst!r}")
        if self.burst is not None and self.rate_per_second is None:
            raise SettingError("burst is a number of calls; give per_second or per_minute with it")

    @property
    def rate_per_second(self) -> float | None:
        """Calls per second, or ``None`` where only tokens are limited."""
        if self.per_minute is not None:
            return self.per_minute / 60
        return self.per_second

    @property
    def burst_calls(self) -> float:
        """How many calls may start at once."""
        return self.burst if self.burst is not None else max(1.0, self.rate_per_second or 1.0)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second, or ``None`` where only calls are limited."""
        return None if self.tokens_per_minute is None else self.tokens_per_minute / 60


class TokenBucket:
    """Admit ``per_second`` permits a second on average, in bursts of up to ``burst``.

    Pure: the time comes in as a number and the answer is how long to wait. Permits are granted in the order of asking,
    each for a time of its own, so nobody is overtaken and nobody starves. Of permits taken one by one, at most
    ``per_second * T + burst`` have their time within any ``T`` seconds; a pause or a clock that jumps ahead fills the
    bucket once. One that goes back counts as standing still.

    Args:
        per_second: Refill rate in permits per second; finite and > 0.
        burst: Size of the bucket in permits; finite and >= 1. It starts full.
        now: The time in seconds, by any clock.

    Raises:
        SettingError: A number is outside its range.

    Source: J. Turner, "New Directions in Communications", 1986; kept as the time and level of the latest grant, like
    the virtual scheduling form in ITU-T I.371, annex A.
    """

    __slots__ = ("_burst", "_granted", "_level", "_per_second", "_seen", "_waiting")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        if not _is_at_least(per_second, 0, above=True):
            raise SettingError(f"per_second must be a number above 0, not {per_second!r}")
        if not _is_at_least(burst, 1):
            raise SettingError(f"burst must be a number of at least 1, not {burst!r}")
        self._per_second = per_second
        self._burst = burst
        self._seen = now
        # The latest grant may lie ahead: the level is what the bucket will hold right after it.
        self._granted = now
        self._level = float(burst)
        self._waiting: deque[float] = deque()

    def reserve(self, now: float, amount: float = 1.0) -> float:
        """Take ``amount`` permits, now or as soon as they are there.

        Args:
            amount: Finite and >= 0. More than the bucket holds is granted when that much has flowed in.

        Returns:
            Seconds to wait before using them; 0 where they are there. Infinity where they are not and the rate is 0:
            then nothing is reserved.
        """
        assert 0 <= amount < math.inf, "not an amount of permits"
        self._look(now)
        due = max(self._seen, self._granted)
        level = self._level_at(due)
        if level < amount:
            if not self._per_second:
                return math.inf
            due += (amount - level) / self._per_second
            level = amount
            self._waiting.append(due)
        elif due > self._seen:
            self._waiting.append(due)
        self._granted, self._level = due, level - amount
        return due - self._seen

    def take_now(self, now: float) -> bool:
        """Take one permit, if it is there; as :meth:`reserve` does where nobody waits, at a fraction of the cost."""
        if self._waiting or now < self._granted or now < self._seen:
            there = self.available(now) >= 1.0 - _ROUNDING
            if there:
                self.reserve(now)
            return there
        level = min(self._burst, self._level + (now - self._granted) * self._per_second)
        if level < 1.0 - _ROUNDING:
            return False
        self._seen = self._granted = now
        self._level = level - 1.0
        return True

    def give_back(self, amount: float = 1.0) -> None:
        """Return what was reserved by someone who stopped waiting before the time had come.

        Those who wait keep their times. Behind them the bucket would have been full at some time with these permits in
        it, so that of what is returned only so much counts as fits into it; a lone waiter's counts in full.
        """
        room = self._burst
        if len(self._waiting) <= 1:
            self._waiting.clear()
        else:
            room -= amount
        self._level = max(self._level, min(self._level + amount, room))

    def settle(self, difference: float) -> None:
        """Correct a reservation after the call: what it took in fact, less what was reserved; finite.

        What is owed delays the reservations to come. What is returned never fills the bucket above its size.
        """
        assert math.isfinite(difference), "not an amount of permits"
        self._level = min(self._level - difference, self._burst)

    def set_rate(self, now: float, per_second: float, burst: float) -> None:
        """Change the rate and the size from now on.

        What is there is kept, as far as the new size holds it; a bucket that grows is not filled by that. What is owed
        stays owed. The times of those who wait were reckoned at the old rate: they have to give back what they
        reserved, and to reserve anew.

        Args:
            per_second: Finite and >= 0. 0: nothing flows in.
            burst: Finite and >= 1; where nothing flows in, 0 is allowed, too.

        Raises:
            SettingError: A number is outside its range.
        """
        if not _is_at_least(per_second, 0):
            raise SettingError(f"per_second must be a number of at least 0, not {per_second!r}")
        if not _is_at_least(burst, 1 if per_second else 0):
            raise SettingError(f"burst must be a number of at least 1, not {burst!r}")
        self._level = min(self.available(now), float(burst))
        self._granted = self._seen
        self._per_second, self._burst = per_second, burst
        self._waiting.clear()

    def available(self, now: float) -> float:
        """How many permits are there at this time; what is owed to those who wait counts as less than none."""
        self._look(now)
        if self._granted > self._seen:
            return self._level - (self._granted - self._seen) * self._per_second
        return self._level_at(self._seen)

    def _look(self, now: float) -> None:
        self._seen = max(self._seen, now)
        while self._waiting and self._waiting[0] <= self._seen:
            self._waiting.popleft()

    def _level_at(self, time: float) -> float:
        return min(self._burst, self._level + (time - self._granted) * self._per_second)


class TokenEstimate:
    """How many tokens the next call will probably use: a running mean of what calls have reported.

    The mean of all reports at first, and later one that forgets: each new report has a weight of 1/20.

    Args:
        first: What to assume before the first report; >= 0. One second's worth of the limit keeps the first calls,
            which start before any has reported, from overrunning it.

    Source: S. W. Roberts, "Control Chart Tests Based on Geometric Moving Averages", 1959.
    """

    __slots__ = ("_reports", "value")

    def __init__(self, first: float = 0.0) -> None:
        assert 0 <= first < math.inf, "not a number of tokens"
        self.value = float(first)
        self._reports = 0

    def add(self, tokens: float) -> None:
        """A call has reported what it used; finite and >= 0."""
        assert 0 <= tokens < math.inf, "not a number of tokens"
        self._reports = min(self._reports + 1, _MEMORY)
        self.value += (tokens - self.value) / self._reports


def _is_at_least(value: Any, lowest: float, *, above: bool = False) -> bool:
    """Whether it is a finite number of at least, or above, ``lowest``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return (lowest < value if above else lowest <= value) and value <= sys.float_info.max
