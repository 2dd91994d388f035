"""A budget is a total over all runs of one command: the ledger keeps what was spent."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from ledgers import ledger_lines
from paid_jobs import PaidJob

from stageflow import Pipeline, Price, RunReport
from stageflow.ledger.status import status
from stageflow.money import amount_of
from stageflow.testing import run_virtual

RECORDS = 60
PRICES = {"m": Price(input=1.0, output=1.0)}
FILES = ("out.jsonl.ledger", "out.jsonl.partial", "out.jsonl.dead.jsonl")
"""The ledger first: what a kill leaves of the others may be more than it tells of, and never less."""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"x": n}) + "\n" for n in range(RECORDS)))


class Killed:
    """What a kill at some moment would have left, and what the service had charged by then."""

    def __init__(self, job: PaidJob) -> None:
        self.job = job
        self.at: float | None = None
        self.charged = self.flying = 0

    def happen(self) -> None:
        self.at = asyncio.get_running_loop().time()
        self.charged, self.flying = self.job.charged, sum(self.job.flying.values())
        Path("left").mkdir()
        for name in FILES:
            if Path(name).exists():
                shutil.copy(name, "left")

    def restore(self) -> None:
        """Let the files be as they were."""
        for path in Path().glob("out.jsonl*"):
            path.unlink()
        for path in Path("left").iterdir():
            shutil.copy(path, path.name)
        shutil.rmtree("left")


async def run_until(job: PaidJob, killed: Killed, at: float, **options: Any) -> None:
    timer = asyncio.get_running_loop().call_later(at, killed.happen)
    try:
        await job.pipeline.run("in.jsonl", "out.jsonl", grace=0.0, **options)
    finally:
        timer.cancel()


def run_again(job: PaidJob, **options: Any) -> RunReport:
    return run_virtual(job.pipeline.run("in.jsonl", "out.jsonl", **options))


def clean_up() -> None:
    for path in Path().glob("out.jsonl*"):
        path.unlink()


def test_a_run_that_is_killed_and_resumed_spends_at_most_the_calls_in_flight_more() -> None:
    kills = stopped = 0
    for seed in range(120):
        job, rng = PaidJob(seed), random.Random(seed)
        budget = job.budget()
        killed = Killed(job)
        run_virtual(
            run_until(job, killed, rng.choice([0.005, 0.055, 0.1, 0.31, 0.7, 2.3]) + rng.random(), budget=budget)
        )
        if killed.at is None:
            clean_up()
            continue
        kills += 1
        killed.restore()
        job.charged, job.excess = killed.charged, 0
        job.flying.clear()
        report = run_again(job, budget=budget)
        assert job.charged <= amount_of(budget) + killed.flying, f"seed {seed}"
        known, most = report.cost + report.cost_earlier, report.cost_unsure + report.cost_unsure_earlier
        assert known + most <= budget + 1e-12, f"seed {seed}"
        stopped += report.exit_code == 4
        clean_up()
    assert kills > 30
    assert stopped > 10


def paid_pipeline(calls: list[int], *, used: int = 1_000_000) -> Pipeline:
    pipeline = Pipeline("paid", prices=PRICES)

    @pipeline.stage(model="m", max_tokens=(1_000_000, 0), max_in_flight=4)
    async def answer(x: int, call: Any) -> int:
        calls.append(x)
        await asyncio.sleep(0.1)
        call.report(input_tokens=used)
        return x

    return pipeline


def test_a_higher_budget_goes_on_where_the_lower_one_ended() -> None:
    calls: list[int] = []
    pipeline = paid_pipeline(calls)
    first = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=20))
    assert (len(calls), first.exit_code, first.cost, first.cost_earlier) == (20, 4, 20.0, 0.0)
    assert first.stopped == 'the budget of 20.00 is spent, and a call of "answer" may cost 1.00'
    same = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=20))
    assert (len(calls), same.exit_code, same.cost, same.cost_earlier) == (20, 4, 0.0, 20.0)
    more = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=25))
    assert (len(calls), more.exit_code, more.cost, more.cost_earlier) == (25, 4, 5.0, 20.0)
    rest = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=61))
    assert (len(calls), rest.exit_code, rest.cost, rest.cost_earlier) == (60, 0, 35.0, 25.0)
    assert sorted(calls) == list(range(RECORDS))
    assert [json.loads(line)["answer"] for line in Path("out.jsonl").read_text().splitlines()] == list(range(RECORDS))


def test_what_was_spent_without_a_budget_counts_when_there_is_one() -> None:
    calls: list[int] = []
    pipeline = paid_pipeline(calls)
    first = run_virtual(pipeline.run("in.jsonl", "out.jsonl", limit=12))
    assert (first.cost, status("out.jsonl").cost) == (12.0, 12.0)
    second = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=20))
    assert (len(calls), second.exit_code) == (20, 4)
    assert status("out.jsonl").cost == 20.0


def test_a_run_that_spent_and_wrote_nothing_is_remembered() -> None:
    """Two stages, and money for the first one only: no record is done, but the calls were made."""
    pipeline = Pipeline("two", prices=PRICES)
    made: list[str] = []

    @pipeline.stage(model="m", max_tokens=(3_000_000, 0), max_in_flight=1)
    async def read(x: int, call: Any) -> int:
        made.append("read")
        await asyncio.sleep(0.1)
        call.report(input_tokens=3_000_000)
        return x

    @pipeline.stage(model="m", max_tokens=(30_000_000, 0))
    async def write(read: int, call: Any) -> int:
        made.append("write")
        return read

    report = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=10))
    assert (report.written, report.not_done > 0, report.exit_code) == (0, True, 4)
    assert (made, report.cost) == (["read", "read"], 6.0), "what can't be finished is not begun any more"
    again = run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=10))
    assert again.cost_earlier == 6.0


def test_calls_in_flight_stand_in_the_ledger_with_the_most_they_may_cost() -> None:
    """Four at a time, staggered; the line after the first that has ended counts the three others."""
    pipeline = Pipeline("paid", prices=PRICES)

    @pipeline.stage(model="m", max_tokens=(1_000_000, 0), max_in_flight=4)
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(1 + x / 10)
        call.report(input_tokens=250_000)
        return x

    run_virtual(pipeline.run("in.jsonl", "out.jsonl", budget=4.5, limit=4))
    told = [(line["k"], line["u"]) for line in ledger_lines(Path("out.jsonl.ledger")) if line["t"] == "b"]
    cents = [(float(known), float(unsure)) for known, unsure in told]
    assert cents == [(0.25, 3.0), (0.5, 2.0), (0.75, 1.0), (1.0, 0.0)]


def test_without_prices_the_ledger_is_what_it_was() -> None:
    pipeline = Pipeline("free")

    @pipeline.stage
    async def answer(x: int, call: Any) -> int:
        call.report(input_tokens=3)
        return x

    report = run_virtual(pipeline.run("in.jsonl", "out.jsonl"))
    assert {line["t"] for line in ledger_lines(Path("out.jsonl.ledger"))} == {"h", "s", "i", "c", "f"}
    assert (report.stages["answer"].tokens, report.stages["answer"].input_tokens) == (180, 180)
