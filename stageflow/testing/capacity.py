"""How much a service does at once and per minute: a hidden capacity, and rate limits that are enforced.

Pure: the time comes in as a number, in seconds, and never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush, heapreplace

__all__ = ["BEYOND", "Bucket", "Capacity", "CapacityRule", "Limit", "LimitRule"]

BEYOND = ("queue", "slow", "refuse")
"""What may become of calls beyond the capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRule:
    """How many calls a service does at once, and what becomes of those beyond.

    Args:
        in_flight: Calls at once; >= 1.
        beyond: ``"queue"``: they wait for their turn, first come, first served, so that throughput stays where it is.
            ``"slow"``: a call among n takes ``(n / in_flight) ** power`` times as long; above 1 throughput falls.
            ``"refuse"``: 429.
        power: For ``"slow"``; > 0.
    """

    in_flight: int
    beyond: str = "queue"
    power: float = 1.0


class Capacity:
    """Calls in progress against a :class:`CapacityRule`."""

    def __init__(self, rule: CapacityRule) -> None:
        self._rule = rule
        self._in_flight = 0
        self._ends: list[float] = []
        """When each place is free again. A client that leaves does not free its place: the work goes on."""

    def begin(self, now: float, seconds: float) -> float | None:
        """A call that would take so long by itself arrives: how long it takes, or ``None`` where it is refused.

        One that is not refused is to :meth:`end`.
        """
        rule = self._rule
        if rule.beyond == "refuse" and self._in_flight >= rule.in_flight:
            return None
        self._in_flight += 1
        if rule.beyond == "slow":
            return seconds * float(max(1.0, self._in_flight / rule.in_flight) ** rule.power)
        if rule.beyond == "queue":
            if len(self._ends) < rule.in_flight:
                heappush(self._ends, now + seconds)
                return seconds
            end = max(now, self._ends[0]) + seconds
            heapreplace(self._ends, end)
            return end - now
        return seconds

    def end(self) -> None:
        """A call that began has been answered, or left."""
        self._in_flight -= 1


class Bucket:
    """Permits that flow in evenly, up to ``burst`` of them; it starts full.

    What takes more than ``burst`` waits for a full bucket, and leaves a debt.

    Source: J. Turner, "New Directions in Communications", 1986.
    """

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._level = burst
        self._at: float | None = None

    def wait(self, now: float, amount: float) -> float:
        """How long until there are so many; 0 where there are."""
        self._fill(now)
        return max(0.0, min(amount, self.burst) - self._level) * 60.0 / self.per_minute

    def take(self, amount: float) -> None:
        """Take so many, as of the last time that :meth:`wait` was given."""
        self._level -= amount

    def left(self) -> int:
        """Whole permits there are."""
        return max(0, int(self._level))

    def until_full(self) -> float:
        """Seconds until it is full, if nothing is taken."""
        return (self.burst - self._level) * 60.0 / self.per_minute

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self.burst, self._level + (now - self._at) * self.per_minute / 60.0)
        self._at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """How many calls and tokens a minute are allowed.

    Args:
        model: Of this model only; ``None``: of all of them together.
        requests_per_minute, tokens_per_minute: > 0; ``None``: not limited. A call takes the tokens of its prompt and
            of its answer when it begins.
        burst_seconds: The bucket holds what flows in within so many seconds, and at least 1; > 0. A minute's worth by
            default, as the headers of a limit per minute say.
        retry_after_as: As for a fault: ``"seconds"``, ``"ms"``, ``"date"`` or ``"none"``.
    """

    model: str | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 60.0
    retry_after_as: str = "seconds"


class Limit:
    """The buckets of a :class:`LimitRule`."""

    def __init__(self, rule: LimitRule) -> None:
        self.rule = rule
        self.requests = self._bucket(rule.requests_per_minute)
        self.tokens = self._bucket(rule.tokens_per_minute)

    def _bucket(self, per_minute: float | None) -> Bucket | None:
        if per_minute is None:
            return None
        return Bucket(per_minute, max(1.0, per_minute * self.rule.burst_seconds / 60.0))

    def wait(self, now: float, tokens: int) -> tuple[float, str]:
        """How long a call of so many tokens has to wait, 0 where it need not, and for what: requests or tokens."""
        requests = 0.0 if self.requests is None else self.requests.wait(now, 1)
        of_tokens = 0.0 if self.tokens is None else self.tokens.wait(now, tokens)
        return (requests, "requests") if requests >= of_tokens else (of_tokens, "tokens")

    def take(self, tokens: int) -> None:
        """A call that need not wait takes its part."""
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)
