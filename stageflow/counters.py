"""What the engine counts, as plain numbers that anybody may read while it runs."""

from __future__ import annotations

from bisect import bisect_left
from math import log2

__all__ = ["COUNTED_TOGETHER", "INSTANT", "Histogram", "RunCounters", "StageCounters"]

_PER_OCTAVE = 8
INSTANT = 2.0**-16
"""Seconds (15 microseconds) below which a call did not wait for anything."""

_OFFSET = 16 * _PER_OCTAVE  # the index of the smallest duration that has a bucket of its own is 0
_BUCKETS = _OFFSET + 20 * _PER_OCTAVE  # up to 2**20 seconds, twelve days
_UPPER_ENDS = [2.0 ** ((bucket + 1 - _OFFSET) / _PER_OCTAVE) for bucket in range(_BUCKETS)]

COUNTED_TOGETHER = 512
"""Calls whose times are counted together."""


class Histogram:
    """Durations counted in buckets whose width grows with the duration: eight to the octave, so within 9 %.

    The memory is constant. Durations below :data:`INSTANT`, which are a function call and no service, share one bucket
    and cost no logarithm.

    Source: the idea of G. Tene, HdrHistogram, 2012, with the logarithm taken by the floating-point unit.
    """

    __slots__ = ("counts", "instant")

    def __init__(self) -> None:
        self.instant = 0
        self.counts = [0] * _BUCKETS

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, in seconds, so many times."""
        if seconds < INSTANT:
            self.instant += times
        else:
            self.counts[int(log2(seconds) * _PER_OCTAVE + _OFFSET)] += times

    def add_all(self, durations: list[float]) -> None:
        """Count many durations at once; the list is sorted by that.

        The time is that of sorting: then each bucket takes one look, and there are few of them.
        """
        durations.sort()
        done = bisect_left(durations, INSTANT)
        self.instant += done
        while done < len(durations):
            bucket = int(log2(durations[done]) * _PER_OCTAVE + _OFFSET)
            end = bisect_left(durations, _UPPER_ENDS[bucket], done + 1)
            self.counts[bucket] += end - done
            done = end

    def merge(self, other: Histogram) -> None:
        """Add what another one has counted."""
        self.instant += other.instant
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]

    def quantile(self, q: float) -> float | None:
        """The seconds that a share ``q`` (0 to 1) of the durations does not exceed; None if there is none."""
        total = self.instant + sum(self.counts)
        if not total:
            return None
        rank, seen = q * total, self.instant
        if seen and seen >= rank:
            return 0.0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return float(2.0 ** ((index + 0.5 - _OFFSET) / _PER_OCTAVE))
        raise AssertionError("the ranks of a histogram sum to its total")


class StageCounters:
    """One stage's account, in items, of what became of those its channel received.

    Attributes:
        passed: Items that went on with a result, degraded and skipped ones included.
        dead: Items that ended here as dead letters.
        cancelled: Items given back unfinished: given up by another branch, or by the end of the run.
        dropped: Items that left here by ``drop``.
        retries: Attempts after the first.
        hedged: Calls that were made a second time. ``hedges_won``: those of which the second counted.
        abandoned: Calls that outlived their cancellation.
        cached: Items whose result was there from earlier calls; they passed or were dropped without one.
        tokens: What handlers reported; ``input_tokens`` and ``output_tokens`` those of which they said the kind.
        cost: What is known of the calls' cost, as :mod:`stageflow.money` counts it; ``cost_unsure``: what they may have
            cost beyond that. ``unpriced``: tokens whose price is not known.
        untold: Calls that told nothing, and count for a budget with the most they may cost.
        over: Calls that cost more than was reserved for them.
        waiting: Items that wait for their next attempt, and calls that wait for a permit.
        calls: Seconds that calls took and that are not counted yet; whoever adds many counts them now and then.
        busy_seconds, blocked_seconds, waiting_seconds: Worker time in the handler, waiting for room in the next
            channel, and waiting for a permit.
    """

    __slots__ = (
        "_busy_seconds",
        "_latency",
        "abandoned",
        "blocked",
        "blocked_seconds",
        "cached",
        "calls",
        "cancelled",
        "cost",
        "cost_unsure",
        "dead",
        "degraded",
        "dropped",
        "hedged",
        "hedges_won",
        "in_flight",
        "input_tokens",
        "output_tokens",
        "over",
        "passed",
        "peak_in_flight",
        "retries",
        "skipped",
        "tokens",
        "unpriced",
        "untold",
        "waiting",
        "waiting_seconds",
    )

    def __init__(self) -> None:
        self.passed = 0
        self.degraded = 0
        self.skipped = 0
        self.dropped = 0
        self.dead = 0
        self.cancelled = 0
        self.retries = 0
        self.hedged = 0
        self.hedges_won = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self.blocked = 0
        self.abandoned = 0
        self.cached = 0
        self.tokens = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cost = 0
        self.cost_unsure = 0
        self.unpriced = 0
        self.untold = 0
        self.over = 0
        self.waiting = 0
        self.waiting_seconds = 0.0
        self.blocked_seconds = 0.0
        self.calls: list[float] = []
        self._busy_seconds = 0.0
        self._latency = Histogram()

    @property
    def busy_seconds(self) -> float:
        self.count_calls()
        return self._busy_seconds

    @property
    def latency(self) -> Histogram:
        """The durations of all calls."""
        self.count_calls()
        return self._latency

    def add(self, other: StageCounters) -> None:
        """Add what others have counted of the same stage; peaks, too."""
        other.count_calls()
        for name in self.__slots__:
            if name == "_latency":
                self._latency.merge(other._latency)
            elif name != "calls":
                setattr(self, name, getattr(self, name) + getattr(other, name))

    def count_instant(self, items: int, seconds: float) -> None:
        """Count ``items`` that passed without waiting for anything, and took ``seconds`` together."""
        self.passed += items
        self._busy_seconds += seconds
        if seconds < INSTANT * items:
            self._latency.instant += items
        else:
            self._latency.add(seconds / items, items)

    @property
    def made(self) -> int:
        """How many calls have ended."""
        latency = self.latency
        return latency.instant + sum(latency.counts)

    def count_call(self, seconds: float) -> None:
        """Count the time of one call; what became of it is counted apart."""
        self.calls.append(seconds)
        if len(self.calls) >= COUNTED_TOGETHER:
            self.count_calls()

    def count_hedge(self, seconds: float) -> None:
        """Count the time of a second call: a place was taken, but how long the item took is told by its attempt."""
        self._busy_seconds += seconds

    def count_calls(self) -> None:
        """Count what stands in ``calls``."""
        if self.calls:
            self._busy_seconds += sum(self.calls)
            self._latency.add_all(self.calls)
            self.calls.clear()


class RunCounters:
    """The account of the whole run, by input record: ``read == written + dropped + dead + what is not done``."""

    __slots__ = ("bad", "blank", "dead", "dropped", "fed", "peak_open", "read", "unfinished", "written")

    def __init__(self) -> None:
        self.read = 0
        self.fed = 0
        self.bad = 0
        self.blank = 0
        self.written = 0
        self.dropped = 0
        self.dead = 0
        self.unfinished = 0
        self.peak_open = 0
