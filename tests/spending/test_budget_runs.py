"""A budget over random jobs on the virtual clock: it is never passed, and the account is the service's own."""

from __future__ import annotations

import asyncio

import pytest
from paid_jobs import PaidJob

from stageflow import Pipeline, Price, RunReport
from stageflow.money import amount_of
from stageflow.testing import run_virtual

RUNS = 1_000
RECORDS = 40


def run(job: PaidJob, budget: float | None, seed: int | None = None) -> tuple[RunReport, list[str]]:
    wrong: list[str] = []
    total = amount_of(budget) if budget is not None else None

    def check() -> None:
        if total is not None and job.charged > total + job.excess:
            wrong.append(f"{job.charged} of {total} charged, {job.excess} of it beyond max_tokens")

    job.on_charge = check
    records = [{"x": n} for n in range(RECORDS)]
    out: list[object] = []
    report = run_virtual(job.pipeline.run(records, out, dead=[], budget=budget), seed=seed)
    return report, wrong


@pytest.mark.parametrize("part", range(10))
def test_a_budget_is_never_passed(part: int) -> None:
    """Calls that report, fail, hang and say nothing; what the service charges counts when the call begins."""
    stopped = 0
    for seed in range(part * RUNS // 10, (part + 1) * RUNS // 10):
        job = PaidJob(seed)
        budget = job.budget()
        report, wrong = run(job, budget, seed if seed % 2 else None)
        assert not wrong, f"seed {seed}: {wrong[0]}"
        assert report.exit_code in (0, 3, 4), f"seed {seed}"
        assert report.read == report.written + report.dropped + report.dead + report.not_done, f"seed {seed}"
        known, most = amount_of(report.cost), amount_of(report.cost + report.cost_unsure)
        assert known <= job.charged <= most <= amount_of(budget), f"seed {seed}"
        stopped += report.exit_code == 4
        if report.exit_code == 4:
            assert report.stopped is not None
            assert report.stopped.startswith("the budget of "), f"seed {seed}: {report.stopped}"
            assert sum(stage.over for stage in report.stages.values()) == 0
    assert 20 < stopped < 90, "the budgets are too large, or too small, to say much"


def test_only_a_call_that_uses_more_than_it_may_passes_a_budget() -> None:
    passed = 0
    for seed in range(200):
        job = PaidJob(seed, greedy=True)
        budget = job.budget()
        report, wrong = run(job, budget)
        assert not wrong, f"seed {seed}: {wrong[0]}"
        over = sum(stage.over for stage in report.stages.values())
        passed += job.charged > amount_of(budget)
        assert over or job.charged <= amount_of(budget), f"seed {seed}"
    assert passed


def test_the_summary_has_what_the_service_has_counted() -> None:
    """Where every call tells what it used: to the last token, with and without a budget."""
    for seed in range(200):
        for limited in (True, False):
            job = PaidJob(seed, honest=True)
            budget = job.budget() if limited else None
            report, _ = run(job, budget)
            if job.flying:
                continue
            assert amount_of(report.cost) == job.charged, f"seed {seed}"
            assert report.cost_unsure == 0, f"seed {seed}"
            assert sum(stage.untold for stage in report.stages.values()) == 0


def test_money_is_used_to_the_end() -> None:
    """One call at a time, each half of what it may cost: the last one starts while a whole one still fits."""
    pipeline = Pipeline("one", prices={"m": Price(input=1, output=1)})
    started: list[float] = []

    @pipeline.stage(max_tokens=1_000_000, max_in_flight=4)
    async def call_it(x: int, call: object) -> None:
        started.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        call.report(input_tokens=500_000)  # type: ignore[attr-defined]

    report = run_virtual(pipeline.run([{"x": n} for n in range(40)], [], budget=4.9))
    # Four fit; half of what each has set aside comes back: then two fit, and then one at a time.
    assert started == [0.0] * 4 + [1.0] * 2 + [2.0, 3.0]
    assert (report.cost, report.exit_code) == (4.0, 4)
    assert report.stopped == 'the budget of 4.90 is spent but for 0.90, and a call of "call_it" may cost 1.00'
