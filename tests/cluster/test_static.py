"""Several runs over one input that know nothing of each other: together they make what one makes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stageflow.cli import cli
from stageflow.errors import RequestError, StateMismatch
from stageflow.loader import load
from stageflow.report.stats import RunReport
from tests.running import Running

JOB = """
import asyncio, os
from stageflow import Pipeline, RateLimit

pipeline = Pipeline("numbers")


@pipeline.stage(max_in_flight=8)
async def double(n: int) -> int:
    if calls := os.environ.get("CALLS"):
        with open(calls, "a") as file:
            print(n, file=file)
    await asyncio.sleep({seconds})
    if n % 50 == 13:
        raise ValueError("unlucky")
    return 2 * n
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job beside an input of 1,000 records."""
    path = tmp_path / "job.py"
    path.write_text(JOB.format(seconds=0))
    (tmp_path / "in.jsonl").write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(1000)))
    return path


def start(job: Path, place: str, out: str = "out", **options: Any) -> RunReport:
    folder = job.parent
    pipeline = load(str(job)).pipeline
    given = {"engine": "static", "shard": place, "shard_bytes": 500, **options}
    return asyncio.run(pipeline.run(str(folder / "in.jsonl"), str(folder / out), **given))


def parts(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("part-*.jsonl")))


def local(job: Path) -> bytes:
    folder = job.parent
    pipeline = load(str(job)).pipeline
    asyncio.run(pipeline.run(str(folder / "in.jsonl"), str(folder / "local.jsonl")))
    return (folder / "local.jsonl").read_bytes()


def test_the_parts_together_are_the_output_of_one_run(job: Path) -> None:
    out = job.parent / "out"
    reports = []
    for place in ("2/3", "0/3", "1/3"):
        assert not (out / "_SUCCESS").exists()
        reports.append(start(job, place))
    assert (out / "_SUCCESS").exists()
    assert parts(out) == local(job)
    assert sum(report.read for report in reports) == 1000
    assert sum(report.dead for report in reports) == 20
    letters = [json.loads(line) for path in out.glob("dead/part-*") for line in path.read_bytes().splitlines()]
    assert sorted(letter["record"]["n"] for letter in letters) == list(range(13, 1000, 50))
    assert {report.exit_code for report in reports} == {3}
    assert json.loads((out / "_stageflow/summary.json").read_bytes())["written"] == 980


def test_one_that_has_ended_has_nothing_more_to_do(job: Path) -> None:
    first, again = start(job, "0/2"), start(job, "0/2")
    assert not first.already_complete
    assert again.already_complete
    assert (again.written, again.dead) == (first.written, first.dead)


def test_more_than_there_are_shards(job: Path) -> None:
    report = start(job, "6/7", shard_bytes=1_000_000)
    assert report.read == 0
    assert not report.already_complete
    assert start(job, "0/7", shard_bytes=1_000_000).read == 1000
    assert (job.parent / "out/_SUCCESS").exists()


def test_an_empty_input_is_done_at_once(job: Path) -> None:
    (job.parent / "in.jsonl").write_bytes(b"")
    assert start(job, "0/2", shard_bytes=None).read == 0
    assert not list((job.parent / "out").glob("part-*"))


def test_another_input_or_job_is_refused(job: Path) -> None:
    start(job, "0/2")
    job.write_text(JOB.format(seconds=0).replace("2 * n", "3 * n"))
    with pytest.raises(StateMismatch, match=r'the job has changed .* stage "double"'):
        start(job, "1/2")
    assert start(job, "1/2", accept_job_change=True).read > 0
    with (job.parent / "in.jsonl").open("a") as file:
        print('{"n": 1000}', file=file)
    with pytest.raises(StateMismatch, match="was changed since the run was begun"):
        start(job, "1/2")


def test_a_folder_with_other_things_is_left_alone(job: Path) -> None:
    (job.parent / "out").mkdir()
    (job.parent / "out/thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds other things, thesis\.txt"):
        start(job, "0/2")
    assert os.listdir(job.parent / "out") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shard": None}, "needs --shard"),
        ({"shard": "2/2"}, "expected I/N"),
        ({"shard": "half"}, "expected I/N"),
        ({"limit": 5}, "--limit is for runs on one machine"),
        ({"dead": print}, "--dead is for runs on one machine"),
        ({"retry_failed": True}, "--retry-failed is for runs on one machine"),
        ({"processes": 2}, "--processes is for runs on one machine"),
        ({"order": "completion"}, "in the order of the input"),
        ({"max_in_flight_total": 4}, "started together"),
        ({"env": ["NO_SUCH_NAME"]}, "there is no such variable"),
        ({"engine": "ray"}, "--shard is for --engine static"),
        ({"engine": "rai"}, "engine must be"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(job: Path, options: dict[str, Any], says: str) -> None:
    given = {"shard": "0/2", **options}
    with pytest.raises(RequestError, match=says):
        start(job, given.pop("shard"), **given)
    assert not (job.parent / "out").exists()


def test_inputs_that_others_cannot_read_are_refused(job: Path) -> None:
    pipeline = load(str(job)).pipeline
    options = {"engine": "static", "shard": "0/2"}
    for source in ([{"n": 1}], "-"):
        with pytest.raises(RequestError, match="can't be read by every replica"):
            asyncio.run(pipeline.run(source, str(job.parent / "out"), **options))
    (job.parent / "in.csv").write_text("n\n1\n")
    with pytest.raises(RequestError, match="is not JSON lines"):
        asyncio.run(pipeline.run(str(job.parent / "in.csv"), str(job.parent / "out"), **options))
    with pytest.raises(RequestError, match="a folder or an address"):
        asyncio.run(pipeline.run(str(job.parent / "in.jsonl"), [], **options))
    with pytest.raises(RequestError, match="is no folder"):
        asyncio.run(pipeline.run(str(job.parent / "in.jsonl"), str(job.parent / "in.csv"), **options))


def test_the_command_says_what_the_limits_come_to(job: Path) -> None:
    folder = job.parent
    words = [str(job), str(folder / "in.jsonl"), "-o", str(folder / "out"), "--engine", "static", "--shard", "0/3"]
    result = CliRunner().invoke(cli, ["run", *words, "--progress", "off"])
    assert "3 shares x 8 = 24 double calls in flight at most" in result.stderr


def test_a_rate_limit_is_divided(job: Path) -> None:
    job.write_text(JOB.format(seconds=0).replace("max_in_flight=8", "rate_limit=RateLimit(per_second=4000, burst=1)"))
    report = start(job, "0/4", shard_bytes=100_000)
    assert report.read == 1000
    assert report.seconds > 0.8  # a quarter of 4,000 a second


def test_killed_in_the_middle_it_goes_on_where_it_was(job: Path) -> None:
    folder = job.parent
    job.write_text(JOB.format(seconds=0.02))
    words = ["run", str(job), str(folder / "in.jsonl"), "-o", str(folder / "out"), "--engine", "static"]
    command = [sys.executable, "-m", "stageflow", *words, "--shard", "0/1", "--shard-bytes", "500", "--progress", "off"]
    calls = folder / "calls"
    env = {**os.environ, "CALLS": str(calls)}
    with (folder / "err").open("wb") as err:
        child = Running(subprocess.Popen(command, stderr=err, env=env), folder / "err")
    child.until(lambda: len(list((folder / "out/_stageflow/commits").glob("*"))) >= 5)
    child.signal(signal.SIGKILL)
    child.ends()
    committed = len(list((folder / "out/_stageflow/commits").glob("*")))
    assert 5 <= committed < 20
    assert subprocess.run(command, env=env, check=False, capture_output=True).returncode == 3
    assert parts(folder / "out") == local(job)
    again = [n for n, times in Counter(calls.read_text().split()).items() if times > 1]
    # Of shards that were begun and not committed: one is read while the tail of the one before is in flight.
    assert len(again) <= 4 * 50


def going(job: Path, *words: str) -> Running:
    """The command, running, with what it called in a file."""
    folder = job.parent
    job.write_text(JOB.format(seconds=0.02))
    typed = ["run", str(job), str(folder / "in.jsonl"), "-o", str(folder / "out"), "--engine", "static", *words]
    command = [sys.executable, "-m", "stageflow", *typed, "--shard", "0/1", "--shard-bytes", "500", "--progress", "off"]
    with (folder / "err").open("wb") as err:
        env = {**os.environ, "CALLS": str(folder / "calls")}
        return Running(subprocess.Popen(command, stderr=err, env=env), folder / "err")


def called(job: Path) -> list[int]:
    return [int(line) for line in (job.parent / "calls").read_text().split()]


def settled(job: Path) -> int:
    """Records that are committed."""
    return sum(len(path.read_bytes().splitlines()) for path in (job.parent / "out").glob("**/part-*.jsonl"))


def test_asked_to_stop_it_ends_with_whole_shards(job: Path) -> None:
    child = going(job)
    child.until(lambda: settled(job) > 100)
    child.signal(signal.SIGINT)
    assert child.ends() == 130
    made = settled(job)
    assert 100 < made < 1000
    assert sorted(called(job)) == list(range(made)), "a call was made whose result is not kept"
    assert f"stopped: {made:,} of ~" in child.err
    assert "resume with the same command" in child.err
    assert going(job).ends() == 3
    assert sorted(called(job)) == list(range(1000))
    assert parts(job.parent / "out") == local(job)


@pytest.mark.parametrize("how", ["twice", pytest.param("no grace", marks=pytest.mark.slow)])
def test_asked_to_end_at_once_it_says_what_is_safe(job: Path, how: str) -> None:
    child = going(job, *(["--grace", "0.001"] if how == "no grace" else []))
    child.until(lambda: settled(job) > 100)
    child.signal(signal.SIGINT)
    if how == "twice":
        child.until_it_says("stopping")
        child.signal(signal.SIGINT)
    assert child.ends() == 130
    made = settled(job)
    assert f"stopped: {made:,} of ~" in child.err
    assert going(job).ends() == 3
    assert parts(job.parent / "out") == local(job)


def test_the_command_that_accepts_a_changed_job_is_given(job: Path) -> None:
    start(job, "0/1")
    child = going(job)  # the same job but for how long it takes
    assert child.ends() == 7
    assert "--accept-job-change goes on with the new job, another output starts anew" in child.err
