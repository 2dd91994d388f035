"""Runs to a file: each goes on with what the one before left, and the account is of all of them together."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledgers import ledger_lines

from stageflow import Pipeline, RequestError, RunReport, StorageError, drop
from stageflow.adapters.jsonl import JsonlSource
from stageflow.errors import OutputLocked
from stageflow.events import Event, Resumed


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Job:
    """A job of one stage that fails on what ``bad`` holds, and counts its calls."""

    def __init__(self, **settings: Any) -> None:
        self.calls: list[int] = []
        self.bad: set[int] = set()
        self.pipeline = Pipeline("job")
        self.pipeline.add_stage("s", self.handle, **settings)

    async def handle(self, x: int) -> int:
        self.calls.append(x)
        if x in self.bad:
            raise LookupError(f"no {x}")
        return -x

    def run(self, source: Any = "in.jsonl", **options: Any) -> RunReport:
        return self.pipeline.run_sync(source, "out.jsonl", loop="asyncio", **options)


@pytest.fixture
def job() -> Job:
    return Job()


def write_input(*numbers: int, blank: tuple[int, ...] = ()) -> None:
    lines = [json.dumps({"x": number}) + "\n" + "\n" * (number in blank) for number in numbers]
    Path("in.jsonl").write_text("".join(lines))


def results(name: str = "out.jsonl") -> list[int]:
    return [json.loads(line)["s"] for line in Path(name).read_text().splitlines()]


def account(report: RunReport) -> tuple[int, int, int, int, int]:
    assert report.read == report.written + report.dropped + report.dead + report.not_done
    return report.read, report.written, report.dead, report.earlier, report.exit_code


def aborting(*numbers: int) -> Job:
    """A job that stops at such a record, one at a time: what comes before it is done."""
    job = Job(max_in_flight=1, on_error="abort")
    job.bad = set(numbers)
    return job


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


def test_an_interrupted_run_is_continued() -> None:
    write_input(*range(1, 7))
    job = aborting(4)
    first = job.run(max_open_records=1)
    assert account(first) == (4, 3, 0, 0, 4)
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl.ledger", "out.jsonl.partial"]
    job.bad, job.calls, heard = set(), [], Heard()
    second = job.run(listeners=[heard])
    assert account(second) == (6, 6, 0, 3, 0)
    assert (job.calls, results()) == ([4, 5, 6], [-1, -2, -3, -4, -5, -6])
    assert second.settled == 3
    assert second.per_second == pytest.approx(3 / second.seconds)
    assert [event for event in heard.events if isinstance(event, Resumed)] == [Resumed(2, 3, ())]


def test_a_complete_run_is_not_done_again(job: Job) -> None:
    write_input(1, 2)
    job.bad = {2}
    job.run()
    before, heard = {name: Path(name).read_bytes() for name in os.listdir()}, Heard()
    report = job.run(listeners=[heard])
    assert report.already_complete
    assert account(report) == (2, 1, 1, 2, 3)
    assert (job.calls, heard.events) == ([1, 2], [])
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before
    assert job.run(allow_failures="1").exit_code == 0


def test_a_later_run_without_the_limit_goes_on(job: Job) -> None:
    write_input(*range(1, 8))
    assert account(job.run(limit=2)) == (2, 2, 0, 0, 0)
    assert results() == [-1, -2]
    assert job.run(limit=2).already_complete
    assert account(job.run(limit=5)) == (5, 5, 0, 2, 0)
    assert account(job.run()) == (7, 7, 0, 5, 0)
    assert (job.calls, results()) == (list(range(1, 8)), [-n for n in range(1, 8)])


@pytest.mark.parametrize("block_bytes", [256 * 1024, 16], ids=["from the beginning", "from a mark"])
def test_the_limit_counts_from_the_first_record_and_no_blank_line(job: Job, block_bytes: int) -> None:
    source = JsonlSource("in.jsonl", block_bytes=block_bytes)
    write_input(*range(1, 8), blank=(1, 2, 5))
    assert account(job.run(source, limit=3)) == (3, 3, 0, 0, 0)
    assert account(job.run(source, limit=6)) == (6, 6, 0, 3, 0)
    last = job.run(source)
    assert account(last) == (7, 7, 0, 6, 0)
    assert (job.calls, last.blank) == (list(range(1, 8)), 3)


def test_a_repeated_call_has_the_same_key_in_every_run() -> None:
    write_input(*range(6))
    keys: list[tuple[int, str]] = []
    pipeline = Pipeline("job")

    @pipeline.stage(max_in_flight=1, on_error="abort")
    async def s(x: int, call: Any) -> int:
        keys.append((x, call.idempotency_key))
        if x == 4 and len(keys) < 7:  # in the first run and in the second
            raise LookupError("not yet")
        return -x

    for _ in range(3):
        pipeline.run_sync("in.jsonl", "out.jsonl", loop="asyncio", max_open_records=1)
    assert [x for x, _ in keys] == [0, 1, 2, 3, 4, 4, 4, 5]
    assert len(set(keys)) == len({key for _, key in keys}) == 6


def test_nothing_settles_before_the_ledger_says_how_far_the_input_was_read(job: Job) -> None:
    write_input(*range(100))
    job.run(JsonlSource("in.jsonl", block_bytes=64), max_open_records=2)
    read, commits = 0, 0
    for fields in ledger_lines(Path("out.jsonl.ledger")):
        if fields["t"] == "i":
            read = fields["n"]
        elif fields["t"] == "c":
            commits += 1
            assert max(fields["k"]) < read, "after a kill here, nobody would see that such a line was edited"
    assert commits > 10


def test_lines_that_were_added_are_done(job: Job) -> None:
    write_input(1, 2)
    job.run()
    with open("in.jsonl", "a") as file:
        file.write('{"x": 3}\n')
    assert account(job.run()) == (3, 3, 0, 2, 0)
    assert (job.calls, results()) == ([1, 2, 3], [-1, -2, -3])


def test_what_failed_is_tried_again_and_nothing_else(job: Job) -> None:
    write_input(1, 2, 3)
    job.bad = {1, 3}
    assert account(job.run()) == (3, 1, 2, 0, 3)
    job.bad, job.calls = {3}, []
    assert account(job.run(retry_failed=True)) == (3, 2, 1, 1, 3)
    assert sorted(job.calls) == [1, 3]
    assert len(Path("out.jsonl.dead.jsonl").read_text().splitlines()) == 1
    job.bad = set()
    assert account(job.run(retry_failed=True)) == (3, 3, 0, 2, 0)
    assert results() == [-1, -2, -3]
    assert job.run(retry_failed=True).already_complete


def test_a_line_that_is_no_record_stays_a_dead_letter(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    write_input(1, 2)
    with open("in.jsonl", "a") as file:
        file.write("no record\n")
    job.bad = {2}
    assert account(job.run()) == (3, 1, 2, 0, 3)
    job.bad = set()
    assert account(job.run(retry_failed=True)) == (3, 2, 1, 2, 3)
    (letter,) = Path("out.jsonl.dead.jsonl").read_text().splitlines()
    assert json.loads(letter)["record"] == "no record"
    assert "dead letters without a record that could be tried again stay as they are: 1" in caplog.messages


def test_dead_letters_may_go_elsewhere(job: Job) -> None:
    write_input(1, 2, 3)
    job.bad, letters = {2}, []
    assert account(job.run(dead=letters)) == (3, 2, 1, 0, 3)
    assert [letter["index"] for letter in letters] == [1]
    assert account(job.run(dead=letters)) == (3, 2, 1, 3, 3)
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.ledger"]


def test_an_iterable_has_a_ledger_and_can_not_be_continued(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    assert account(job.run([{"x": 1}])) == (1, 1, 0, 0, 0)
    assert [entry.getMessage() for entry in caplog.records] == ["the input cannot be resumed"]
    with pytest.raises(RequestError):
        job.run([{"x": 1}])
    assert (job.calls, results()) == ([1], [-1])


def test_damaged_input_is_done_as_far_as_it_goes_and_can_be_continued(job: Job) -> None:
    write_input(*range(1, 2000))
    whole = gzip.compress(Path("in.jsonl").read_bytes())
    Path("in.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    report = job.run("in.jsonl.gz")
    assert (report.exit_code, report.not_done) == (3, 0)
    assert report.stopped is not None
    assert "in.jsonl.gz ends early" in report.stopped
    assert 0 < report.written < 1999
    assert not os.path.exists("out.jsonl")
    Path("in.jsonl.gz").write_bytes(whole)
    assert account(job.run("in.jsonl.gz")) == (1999, 1999, 0, report.written, 0)
    assert (sorted(job.calls), results()) == (list(range(1, 2000)), [-n for n in range(1, 2000)])


def test_an_input_that_changes_while_it_is_read_makes_it_exit_3(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    write_input(1, 2)
    job.pipeline.add_stage("grow", lambda s: open("in.jsonl", "a").close() or os.utime("in.jsonl", (1, 1)))
    assert account(job.run()) == (2, 2, 0, 0, 3)
    assert [entry.getMessage() for entry in caplog.records] == ["in.jsonl was changed while it was read"]
    assert results() == [-1, -2]


def test_gzip_that_was_added_behind_a_complete_run_is_done(job: Job) -> None:
    def member(*numbers: int) -> bytes:
        return gzip.compress("".join(f'{{"x": {number}}}\n' for number in numbers).encode())

    Path("in.jsonl.gz").write_bytes(member(1, 2))
    assert account(job.run("in.jsonl.gz")) == (2, 2, 0, 0, 0)
    assert job.run("in.jsonl.gz").already_complete
    Path("in.jsonl.gz").write_bytes(member(1, 2) + member(3))
    assert account(job.run("in.jsonl.gz")) == (3, 3, 0, 2, 0)
    assert job.run("in.jsonl.gz").already_complete
    assert (job.calls, results()) == ([1, 2, 3], [-1, -2, -3])


# The file


@pytest.mark.parametrize("numbers", [[1, 2], [2, 1]])
def test_the_output_follows_the_umask_and_what_is_beside_it_is_private(job: Job, numbers: list[int]) -> None:
    write_input(*numbers)
    job.bad = {3}
    with open("in.jsonl", "a") as file:
        file.write('{"x": 3}\n')
    old = os.umask(0o027)
    try:
        job.run()
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in os.listdir() if name != "in.jsonl"}
    assert modes == {"out.jsonl": 0o640, "out.jsonl.dead.jsonl": 0o600, "out.jsonl.ledger": 0o600}


def test_an_output_that_appears_during_the_run_is_not_replaced(job: Job) -> None:
    write_input(1)
    job.pipeline.add_stage("appear", lambda s: Path("out.jsonl").write_text("somebody else's") and None)
    with pytest.raises(StorageError, match=r"out.jsonl appeared during the run; the results are in out.jsonl.partial"):
        job.run()
    assert Path("out.jsonl").read_text() == "somebody else's"
    assert results("out.jsonl.partial") == [-1]


@pytest.mark.parametrize(
    ("name", "what"), [("out.jsonl.partial", "the unfinished output"), ("out.jsonl.ledger", "the ledger")]
)
def test_a_file_that_a_run_needs_is_nothing_else(job: Job, name: str, what: str) -> None:
    write_input(1)
    with pytest.raises(RequestError, match=f"{what} and dead letters are the same file"):
        job.run(dead=name)
    os.rename("in.jsonl", name)
    with pytest.raises(RequestError, match=f"{what} and input are the same file"):
        job.run(name, fresh=True)
    assert os.listdir() == [name]


@pytest.mark.parametrize("fsync", ["interval=0.01s", "group", "off"])
def test_every_way_to_sync(job: Job, fsync: str) -> None:
    write_input(*range(1, 50))
    assert account(job.run(fsync=fsync)) == (49, 49, 0, 0, 0)
    assert results() == [-n for n in range(1, 50)]


# The copy of standard input


@pytest.fixture
def stdin(tmp_path: Path) -> Callable[[str], None]:
    """Put a text where descriptor 0 reads it."""
    kept = os.dup(0)

    def put(text: str) -> None:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield put
    os.dup2(kept, 0)
    os.close(kept)


def test_a_copy_of_standard_input_can_be_resumed(job: Job, stdin: Callable[[str], None]) -> None:
    stdin('{"x": 1}\n{"x": 2}\n')
    assert account(job.run("-", spool=True, limit=1)) == (1, 1, 0, 0, 0)
    assert stat.S_IMODE(os.stat("out.jsonl.spool").st_mode) == 0o600
    stdin('{"x": 7}\n')
    assert account(job.run("-", spool=True)) == (2, 2, 0, 1, 0)
    assert (job.calls, sorted(os.listdir())) == ([1, 2], ["out.jsonl", "out.jsonl.ledger", "out.jsonl.spool"])
    assert account(job.run("-", spool=True, fresh=True)) == (1, 1, 0, 0, 0)
    assert (job.calls, os.path.exists("out.jsonl.spool.1")) == ([1, 2, 7], True)


def test_a_copy_that_another_run_reads_is_not_renamed(job: Job, stdin: Callable[[str], None]) -> None:
    stdin('{"x": 1}\n')
    second: list[BaseException] = []

    def start_anew(s: int) -> int:
        try:
            Job().run("-", spool=True, fresh=True)
        except OutputLocked as error:
            second.append(error)
        return s

    job.pipeline.add_stage("again", start_anew, run="thread")
    assert account(job.run("-", spool=True)) == (1, 1, 0, 0, 0)
    (error,) = second
    assert str(error).startswith(f"out.jsonl is being written by pid {os.getpid()} on ")
    assert not os.path.exists("out.jsonl.spool.1")


def test_a_copy_never_takes_the_name_of_another_run_s(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = iter([b'{"x": 1}\n', b""])

    def read(descriptor: int, count: int) -> bytes:
        Path("out.jsonl.spool").write_text('{"x": 2}\n')  # meanwhile
        return next(parts)

    monkeypatch.setattr("stageflow.ends.os.read", read)
    with pytest.raises(OutputLocked, match=r"out.jsonl.spool was made just now, by a run that began while standard"):
        job.run("-", spool=True)
    assert (Path("out.jsonl.spool").read_text(), os.listdir()) == ('{"x": 2}\n', ["out.jsonl.spool"])


def test_a_copy_is_refused_where_there_is_nothing_to_copy(job: Job) -> None:
    with pytest.raises(RequestError, match="spool keeps standard input for a file"):
        job.run([{"x": 1}], spool=True)


def test_children_that_are_tried_again_come_where_they_were_yielded() -> None:
    write_input(*range(1, 8))
    bad: set[str] = {"3.1", "3.3", "5.0", "7.4"}

    def letters() -> set[str]:
        return {
            json.loads(line)["results"]["children"] for line in Path("out.jsonl.dead.jsonl").read_text().splitlines()
        }

    def run(sink: str = "out.jsonl", **options: Any) -> RunReport:
        pipeline = Pipeline("family")

        async def children(x: int) -> Any:
            for place in range(5):
                yield f"{x}.{place}"

        async def check(children: str) -> str:
            if children in bad:
                raise LookupError(children)
            return children

        pipeline.add_stage("children", children)
        pipeline.add_stage("check", check)
        return pipeline.run_sync("in.jsonl", sink, loop="asyncio", **options)

    assert account(run()) == (7, 4, 3, 0, 3)
    bad -= {"3.3", "7.4"}
    assert account(run(retry_failed=True))[1:3] == (5, 2)
    assert letters() == {"3.1", "5.0"}
    bad.clear()
    assert account(run(retry_failed=True))[1:3] == (7, 0)
    run("undisturbed.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("undisturbed.jsonl").read_bytes()


def test_what_was_kept_of_a_record_is_not_written_again_when_it_dies_before_its_children() -> None:
    write_input(1, 2)
    bad: set[str] = {"1.1"}

    def run(version: str, **options: Any) -> RunReport:
        pipeline = Pipeline("family")

        async def first(x: int) -> int:
            if str(x) in bad:
                raise LookupError(x)
            return x

        async def children(first: int) -> Any:
            for place in range(3):
                yield f"{first}.{place}"

        async def check(children: str) -> str:
            if children in bad:
                raise LookupError(children)
            return children

        pipeline.add_stage("first", first, version=version)
        pipeline.add_stage("children", children)
        pipeline.add_stage("check", check)
        return pipeline.run_sync("in.jsonl", "out.jsonl", loop="asyncio", **options)

    def written() -> list[str]:
        return [json.loads(line)["check"] for line in Path("out.jsonl").read_text().splitlines()]

    assert account(run("1"))[1:3] == (1, 1)
    bad.symmetric_difference_update({"1.1", "1"})
    assert account(run("2", retry_failed=True))[1:3] == (1, 1)
    assert written() == ["1.0", "1.2", "2.0", "2.1", "2.2"], "what an earlier run wrote is kept"
    bad.clear()
    assert account(run("2", retry_failed=True))[1:3] == (2, 0)
    assert written() == ["1.0", "1.1", "1.2", "2.0", "2.1", "2.2"]


def test_what_was_kept_of_a_record_goes_when_another_job_drops_it() -> None:
    write_input(1, 2)

    def run(*, drops: bool, **options: Any) -> RunReport:
        pipeline = Pipeline("family")

        async def first(x: int) -> Any:
            return drop("no") if drops else x

        async def children(first: int) -> Any:
            yield first
            raise LookupError(first)

        pipeline.add_stage("first", first, version=str(drops))
        pipeline.add_stage("children", children)
        return pipeline.run_sync("in.jsonl", "out.jsonl", loop="asyncio", **options)

    assert account(run(drops=False))[1:3] == (0, 2)
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    report = run(drops=True, retry_failed=True)
    assert (report.dropped, report.dead) == (2, 0)
    assert Path("out.jsonl").read_text() == ""


def test_two_runs_never_share_a_file_of_dead_letters() -> None:
    write_input(*range(1, 7))
    first, second = aborting(3), Job()
    second.bad = {2, 4}
    assert first.run(dead="dead.jsonl").exit_code == 4
    with pytest.raises(RequestError, match=r"dead.jsonl exists"):
        second.pipeline.run_sync("in.jsonl", "other.jsonl", loop="asyncio", dead="dead.jsonl")
    first.bad.clear()
    assert first.run(dead="dead.jsonl").exit_code == 0
    assert not Path("dead.jsonl").exists()
    report = second.pipeline.run_sync("in.jsonl", "other.jsonl", loop="asyncio", dead="dead.jsonl")
    assert (report.exit_code, len(Path("dead.jsonl").read_text().splitlines())) == (3, 2)
