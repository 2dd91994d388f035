"""The setting ``hedge``: how it is given, what is refused, and where it is told of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stageflow import Batch, DefinitionError, Hedge, Pipeline, SettingError
from stageflow.cli import invoke
from stageflow.counters import StageCounters
from stageflow.engine.pool import Pool
from stageflow.fingerprint import changes, job_identity
from stageflow.loader import load
from stageflow.plan import Override
from stageflow.report.listing import describe_plan
from stageflow.report.stats import StageReport
from stageflow.report.table import tables
from stageflow.testing import run_virtual

ROOT = Path(__file__).resolve().parents[1]


async def nothing(x: Any) -> None: ...


def staged(handler: Any = nothing, **settings: Any) -> Pipeline:
    pipeline = Pipeline("hedged")
    pipeline.add_stage("f", handler, **settings)
    return pipeline


# How it is given


@pytest.mark.parametrize(
    ("given", "hedge"),
    [(None, None), (0.03, Hedge(extra=0.03)), (1, Hedge(extra=1)), (Hedge(0.1, quantile=0.9), Hedge(0.1, 0.9))],
)
def test_a_number_is_the_most_extra_calls(given: Any, hedge: Hedge | None) -> None:
    assert staged(hedge=given).plan().stages["f"].hedge == hedge


@pytest.mark.parametrize("given", [0, -0.1, 1.5, 3, True, "0.03", float("nan"), Hedge])
def test_what_is_no_share_is_refused(given: Any) -> None:
    with pytest.raises(SettingError, match="hedge must be Hedge") as caught:
        staged(hedge=given)
    assert caught.value.hint == "its default is none"


def test_it_may_be_set_from_outside() -> None:
    plan = staged(hedge=0.1).plan([Override("f", "hedge", 0.02, "--set")])
    assert plan.stages["f"].hedge == Hedge(extra=0.02)
    assert plan.stages["f"].origins["hedge"] == "--set"
    assert "hedge = Hedge(extra=0.02, quantile=0.95)  (--set)" in describe_plan(plan)
    assert "hedge =" not in describe_plan(staged().plan())


# What is refused


async def children(x: Any) -> Any:
    yield x


def plain(x: Any) -> None: ...


@pytest.mark.parametrize(
    ("handler", "settings", "why"),
    [
        (nothing, {"batch": Batch(2)}, "over a batch"),
        (children, {}, "of a generator"),
        (plain, {}, 'as "thread"'),
        (plain, {"run": "inline"}, 'as "inline"'),
        (plain, {"run": "process"}, 'as "process"'),
    ],
)
def test_where_a_second_call_is_not_possible(handler: Any, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        staged(handler, hedge=0.03, **settings).plan()
    assert f'stage "f" has hedge=, and a second call is not possible {why}' in str(caught.value)
    assert "test_hedge_setting.py" in str(caught.value)
    assert "leave hedge= out" in (caught.value.hint or "")
    staged(handler, **settings).plan()


def test_the_context_style_has_none() -> None:
    @dataclass
    class Context:
        x: int
        y: int = 0

    pipeline = Pipeline("styled", context=Context)

    @pipeline.stage(hedge=0.03)
    async def fill(ctx: Context) -> None:
        ctx.y = ctx.x

    with pytest.raises(DefinitionError, match="in the context style"):
        pipeline.plan()


# What it is no part of


JOB = """
from stageflow import Hedge, Pipeline

LIMIT = Hedge(extra=0.03)
pipeline = Pipeline("job")

@pipeline.stage(max_in_flight=4, hedge=LIMIT)
async def answer(x):
    return x
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [("extra=0.03", "extra=0.1, quantile=0.5"), ("hedge=LIMIT", "hedge=0.2"), (", hedge=LIMIT", "")],
)
def test_it_only_sets_the_pace(before: str, after: str, tmp_path: Path) -> None:
    identities = []
    for place, text in enumerate([JOB, JOB.replace(before, after)]):
        (tmp_path / str(place)).mkdir()
        path = tmp_path / str(place) / "job.py"
        path.write_text(text)
        identities.append(job_identity(load(str(path)).pipeline.plan()))
    assert changes(*identities) == []


def test_a_stage_without_it_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, set[str]] = {}
    start = Pool.start_worker

    def remember(self: Pool) -> None:
        start(self)
        kinds.setdefault(self.stage.name, set()).update(type(worker).__name__ for worker in self._present)
        assert (self.hedges is None) == (self.stage.hedge is None) == self.pace.ever

    monkeypatch.setattr(Pool, "start_worker", remember)
    pipeline = staged()
    pipeline.add_stage("g", nothing, hedge=0.03)
    run_virtual(pipeline.run([{"x": x} for x in range(200)], []))
    assert kinds == {"f": {"Worker"}, "g": {"HedgingWorker"}}


# What is told of it


def report(**counts: int) -> StageReport:
    counters = StageCounters()
    for name, value in counts.items():
        setattr(counters, name, value)
    sizes = {"max_in_flight": 1, "queue_size": 1, "received": 1, "peak_depth": 0, "seconds": 1.0}
    return StageReport.of(counters, name="f", **sizes)  # type: ignore[arg-type]


def test_the_table_shows_second_calls_where_there_are_any() -> None:
    (with_them,) = tables([report(hedged=1_234, hedges_won=1_200)], 200)
    title, row = with_them.split("\n")[-2:]
    assert "hedged" in title
    assert "1,234" in row
    assert "1,200" in row
    assert "hedge" not in tables([report()], 200)[0]


def test_counts_of_several_processes_are_added() -> None:
    whole, part = StageCounters(), StageCounters()
    whole.hedged, whole.hedges_won, part.hedged, part.hedges_won = 3, 2, 5, 1
    part.count_hedge(2.5)
    whole.add(part)
    assert (whole.hedged, whole.hedges_won, whole.busy_seconds) == (8, 3, 2.5)
    assert whole.latency.quantile(1.0) is None


PROCESSES = """
import asyncio
from stageflow import Pipeline

pipeline = Pipeline("job")
made = set()

@pipeline.stage(max_in_flight=16, hedge=0.1)
async def answer(x):
    slow = x % 40 == 39 and x not in made
    made.add(x)
    await asyncio.sleep(0.4 if slow else 0.01)
    return x
"""


def test_with_several_processes_the_share_is_kept_in_each_and_so_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.py").write_text(PROCESSES)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"x": x}) + "\n" for x in range(1_000)))
    words = ["run", "job.py", "in.jsonl", "-o", "out.jsonl", "--processes", "2", "--summary", "json"]
    ended = subprocess.run(
        [sys.executable, "-m", "stageflow", *words, "--progress", "off"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    summary = json.loads(ended.stdout)
    stage = summary["stages"]["answer"]
    assert stage["passed"] == 1_000
    assert 0 < stage["hedges_won"] <= stage["hedged"] <= 0.1 * 1_000
    monkeypatch.chdir(tmp_path)
    assert invoke(["check", "job.py", "in.jsonl", "--set", "answer.hedge=0.2"]) == 0
    assert "hedge = Hedge(extra=0.2, quantile=0.95)  (--set)" in capsys.readouterr().out


def test_what_is_kept_needs_no_call_and_no_second_one(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        """
import asyncio
from stageflow import Pipeline

pipeline = Pipeline("both")
calls = []


@pipeline.stage(cache=True, hedge=0.1, max_in_flight=16)
async def ask(n: int) -> int:
    calls.append(n)
    await asyncio.sleep(0.2 if n % 50 == 49 and calls.count(n) == 1 else 0.002)
    return n
"""
    )
    pipeline = load(str(job)).pipeline
    calls = pipeline.plan().stages["ask"].handler.__globals__["calls"]
    records = [{"n": n} for n in range(400)]
    reports = []
    for _ in range(2):
        calls.clear()
        out: list[dict[str, Any]] = []
        reports.append(pipeline.run_sync(records, out, cache=str(tmp_path / "results.sqlite3")).stages["ask"])
        assert sorted(record["ask"] for record in out) == list(range(400))
    first, second = reports
    assert 0 < first.hedged <= 40
    assert calls == []
    assert (second.cached, second.calls, second.hedged) == (400, 0, 0)
