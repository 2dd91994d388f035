"""What the whole input would cost and take, by what a run over its first records came to. An estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from stageflow.counters import StageCounters
from stageflow.money import units
from stageflow.plan import Plan
from stageflow.report.stats import Forecast

__all__ = ["forecast"]

_QUICK_SECONDS: Final = 0.001
"""Calls that take less say nothing of how many would fit beside each other."""


def forecast(
    plan: Plan,
    counters: Mapping[str, StageCounters],
    *,
    total: int,
    settled: int,
    seconds: float,
    spent: int,
    before: int = 0,
) -> Forecast | None:
    """What ``total`` records come to.

    A short run is over before all workers have work. So its own rate is only the least that is possible: with all its
    workers busy, each stage would take as many worker seconds per record as it did, and the slowest decides, or the
    tightest rate limit, by the calls and tokens that a record took.

    What came from the cache counts as if it had been called for: of the other records nothing may be there.

    Args:
        settled: Records that took ``seconds``; >= 1.
        spent: What earlier runs have spent, which have settled ``before`` records.

    Returns:
        ``None`` where a stage made no call, since all came from its cache: what one would cost and take is not known.
    """
    stages = {name: _Calls(each) for name, each in counters.items()}
    if any(calls.first < 1 for calls in stages.values() if calls.cached):
        return None
    by_workers = min(_by_workers(plan, stages, settled), default=0.0)
    # With a cache its own rate may be more than calls allow.
    own = settled / max(seconds, 1e-9)
    from_cache = by_workers and any(calls.cached for calls in stages.values())
    per_second = by_workers if from_cache else max(own, by_workers)
    per_second = min(per_second, *_by_limits(plan, stages, settled), per_second)
    cost = spent + sum(calls.whole(calls.cost) for calls in stages.values())
    return Forecast(records=total, seconds=total / per_second, cost=units(round(cost)) * total / (settled + before))


class _Calls:
    """What the calls of a stage have used.

    Attributes:
        first: Calls that were no later attempts. ``cached``: those that were not made.
    """

    def __init__(self, counters: StageCounters) -> None:
        self.made = counters.made
        self.first = counters.made - counters.retries
        self.cached = counters.cached
        self.tokens = counters.tokens
        self.busy_seconds = counters.busy_seconds
        self.cost = counters.cost + counters.cost_unsure

    def whole(self, used: float) -> float:
        """What would have been used with those that were not made."""
        return used * (1 + self.cached / self.first) if self.cached else used


def _by_workers(plan: Plan, stages: Mapping[str, _Calls], settled: int) -> Iterator[float]:
    for name, stage in plan.stages.items():
        calls = stages[name]
        if calls.busy_seconds > _QUICK_SECONDS * calls.made:
            workers = 1 if stage.run == "inline" else stage.max_in_flight
            yield settled * workers / calls.whole(calls.busy_seconds)


def _by_limits(plan: Plan, stages: Mapping[str, _Calls], settled: int) -> Iterator[float]:
    limits = {id(stage.rate_limit): stage.rate_limit for stage in plan.stages.values()}
    for limit in filter(None, limits.values()):
        under = [stages[name] for name, stage in plan.stages.items() if stage.rate_limit is limit]
        for rate, used in (
            (limit.rate_per_second, sum(calls.whole(calls.made) for calls in under)),
            (limit.tokens_per_second, sum(calls.whole(calls.tokens) for calls in under)),
        ):
            if rate is not None and used:
                yield settled * rate / used
