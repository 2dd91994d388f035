"""What goes wrong in a run over shards: nothing is committed that is not whole, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import threading
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stageflow.cluster.commits import Commits
from stageflow.cluster.messages import ShardCommit, ShardLease
from stageflow.cluster.plan import ShardPlan
from stageflow.cluster.sharded import Sharded
from stageflow.cluster.writing import ShardOutput
from stageflow.commit import Commit
from stageflow.errors import StageflowError, StateMismatch, StorageError
from stageflow.events import Event, RecordDead
from stageflow.loader import load
from stageflow.report.stats import RunReport
from stageflow.stores import store_of
from tests.cluster.in_process import InProcess, Quick

JOB = """
from stageflow import Batch, Pipeline

pipeline = Pipeline("job")
"""
PLAIN = JOB + "@pipeline.stage\nasync def a(n): return n\n"
TYPO = JOB + "@pipeline.stage\nasync def a(n): return n.nothing\n"
BATCHES = JOB + "@pipeline.stage(batch=Batch(10, 0.01))\nasync def a(n): return n\n"
JOINS = JOB + (
    "@pipeline.stage\nasync def a(n): return n\n@pipeline.stage\nasync def b(n): return n\n"
    "@pipeline.stage\nasync def c(a, b): return a + b\n"
)
CHILDREN = JOB + (
    "@pipeline.stage\nasync def a(n):\n    for i in range(n % 3):\n        yield i\n"
    "@pipeline.stage\nasync def b(a): return a\n"
)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    made = Quick()
    monkeypatch.setattr(Sharded, "_engine", lambda self, tell: made)
    return made


def run(
    folder: Path,
    job: str,
    given: str | list[str] = "in.jsonl",
    during: Callable[[], Awaitable[None]] | None = None,
    **options: Any,
) -> RunReport:
    """Run a job over what is in a folder, for ten seconds at most."""
    path = folder / f"job{zlib.crc32(job.encode())}.py"  # a file that is loaded once is not loaded again
    path.write_text(job)
    pipeline = load(str(path)).pipeline

    async def both() -> RunReport:
        meddling = asyncio.create_task(during()) if during is not None else None
        async with asyncio.timeout(10):
            report = await pipeline.run(str(folder / str(given)), str(folder / "out"), **options)
        if meddling is not None:
            await meddling
        return report

    return asyncio.run(both())


STATIC: dict[str, Any] = {"engine": "static", "shard": "0/1"}
RAY: dict[str, Any] = {"engine": "ray", "nodes": 2}


def numbers(folder: Path, count: int) -> None:
    (folder / "in.jsonl").write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(count)))


def results(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "out").glob("part-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def commits(folder: Path) -> dict[int, ShardCommit]:
    return Commits(store_of(str(folder / "out"))).all()


# What is held back until more records have come


def test_few_records_that_look_like_a_typo_end_as_dead_letters(tmp_path: Path, engine: InProcess) -> None:
    numbers(tmp_path, 8)
    report = run(tmp_path, TYPO, **RAY, shard_bytes=20)
    assert (report.dead, report.exit_code) == (8, 3)
    assert len(commits(tmp_path)) == 4


def test_a_typo_stops_the_run_and_nothing_of_it_is_committed(tmp_path: Path, engine: InProcess) -> None:
    numbers(tmp_path, 1000)
    report = run(tmp_path, TYPO, **RAY, shard_bytes=500)
    assert report.exit_code == 4
    assert commits(tmp_path) == {}


@pytest.mark.parametrize("job", [PLAIN, TYPO, BATCHES, JOINS, CHILDREN])
def test_a_shard_that_is_done_with_care_is_done(
    tmp_path: Path, engine: InProcess, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    numbers(tmp_path, 7)
    monkeypatch.setattr("stageflow.cluster.coordinator._CAREFUL", 0)
    report = run(tmp_path, job, **RAY, shard_bytes=1000)
    assert report.read == 7
    assert [report.at_record for report in engine.reports if report.at_record] != []
    assert (report.dead == 7) == (job is TYPO)


# Inputs that are not what they should be


@pytest.mark.parametrize("options", [STATIC, RAY], ids=["static", "replicas"])
def test_a_compressed_file_that_breaks_off_is_not_committed(
    tmp_path: Path, engine: InProcess, options: dict[str, Any]
) -> None:
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(20_000)))
    (tmp_path / "in.jsonl.gz").write_bytes(whole[:-5000])
    report = run(tmp_path, PLAIN, "in.jsonl.gz", **options)
    assert report.exit_code == 3
    assert report.stopped is not None
    assert "ends early" in report.stopped
    assert commits(tmp_path) == {}
    assert (report.written, report.dead) == (0, 0)
    if options is STATIC:
        assert report.not_done == report.read > 0


@pytest.mark.parametrize("change", ["shrunk", "grown", "replaced"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_file_that_is_changed_while_it_is_read_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    path = tmp_path / name
    made = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    path.write_bytes(gzip.compress(made) if name.endswith(".gz") else made)

    def meddle() -> None:
        if change == "shrunk":
            os.truncate(path, path.stat().st_size // 2)
        elif change == "grown":
            with path.open("ab") as file:
                file.write(made if name == "in.jsonl" else gzip.compress(made))
        else:
            path.write_bytes(path.read_bytes()[::-1])

    import stageflow.cluster.reading as module

    refuse = module._refuse_other

    def then_meddle(opened: Any, file: Any) -> None:
        refuse(opened, file)
        monkeypatch.setattr(module, "_refuse_other", refuse)
        meddle()

    monkeypatch.setattr(module, "_refuse_other", then_meddle)
    with contextlib.suppress(StageflowError):
        assert run(tmp_path, PLAIN, name, **STATIC, shard_bytes=100_000).exit_code in (3, 5)
    assert commits(tmp_path) == {}


def test_blank_and_bad_lines_and_files_without_any_are_accounted_for(tmp_path: Path, engine: InProcess) -> None:
    (tmp_path / "in-1.jsonl").write_bytes(b"\n\r\n   \n" * 50)
    (tmp_path / "in-2.jsonl").write_bytes(b"")
    (tmp_path / "in-3.jsonl").write_bytes(b'{"n": 1}\r\n[1]\n\n{"n"\n{"n": 2}' + b'\n{"n": 3}' * 30)
    report = run(tmp_path, PLAIN, "in-*.jsonl", **RAY, shard_bytes=7)
    assert (report.written, report.dead, report.bad, report.blank) == (32, 2, 2, 151)


def test_the_first_bad_line_stops_the_run_where_that_is_asked_for(tmp_path: Path, engine: InProcess) -> None:
    lines = [b'{"n": %d}' % n for n in range(1000)]
    lines[700] = b"nonsense"
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    for options in (RAY, STATIC):
        report = run(tmp_path, PLAIN, on_bad_input="stop", shard_bytes=500, **options)
        assert report.exit_code == 4
        assert report.dead == 0
        assert str(report.stopped).startswith(f"{tmp_path}/in.jsonl, line 9 of shard 15: InvalidJSON")
        assert 15 not in commits(tmp_path)


def test_a_compressed_file_that_broke_off_may_be_given_whole(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(20_000)))
    (tmp_path / "in-1.jsonl").write_bytes(b'{"n": -1}\n')
    (tmp_path / "in-2.jsonl.gz").write_bytes(whole[:-5000])
    assert run(tmp_path, PLAIN, "in-*", **STATIC).exit_code == 3
    (tmp_path / "in-2.jsonl.gz").write_bytes(whole)
    report = run(tmp_path, PLAIN, "in-*", **STATIC)
    assert (report.read, report.exit_code) == (20_001, 0)
    (tmp_path / "in-2.jsonl.gz").write_bytes(whole + whole)
    with pytest.raises(StateMismatch, match=r"in-2\.jsonl\.gz was changed"):
        run(tmp_path, PLAIN, "in-*", **STATIC)


def test_a_file_of_nothing_but_a_mark_of_its_encoding_is_a_shard_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert run(tmp_path, PLAIN, **STATIC).exit_code == 0
    assert len(commits(tmp_path)) == 1


# Shards that go and come back


def test_a_shard_that_comes_back_takes_each_record_once(tmp_path: Path) -> None:
    store = store_of(str(tmp_path / "out"))
    store.check()
    found: list[ShardCommit] = []

    async def scenario() -> None:
        output = ShardOutput(Commits(store), "run", committed=found.append, failed=lambda error: None)
        output.begin(ShardLease(0, 1))
        output.forget(0)
        output.begin(ShardLease(0, 2))
        for index in (0, 1, 0, 1):  # of the first try, and of the second
            await output.write(Commit(ordinals=[index], lines=[b"%d\n" % index]))
        output.read_whole(0, lines=4, records=4, bad=0)
        await output.all_tried()
        assert found == [], "two of four records were taken for all of them"
        await output.write(Commit(ordinals=[1, 2, 3], lines=[b"1\n", b"2\n", b"3\n"]))
        await output.close(complete=True)

    asyncio.run(scenario())
    assert found == [ShardCommit(0, 2, lines=4, written=4, out_lines=4)]
    assert store.read("part-000000.jsonl") == b"0\n1\n2\n3\n"


# A store that fails


def test_a_store_that_fails_ends_the_run_and_the_account_says_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(tmp_path, 1000)
    commit = Commits.commit

    def sometimes(self: Commits, found: ShardCommit, out: bytes, dead: bytes) -> ShardCommit:
        if found.number > 5:
            raise StorageError("cannot use the store: it is full")
        return commit(self, found, out, dead)

    monkeypatch.setattr(Commits, "commit", sometimes)
    report = run(tmp_path, PLAIN, **STATIC, shard_bytes=500)
    assert report.exit_code == 5
    assert report.written == sum(commit.written for commit in commits(tmp_path).values()) < 400
    assert report.not_done == report.read - report.written > 0
    monkeypatch.undo()
    again = run(tmp_path, PLAIN, **STATIC, shard_bytes=500)
    assert (again.earlier, again.written, again.exit_code) == (report.written, 1000, 0)
    assert [line["n"] for line in results(tmp_path)] == list(range(1000))


def test_a_store_that_hangs_is_not_waited_for_when_the_run_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(tmp_path, 5000)
    back = threading.Event()
    commit = Commits.commit

    def hangs(self: Commits, found: ShardCommit, out: bytes, dead: bytes) -> ShardCommit:
        back.wait(20)
        return commit(self, found, out, dead)

    monkeypatch.setattr(Commits, "commit", hangs)
    monkeypatch.setattr("stageflow.cluster.writing._LAST_SECONDS", 0.1)
    try:
        failing = PLAIN.replace("return n", "\n    if n == 780: raise ValueError\n    return n").replace(
            "@pipeline.stage", '@pipeline.stage(on_error="abort")'
        )
        report = run(tmp_path, failing, **STATIC, shard_bytes=500, grace=0.2)
        assert report.exit_code == 4
        assert report.written == 0
    finally:
        back.set()


# Ends that nobody saw


def test_who_was_killed_before_saying_that_all_is_done_says_so_the_next_time(tmp_path: Path, engine: InProcess) -> None:
    numbers(tmp_path, 100)
    run(tmp_path, PLAIN, **STATIC, shard_bytes=500)
    for options in (STATIC, RAY):
        (tmp_path / "out/_SUCCESS").unlink()
        (tmp_path / "out/_stageflow/summary.json").unlink()
        assert run(tmp_path, PLAIN, **options).already_complete
        assert (tmp_path / "out/_SUCCESS").exists()


@pytest.mark.parametrize("options", [STATIC, RAY], ids=["static", "replicas"])
def test_an_empty_input_is_a_complete_run(tmp_path: Path, engine: InProcess, options: dict[str, Any]) -> None:
    numbers(tmp_path, 0)
    report = run(tmp_path, PLAIN, **options)
    assert (report.read, report.exit_code) == (0, 0)
    assert (tmp_path / "out/_SUCCESS").exists()


@pytest.mark.parametrize("options", [STATIC, RAY], ids=["static", "replicas"])
def test_shards_that_an_earlier_run_gave_up_are_not_forgotten(
    tmp_path: Path, engine: InProcess, options: dict[str, Any]
) -> None:
    numbers(tmp_path, 5000)
    stopping = PLAIN.replace("return n", "\n    if n == 20: raise ValueError\n    return n").replace(
        "@pipeline.stage", '@pipeline.stage(on_error="abort")'
    )
    run(tmp_path, stopping, **options, shard_bytes=500)
    store = store_of(str(tmp_path / "out"))
    plan = ShardPlan.read(store)
    assert plan is not None
    last = len(plan.shards) - 1
    Commits(store).commit(ShardCommit(last, 9, failed=True), b"", b"")
    for _ in range(2):
        report = run(tmp_path, PLAIN, **options, accept_job_change=True)
        assert report.exit_code == 3
        assert report.dead == 0
    assert report.already_complete
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_a_share_without_shards_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers(tmp_path, 100)
    report = run(tmp_path, PLAIN, engine="static", shard="3/4", shard_bytes=1000)
    assert (report.read, report.exit_code) == (0, 0)
    assert "the input is 1 shards" in caplog.text


# What the user is told


@pytest.mark.parametrize("options", [STATIC, RAY], ids=["static", "replicas"])
def test_a_record_that_fails_is_told_by_its_line_in_its_shard(
    tmp_path: Path, engine: InProcess, options: dict[str, Any]
) -> None:
    numbers(tmp_path, 300)
    told: list[Event] = []

    class Listener:
        def on_event(self, event: Event) -> None:
            told.append(event)

    job = PLAIN.replace("return n", "\n    if n == 99: raise ValueError\n    return n")
    run(tmp_path, job, **options, shard_bytes=500, listeners=[Listener()])
    (letter,) = [event.letter for event in told if isinstance(event, RecordDead)]
    (path,) = (tmp_path / "out/dead").glob("part-*")
    written = json.loads(path.read_bytes())
    assert path.name == f"part-{letter['shard']:06}.jsonl"
    assert "shard" not in written
    for name in ("index", "line", "path"):
        assert letter[name] == written[name]
    assert letter["line"] == letter["index"] + 1 < 100


def test_what_aborts_a_run_names_a_record_that_can_be_found(tmp_path: Path) -> None:
    numbers(tmp_path, 300)
    job = PLAIN.replace("return n", "\n    if n == 99: raise ValueError\n    return n").replace(
        "@pipeline.stage", '@pipeline.stage(on_error="abort")'
    )
    report = run(tmp_path, job, **STATIC, shard_bytes=500)
    shard, place = 1, 48
    assert f"record {place} of shard {shard} failed" in str(report.stopped)
