"""What second calls cost: each of the two pays for itself, and no budget is passed by them."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from paid_jobs import PaidJob

from stageflow import Hedge, Pipeline, Price, RunReport
from stageflow.money import amount_of
from stageflow.testing import run_virtual

MILLION = 1_000_000
SLOW = 120
"""The record whose first call is slow: by then it is known how long calls take."""

FREE = pytest.approx(0.0)


class PaidHedgedJob(PaidJob):
    """Calls that may be made twice are."""

    def _stage(self, name: str, taken: str, work: Any, settings: dict[str, Any]) -> None:
        if "batch" not in settings and not inspect.isasyncgenfunction(work):
            settings = {**settings, "hedge": Hedge(extra=1.0, quantile=0.5)}
        super()._stage(name, taken, work, settings)


@pytest.mark.parametrize("part", range(4))
def test_a_budget_is_never_passed_by_second_calls(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stageflow.policies.hedging._KNOWN", 5)
    hedged = stopped = 0
    for seed in range(part * 60, (part + 1) * 60):
        job = PaidHedgedJob(seed)
        budget = job.budget()
        wrong: list[str] = []

        def check(job: PaidJob = job, budget: float = budget, wrong: list[str] = wrong) -> None:
            if job.charged > amount_of(budget):
                wrong.append(f"{job.charged} of {budget} charged")

        job.on_charge = check
        records = [{"x": x} for x in range(40)]
        report = run_virtual(job.pipeline.run(records, [], dead=[], budget=budget), seed=seed if seed % 2 else None)
        assert not wrong, f"seed {seed}: {wrong[0]}"
        assert report.exit_code in (0, 3, 4), f"seed {seed}"
        assert report.read == report.written + report.dropped + report.dead + report.not_done, f"seed {seed}"
        known, most = amount_of(report.cost), amount_of(report.cost + report.cost_unsure)
        assert known <= job.charged <= most <= amount_of(budget), f"seed {seed}"
        hedged += sum(stage.hedged for stage in report.stages.values())
        stopped += report.exit_code == 4
    assert hedged > 100
    assert stopped > 0


def hedged_run(first: Any, second: Any, **options: Any) -> RunReport:
    """All calls take a second and tell of nothing used, but those for one record."""
    pipeline = Pipeline("paid", prices={"small": Price(input=1.0, output=2.0)})
    made: list[int] = []

    @pipeline.stage(model="small", max_tokens=(MILLION, 0), max_in_flight=4, hedge=0.5, timeout=20.0)
    async def answer(x: int, call: Any) -> int:
        made.append(x)
        if x == SLOW:
            await (first if made.count(x) == 1 else second)(call)
        else:
            await asyncio.sleep(1.0)
            call.report(tokens=0)
        return x

    records = [{"x": x} for x in range(SLOW + 1)]
    report = run_virtual(pipeline.run(records, [], dead=[], **options))
    assert report.stages["answer"].hedged == 1
    return report


def tells(seconds: float, used: int, *, before: int = 0, fails: bool = False) -> Any:
    """A call that tells what it used at its end, and perhaps something at its beginning."""

    async def telling(call: Any) -> None:
        if before:
            call.report(input_tokens=before)
        await asyncio.sleep(seconds)
        if used:
            call.report(input_tokens=used)
        if fails:
            raise OSError("no")

    return telling


HALF, QUARTER = MILLION // 2, MILLION // 4


@pytest.mark.parametrize(
    ("first", "second", "cost", "unsure"),
    [
        (tells(50.0, HALF), tells(1.0, QUARTER), 0.25, 1.0),  # the loser is cut, and told nothing
        (tells(50.0, HALF, before=QUARTER), tells(1.0, QUARTER), 0.5, 0.75),  # or not all
        (tells(1.5, QUARTER), tells(50.0, HALF), 0.25, 1.0),
        (tells(1.5, QUARTER), tells(50.0, HALF, before=QUARTER), 0.5, 0.75),
        (tells(1.5, HALF, fails=True), tells(2.0, QUARTER), 0.75, 0.0),  # who ends by himself tells all
        (tells(4.0, HALF), tells(1.0, QUARTER, fails=True), 0.75, 0.0),
        (tells(4.0, HALF, fails=True), tells(1.0, QUARTER, fails=True), 0.75, 0.0),
        (tells(50.0, HALF, before=QUARTER), tells(50.0, HALF, before=QUARTER), 0.5, 1.5),  # by the timeout
    ],
)
def test_both_calls_are_in_the_account(first: Any, second: Any, cost: float, unsure: float) -> None:
    report = hedged_run(first, second, budget=1000)
    assert (report.cost, report.cost_unsure) == (pytest.approx(cost), pytest.approx(unsure))
    assert report.stages["answer"].tokens == round(cost * MILLION)
    without = hedged_run(first, second)
    assert (without.cost, without.cost_unsure) == (pytest.approx(cost), FREE)


def test_no_second_call_is_made_that_the_budget_does_not_hold() -> None:
    pipeline = Pipeline("paid", prices={"small": Price(input=1.0, output=2.0)})
    begun: list[int] = []

    @pipeline.stage(model="small", max_tokens=(MILLION, 0), max_in_flight=4, hedge=0.5)
    async def answer(x: int, call: Any) -> int:
        begun.append(x)
        await asyncio.sleep(50.0 if x == SLOW else 1.0)
        call.report(tokens=0)
        return x

    records = [{"x": x} for x in range(SLOW + 1)]
    report = run_virtual(pipeline.run(records, [], budget=1))
    assert begun.count(SLOW) == 1
    assert (report.exit_code, report.written) == (0, SLOW + 1)


def test_a_report_of_a_second_call_that_comes_late_is_known_and_of_no_other() -> None:
    async def stays(call: Any) -> None:
        try:
            await asyncio.sleep(50.0)
        except asyncio.CancelledError:
            await asyncio.sleep(8.0)
            call.report(input_tokens=QUARTER)

    pipeline = Pipeline("paid", prices={"small": Price(input=1.0, output=2.0)})
    made: list[int] = []

    @pipeline.stage(model="small", max_tokens=(MILLION, 0), max_in_flight=4, hedge=0.5)
    async def answer(x: int, call: Any) -> int:
        made.append(x)
        if x == SLOW and made.count(x) == 2:
            await stays(call)
        await asyncio.sleep(2.5 if x == SLOW else 1.0)
        call.report(tokens=0)
        return x

    records = [{"x": x} for x in range(SLOW + 60)]
    report = run_virtual(pipeline.run(records, [], budget=1000))
    stage = report.stages["answer"]
    assert (stage.hedged, stage.hedges_won, stage.abandoned) == (1, 0, 1)
    assert (report.cost, report.cost_unsure, stage.tokens) == (0.0, 1.0, QUARTER)


def test_a_second_call_that_was_ended_before_it_began_costs_nothing() -> None:
    """The first answers at the very moment at which it takes long."""
    unbegun = 0
    for seed in range(30):
        begun: list[int] = []
        pipeline = Pipeline("paid", prices={"small": Price(input=1.0, output=2.0)})

        @pipeline.stage(model="small", max_tokens=(MILLION, 0), max_in_flight=4, hedge=0.5)
        async def answer(x: int, call: Any, begun: list[int] = begun) -> int:
            begun.append(x)
            await asyncio.sleep(2.0**0.125 if x == SLOW else 1.0)
            call.report(tokens=0)
            return x

        records = [{"x": x} for x in range(SLOW + 1)]
        report = run_virtual(pipeline.run(records, [], budget=1000), seed=seed)
        if report.stages["answer"].hedged and begun.count(SLOW) == 1:
            unbegun += 1
            assert report.cost_unsure == 0.0, f"seed {seed}"
    assert unbegun


def test_a_second_call_that_outlives_the_run_counts_in_full() -> None:
    async def stays(call: Any) -> None:
        end = asyncio.get_running_loop().time() + 60.0
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue

    pipeline = Pipeline("paid", prices={"small": Price(input=1.0, output=2.0)})
    made: list[int] = []

    @pipeline.stage(model="small", max_tokens=(MILLION, 0), max_in_flight=4, hedge=0.5, on_error="abort")
    async def answer(x: int, call: Any) -> int:
        made.append(x)
        if x == SLOW:
            await (stays(call) if made.count(x) == 2 else asyncio.sleep(1000.0))
        await asyncio.sleep(1.0)
        call.report(tokens=0)
        if x > SLOW:
            raise ValueError("no")
        return x

    records = [{"x": x} for x in range(SLOW + 2)]

    async def main() -> RunReport:
        report = await pipeline.run(records, [], dead=[], budget=1000, grace=5.0)
        await asyncio.sleep(100.0)  # it ends at last, and nobody hears of it
        return report

    report = run_virtual(main())
    stage = report.stages["answer"]
    assert (report.exit_code, report.written, report.not_done, stage.hedged) == (4, SLOW, 2, 1)
    assert (report.cost, report.cost_unsure) == (0.0, 2.0)
