"""A limit that replicas divide by shares, each with a limiter of its own: what all of them start together."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from random import Random

import pytest

from stageflow import RateLimit
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter
from stageflow.replicas.shares import Shares
from stageflow.testing import run_virtual

ASKING = 0.25
LIFETIME = 1.0
LIMITS = [
    (RateLimit(per_second=1000), 7),
    (RateLimit(per_second=20), 60),
    (RateLimit(per_second=2), 300),
    (RateLimit(per_second=1), 300),
    (RateLimit(per_minute=12), 1200),
    (RateLimit(per_minute=1), 1800),
]
"""And for how many seconds each is tried."""


class Fleet:
    """Replicas that ask for shares of one limit, and start calls as fast as they may, on one clock.

    Args:
        callers: How many calls each replica has under way at a time; 0: it is idle.
        service: Seconds that a call takes.
    """

    def __init__(self, limit: RateLimit, callers: list[int], *, service: float = 0.05) -> None:
        assert limit.rate_per_second is not None
        self.limit, self.rate = limit, limit.rate_per_second
        self.callers, self.service = callers, service
        chance = Random(len(callers))
        self.starts: list[list[float]] = [[] for _ in callers]
        self.shares = Shares(lifetime=LIFETIME, smallest=min(1.0, 1.0 / self.rate), turn=1.0 / self.rate)
        self.phases = [chance.uniform(0, ASKING) for _ in callers]
        self.lost: dict[int, float] = {}
        self.worst = 0.0

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self, who: int, limiter: Limiter) -> None:
        while True:
            sent = self.now
            used, waiting = limiter.take_use()
            share = self.shares.ask(str(who), self.now, used=used, waiting=waiting)
            limiter.set_share(share)
            self.worst = max(self.worst, self.shares.outstanding(self.now))
            await asyncio.sleep(sent + ASKING - self.now)

    async def call(self, who: int, gate: Gate) -> None:
        while True:
            await gate.wait()
            self.starts[who].append(self.now)
            await asyncio.sleep(self.service)

    async def replica(self, who: int, phase: float, seconds: float) -> None:
        await asyncio.sleep(phase)
        limiter = Limiter(self.limit, asyncio.get_running_loop().time)
        gate = Gate(limiter, limiter.clock)
        try:
            async with asyncio.timeout(seconds - phase), asyncio.TaskGroup() as group:
                group.create_task(self.ask(who, limiter))
                for _ in range(self.callers[who]):
                    group.create_task(self.call(who, gate))
        except TimeoutError:
            self.shares.leave(str(who))

    def run(self, seconds: float) -> list[float]:
        """All starts of calls, in their order."""

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                for who in range(len(self.callers)):
                    self.shares.join(str(who), self.now)
                    group.create_task(self.replica(who, self.phases[who], self.lost.get(who, seconds)))

        run_virtual(main(), max_steps=20_000_000)
        return sorted(time for times in self.starts for time in times)


def most_within(starts: list[float], seconds: float, after: float = 0.0) -> int:
    """The most calls that started within any such time."""
    return max(
        (bisect_right(starts, first + seconds - 1e-9) - place for place, first in enumerate(starts) if first >= after),
        default=0,
    )


def fleet(limit: RateLimit, callers: list[int], seconds: float, **settings: float) -> tuple[Fleet, list[float]]:
    own = Fleet(limit, callers, **settings)
    starts = own.run(seconds)
    assert own.worst <= 1 + 1e-9
    return own, starts


def busy(limit: RateLimit) -> int:
    """Callers enough for the whole limit."""
    return max(4, int(0.2 * (limit.rate_per_second or 0)))


@pytest.mark.parametrize("count", [1, 2, 4, 6])
@pytest.mark.parametrize(("limit", "seconds"), LIMITS, ids=repr)
def test_together_they_use_the_limit_and_no_more(limit: RateLimit, seconds: float, count: int) -> None:
    own, starts = fleet(limit, [busy(limit)] * count, seconds)
    assert len(starts) >= 0.95 * own.rate * seconds - 1
    for window in (1.0, 10.0):
        # A burst is at least one call: one for each replica, and one for the rounding of the shares.
        assert most_within(starts, window) <= own.rate * window + limit.burst_calls + count
    assert most_within(starts, 1.0, after=5.0) <= max(1.1 * own.rate, own.rate + count)
    if own.rate * seconds >= 50 * count:
        assert min(map(len, own.starts)) >= 0.8 * max(map(len, own.starts)), list(map(len, own.starts))
    assert min(map(len, own.starts)) > 0


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize(("limit", "seconds"), LIMITS, ids=repr)
def test_one_that_has_work_alone_uses_nearly_all_of_it(limit: RateLimit, seconds: float, count: int) -> None:
    own, starts = fleet(limit, [busy(limit)] + [0] * (count - 1), seconds)
    assert len(starts) >= 0.9 * own.rate * seconds - 1
    late = [time for time in starts if time > seconds / 2]
    assert len(late) >= 0.9 * own.rate * seconds / 2 - 1, "it lived on its first burst"


@pytest.mark.parametrize("per_second", [1000.0, 20.0, 1.0])
def test_where_one_is_lost_the_others_have_its_part_and_no_more_starts_meanwhile(per_second: float) -> None:
    limit = RateLimit(per_second=per_second)
    own = Fleet(limit, [busy(limit)] * 3)
    own.lost[1] = 5.1
    starts = own.run(40 if per_second < 1000 else 12)
    end = 40 if per_second < 1000 else 12
    assert most_within(starts, 1.0, after=5.0) <= max(1.1 * per_second, per_second + 3)
    late = [time for time in starts if 7.0 < time <= end]
    assert len(late) >= 0.93 * per_second * (end - 7.0) - 1


@pytest.mark.parametrize("callers", [1, 2])
def test_with_few_callers_that_take_their_time_none_is_starved(callers: int) -> None:
    """20 a second for four that could make 10 or 20 each, by calls of 0.1 s: an asking seldom meets one that waits."""
    own, starts = fleet(RateLimit(per_second=20), [callers] * 4, 60, service=0.1)
    assert len(starts) >= 0.95 * 20 * 60
    assert min(map(len, own.starts)) >= 0.8 * max(map(len, own.starts)), list(map(len, own.starts))
