"""A run whose replicas are elsewhere, with an engine that is in this process: whatever happens, the output is exact."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from stageflow.cluster.sharded import Sharded
from stageflow.errors import RequestError
from stageflow.loader import load
from stageflow.report.stats import RunReport
from tests.cluster.in_process import LEASE, InProcess, Quick

JOB = """
import asyncio
from stageflow import Pipeline, RateLimit

pipeline = Pipeline("numbers")
calls = []
slow = set()


@pipeline.stage(max_in_flight=8)
async def double(n: int) -> int:
    calls.append(n)
    await asyncio.sleep(0.1 if n in slow else 0.001)
    if n % 50 == 13:
        raise ValueError("unlucky")
    return 2 * n
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    made = Quick()
    monkeypatch.setattr(Sharded, "_engine", lambda self, tell: made)
    return made


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job beside an input of 1,000 records."""
    path = tmp_path / "job.py"
    path.write_text(JOB)
    (tmp_path / "in.jsonl").write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(1000)))
    return path


def start(
    job: Path, engine: InProcess, during: Callable[[], Awaitable[None]] | None = None, **options: Any
) -> tuple[RunReport, list[int]]:
    """Run it over two replicas; what is done to them meanwhile. The report, and what ``double`` was called with."""
    pipeline = load(str(job)).pipeline
    calls: list[int] = pipeline.plan().stages["double"].handler.__globals__["calls"]
    calls.clear()
    given = {"engine": "ray", "nodes": 2, "shard_bytes": 500, **options}

    async def run() -> RunReport:
        meddling = asyncio.create_task(during()) if during is not None else None
        report = await pipeline.run(str(job.parent / "in.jsonl"), str(job.parent / "out"), **given)
        if meddling is not None:
            await meddling
        return report

    return asyncio.run(run()), calls


def slow_down(job: Path, numbers: Iterable[int]) -> None:
    load(str(job)).pipeline.plan().stages["double"].handler.__globals__["slow"].update(numbers)


def output(job: Path) -> list[int]:
    """The results, in the order of the parts."""
    paths = sorted((job.parent / "out").glob("part-*.jsonl"))
    return [json.loads(line)["n"] for path in paths for line in path.read_bytes().splitlines()]


def dead(job: Path) -> list[int]:
    paths = sorted((job.parent / "out/dead").glob("part-*.jsonl"))
    return [json.loads(line)["record"]["n"] for path in paths for line in path.read_bytes().splitlines()]


def is_exact(job: Path) -> None:
    unlucky = list(range(13, 1000, 50))
    assert output(job) == [n for n in range(1000) if n not in unlucky]
    assert dead(job) == unlucky
    assert (job.parent / "out/_SUCCESS").exists()


def test_two_replicas_make_what_one_run_makes(job: Path, engine: InProcess) -> None:
    report, calls = start(job, engine)
    is_exact(job)
    assert sorted(calls) == list(range(1000))
    assert (report.read, report.written, report.dead, report.exit_code) == (1000, 980, 20, 3)
    assert report.stages["double"].received == 1000
    assert {report.who for report in engine.reports} == {"replica-1", "replica-2"}


def test_the_same_command_again_has_nothing_to_do(job: Path, engine: InProcess) -> None:
    start(job, engine)
    report, calls = start(job, engine)
    assert report.already_complete
    assert calls == []


def test_a_replica_that_dies_loses_what_it_had_and_no_more(job: Path, engine: InProcess) -> None:
    async def kill() -> None:
        await engine.committed(3)
        engine.kill("replica-1")

    _, calls = start(job, engine, kill)
    is_exact(job)
    assert "replica-3" in {report.who for report in engine.reports}
    again = [n for n, times in Counter(calls).items() if times > 1]
    assert 0 < len(again) <= 3 * 56  # it reads one shard while the tail of the one before is in flight


def test_a_replica_that_was_silent_for_too_long_changes_nothing_when_it_is_back(job: Path, engine: InProcess) -> None:
    slow_down(job, range(100, 1000, 9))

    async def deafen() -> None:
        await engine.committed(3)
        engine.deaf.add("replica-1")
        await asyncio.sleep(2 * LEASE)
        engine.deaf.clear()

    start(job, engine, deafen)
    is_exact(job)


def test_a_coordinator_that_is_restarted_knows_the_commits_and_takes_over_the_leases(
    job: Path, engine: InProcess
) -> None:
    async def restart() -> None:
        await engine.committed(3)
        engine.restart_coordinator()

    _, calls = start(job, engine, restart)
    is_exact(job)
    assert sorted(calls) == list(range(1000))  # nobody had to do anything twice


def test_what_is_stopped_is_gone_on_with(job: Path, engine: InProcess) -> None:
    slow_down(job, range(500, 1000))
    report, calls = start(job, engine, max_failure_rate=0.005)
    assert report.exit_code == 4
    assert 0 < report.written < 980
    assert not (job.parent / "out/_SUCCESS").exists()
    first = len(calls)
    slow_down(job, ())
    again, calls = start(job, engine)
    assert again.earlier == report.written + report.dead
    is_exact(job)
    assert first + len(calls) <= 1000 + 4 * 56


def test_a_stage_that_aborts_ends_the_run(job: Path, engine: InProcess) -> None:
    report, _ = start(job, engine, settings={"double": {"on_error": "abort"}})
    assert report.exit_code == 4
    assert report.stopped is not None
    assert "unlucky" in report.stopped
    assert not (job.parent / "out/_SUCCESS").exists()


def test_a_limit_in_flight_for_all_is_divided(job: Path, engine: InProcess) -> None:
    report, _ = start(job, engine, max_in_flight_total={"double": 6})
    assert report.stages["double"].peak_in_flight <= 6
    with pytest.raises(RequestError, match="not one for each of 2 replicas"):
        start(job, engine, max_in_flight_total={"double": 1})
    with pytest.raises(RequestError, match="there is no stage"):
        start(job, engine, max_in_flight_total={"doubel": 4})


def test_a_rate_limit_holds_for_all_replicas_together(job: Path, engine: InProcess) -> None:
    job.write_text(JOB.replace("max_in_flight=8", "rate_limit=RateLimit(per_second=1000, burst=1)"))
    report, _ = start(job, engine)
    is_exact(job)
    assert report.seconds > 0.9


def test_a_replica_with_another_job_is_refused(job: Path, engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    import stageflow.cluster.replica as module

    monkeypatch.setattr(module, "changes", lambda before, now: ['stage "double"'])
    with pytest.raises(RequestError, match="another one on the machine of a replica"):
        start(job, engine)
