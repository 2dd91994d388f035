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
    cost: int,
    before: int = 0,
) -> Forecast:
    """What ``total`` records come to.

    A short run is over before all workers have work. So its own rate is only the least that is possible: with all its
    workers busy, each stage would take as many worker seconds per record as it did, and the slowest decides, or the
    tightest rate limit, by the calls and tokens that a record took.

    Args:
        settled: Records that took ``seconds``; >= 1.
        cost: The amount that these cost, and ``before`` records that earlier runs have settled.
    """
    per_second = max(settled / max(seconds, 1e-9), min(_by_workers(plan, counters, settled), default=0.0))
    per_second = min(per_second, *_by_limits(plan, counters, settled), per_second)
    return Forecast(records=total, seconds=total / per_second, cost=units(cost) * total / (settled + before))


def _by_workers(plan: Plan, counters: Mapping[str, StageCounters], settled: int) -> Iterator[float]:
    for name, stage in plan.stages.items():
        busy = counters[name].busy_seconds
        if busy > _QUICK_SECONDS * _calls(counters[name]):
            workers = 1 if stage.run == "inline" else stage.max_in_flight
            yield settled * workers / busy


def _by_limits(plan: Plan, counters: Mapping[str, StageCounters], settled: int) -> Iterator[float]:
    limits = {id(stage.rate_limit): stage.rate_limit for stage in plan.stages.values()}
    for limit in filter(None, limits.values()):
        under = [counters[name] for name, stage in plan.stages.items() if stage.rate_limit is limit]
        for rate, used in (
            (limit.rate_per_second, sum(map(_calls, under))),
            (limit.tokens_per_second, sum(each.tokens for each in under)),
        ):
            if rate is not None and used:
                yield settled * rate / used


def _calls(counters: StageCounters) -> int:
    return counters.latency.instant + sum(counters.latency.counts)
