"""Whatever the service does, and in whatever order: what a stage must hold to whose calls are made a second time."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest

from stageflow import Hedge, Pipeline, RateLimit, Retry, RunReport, drop
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.testing import run_virtual

SEEDS = range(250)
RECORDS = 80
EPS = 1e-6


class SteadyRetry(Retry):
    """Waits the same time before each attempt, so that a run can be repeated."""

    def delay(self, attempt: int, uniform: float, retry_after: float | None = None) -> float:
        return self.base


class Job:
    """A stage and its service by a seed.

    Attributes:
        begun: By record and attempt, when its calls began.
        gave: By record, what its calls gave.
        wrong: Where more calls were in flight than may be.
    """

    def __init__(self, seed: int) -> None:
        rng = self.random = random.Random(seed)
        self.most = rng.choice([1, 2, 3, 8, 30])
        self.extra = rng.choice([0.02, 0.1, 0.5, 1.0])
        self.tail, self.failing = rng.choice([0.02, 0.1, 0.3]), rng.choice([0.0, 0.1, 0.4])
        self.lingering, self.swallowing = rng.choice([0.0, 0.3]), rng.choice([0.0, 0.0, 0.1])
        self.per_second = rng.choice([None, None, 3.0, 20.0])
        self.flying = 0
        self.begun: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.gave: defaultdict[int, set[int]] = defaultdict(set)
        self.numbers = 0
        self.wrong: list[str] = []
        self.pipeline = Pipeline("hedged")
        self.pipeline.add_stage(
            "answer",
            self.answer,
            hedge=Hedge(extra=self.extra, quantile=rng.choice([0.5, 0.8, 0.95])),
            max_in_flight=self.most,
            queue_size=rng.choice([1, 4, 64]),
            timeout=rng.choice([3.0, 10.0, 600.0]),
            retry=rng.choice([None, SteadyRetry(3, base=0.5)]),
            rate_limit=RateLimit(per_second=self.per_second, burst=2) if self.per_second else None,
        )
        if rng.random() < 0.5:
            self.pipeline.add_stage("below", self.below, max_in_flight=1, queue_size=1)
        if rng.random() < 0.3:
            self.pipeline.add_stage("beside", self.beside, max_in_flight=4)

    async def below(self, answer: int) -> int:
        await asyncio.sleep(self.random.choice([0.0, 0.1, 2.0]))
        return answer

    async def beside(self, x: int) -> None:
        await asyncio.sleep(self.random.random())
        if self.random.random() < 0.05:
            raise ValueError("beside")

    async def answer(self, x: int, call: Any) -> Any:
        rng, loop = self.random, asyncio.get_running_loop()
        self.begun[x, call.attempt].append(loop.time())
        self.flying += 1
        if self.flying > self.most:
            self.wrong.append(f"{self.flying} calls at {loop.time()} s")
        slow = 50.0 if rng.random() < self.tail else 1.0
        fate, stays = rng.random(), rng.random() < self.swallowing
        try:
            await asyncio.sleep(rng.uniform(0.8, 1.2) * slow)
            if fate < self.failing:
                raise OSError("fate")
        except asyncio.CancelledError:
            if stays:
                # Till then it has its place, and then it is left behind.
                loop.call_later(SWALLOW_GRACE - EPS, self.leave)
                await asyncio.sleep(30.0)
                return -1
            if rng.random() < self.lingering:
                await asyncio.sleep(0.7)
            self.leave()
            raise
        except OSError:
            self.leave()
            raise
        self.leave()
        self.numbers += 1
        self.gave[x].add(self.numbers)
        return drop("odd") if fate > 0.98 else self.numbers

    def leave(self) -> None:
        self.flying -= 1


@cache
def run(seed: int) -> tuple[Job, RunReport, list[dict[str, Any]], list[dict[str, Any]]]:
    job, output, dead = Job(seed), list[dict[str, Any]](), list[dict[str, Any]]()
    report = run_virtual(job.pipeline.run([{"x": x} for x in range(RECORDS)], output, dead=dead), seed=seed)
    return job, report, output, dead


@pytest.fixture(autouse=True)
def _soon_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """After five calls it is known how long they take."""
    monkeypatch.setattr("stageflow.policies.hedging._KNOWN", 5)


def test_limits_are_kept_and_every_record_is_settled_once() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        job, report, output, dead = run(seed)
        stage = report.stages["answer"]
        assert job.wrong == [], f"seed {seed}"
        assert stage.peak_in_flight <= job.most, f"seed {seed}"
        account = [record["x"] for record in output] + [letter["index"] for letter in dead]
        assert len(account) == len(set(account)) == report.read - report.dropped - report.not_done, f"seed {seed}"
        assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled, f"seed {seed}"
        assert all(record["answer"] in job.gave[record["x"]] | {-1} for record in output), f"seed {seed}"
        assert report.read == RECORDS or report.stopped is not None, f"seed {seed}"
        counts["hedged"] += stage.hedged
        counts["won"] += stage.hedges_won
        counts["abandoned"] += stage.abandoned
        counts["retries"] += stage.retries
        counts["stopped"] += report.stopped is not None
    assert counts["hedged"] > counts["won"] > 500
    assert counts["abandoned"] > 20
    assert counts["retries"] > 1_000
    assert counts["stopped"] < len(SEEDS) / 4


def test_the_share_of_second_calls_is_kept_at_all_times() -> None:
    closest = 0.0
    for seed in SEEDS:
        job, report, *_ = run(seed)
        assert all(len(begun) <= 2 for begun in job.begun.values()), f"seed {seed}"
        firsts = sorted(begun[0] for begun in job.begun.values())
        seconds = sorted(at for begun in job.begun.values() for at in begun[1:])
        for made, at in enumerate(seconds, 1):
            allowed = job.extra * bisect_right(firsts, at)
            assert made <= allowed, f"seed {seed}, at {at} s"
            closest = max(closest, made / allowed)
        assert len(seconds) <= report.stages["answer"].hedged, f"seed {seed}"
    assert closest == 1.0


def test_second_calls_keep_to_the_rate_limit() -> None:
    limited = 0
    for seed in SEEDS:
        job, report, *_ = run(seed)
        if job.per_second is None:
            continue
        limited += report.stages["answer"].hedged
        begun = sorted(at for each in job.begun.values() for at in each)
        for place, at in enumerate(begun):
            within = bisect_right(begun, at + 5.0) - place
            assert within <= 5.0 * job.per_second + 2 + EPS, f"seed {seed}"
    assert limited > 100
