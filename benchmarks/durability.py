"""What durability costs: writing commits, going on with a long run, sorting at the end, the loop while a disk syncs.

    python benchmarks/durability.py
    python benchmarks/durability.py --quick --loop asyncio

Four questions, each with its answer checked:

* CPU time per record of 1.5 KB to write commits of some records through the ledger, over that of encoding them and
  appending them to a file with a buffer, in turns in one process. At most 8 us more in groups of 64, which is what a
  busy run makes by itself.
* Seconds and peak memory to go on with a run of 10 million records, written in groups of 64: below 5 s and 150 MB.
* Peak memory of bringing a million records that settled out of turn into the order of the input: 20 MB more.
* The longest that the loop is held up while a disk takes its time to sync.

Exits 1 where one of the bounds is missed.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

import memory
import orjson
import workload
from workload import Settings, WrongAnswer

from stageflow.commit import Commit, InputIdentity, InputMark, JobIdentity, OpenRequest, Resumption
from stageflow.ledger import LedgerOutput
from stageflow.ledger.disk import Disk
from stageflow.ledger.format import VERSION, Fields, seal
from stageflow.ledger.names import Names

MB: Final = 1_000_000
JOB: Final = JobIdentity("job.py", "rest", {"work": "1"}, {"work": ()})
GROUPS: Final = (1, 8, 64, 256)
NATURAL: Final = 64
"""Records per commit of a busy run."""

COST: Final = 8.0
RESUME_SECONDS: Final = 5.0
RESUME_MB: Final = 150.0
SORT_MB: Final = 20.0
LAG: Final = 0.1

_MARK_LINES: Final = 50_000
_COMMITS_PER_MARKER: Final = 300
_LINE_BYTES: Final = 1500
_OUT_OF_TURN: Final = 500


def input_of(size: int) -> InputIdentity:
    return InputIdentity("in.jsonl", 1, 1, size, 1, 1)


def request_for(size: int) -> OpenRequest:
    """A request that goes on with whatever this script wrote before."""
    return OpenRequest(
        input=input_of(size),
        first_difference=lambda marks: None,
        job=JOB,
        job_changes=lambda before, now: [],
    )


# Writing


def long_record(n: int) -> workload.Item:
    """About 1.5 KB as JSON."""
    return {**workload.record(n), "answer": "a longer answer, such as a model gives, to what was asked; " * 20}


def groups_of(count: int, size: int) -> list[list[tuple[int, workload.Item]]]:
    records = [(n, long_record(n)) for n in range(count)]
    return [records[at : at + size] for at in range(0, count, size)]


def buffered(directory: Path, groups: Sequence[Sequence[tuple[int, workload.Item]]]) -> float:
    """CPU seconds to encode records and append them to a file with a buffer."""
    start = time.process_time()
    with open(directory / "plain.jsonl", "wb") as file:
        for group in groups:
            file.writelines([orjson.dumps(record) + b"\n" for _, record in group])
    return time.process_time() - start


async def committed(directory: Path, groups: Sequence[Sequence[tuple[int, workload.Item]]]) -> float:
    """CPU seconds to encode records and write them in commits, of all threads, with a sync every second."""
    output = LedgerOutput(str(directory / "out.jsonl"), dead=str(directory / "dead.jsonl"))
    output.open(request_for(1))
    start = time.process_time()
    for group in groups:
        lines = [orjson.dumps(record) + b"\n" for _, record in group]
        await output.write(Commit(ordinals=[n for n, _ in group], lines=lines))
    seconds = time.process_time() - start
    await output.close(complete=True)
    return seconds


def measure_writing(settings: Settings, report: workload.Report) -> None:
    count, rounds = settings.size(20_000, 4_000, 200), settings.size(5, 3, 1)
    for size in GROUPS:
        groups = groups_of(count if size > 1 else count // 4, size)
        records = sum(map(len, groups))
        plain, durable = [], []
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory() as name:
                directory = Path(name)
                seconds = buffered(directory, groups), settings.run(committed(directory, groups))
                if (directory / "plain.jsonl").read_bytes() != (directory / "out.jsonl").read_bytes():
                    raise WrongAnswer(f"the ledger in groups of {size}: the output is not what was written")
            if number or rounds == 1:  # the first one warms up
                plain.append(seconds[0] / records * 1e6)
                durable.append(seconds[1] / records * 1e6)
        more = sorted(b - a for a, b in zip(plain, durable, strict=True))[len(plain) // 2]
        middle = sorted(durable)[len(durable) // 2]
        report.row(what=f"write, groups of {size}", us_a_record=middle, us_more=more)
        if size == NATURAL:
            report.at_most(f"us more a record in groups of {size}", more, COST)


# Going on


def write_long_ledger(directory: Path, records: int, *, group: int = NATURAL) -> None:
    """The files of a run that settled so many records, nearly in turn, and was killed. The results are a hole."""
    rng = random.Random(1)
    path = str(directory / "out.jsonl")
    with open(path + ".ledger", "wb") as ledger:
        end = _Lines(ledger, path, records).write(rng, records, group)
    with open(path + ".partial", "wb") as results:
        results.truncate(end)


class _Lines:
    def __init__(self, ledger: BinaryIO, path: str, records: int) -> None:
        self._ledger = ledger
        self._seal = 0
        self._end = 0
        letters = Names(path, f"{path}.dead.jsonl").letters_noted
        self._header: Fields = {"t": "h", "v": VERSION, "run": "a long run", "epoch": 1}
        self._header |= {"pid": 1, "host": "here", "at": "then", "dead": letters}
        self._header |= {"opts": {"order": "input"}, "input": asdict(input_of(records)), "job": asdict(JOB)}

    def write(self, rng: random.Random, records: int, group: int) -> int:
        """All lines; returns how long the results are."""
        self._line(self._header)
        for number, first in enumerate(range(0, records, group)):
            ordinals = list(range(first, min(first + group, records)))
            rng.shuffle(ordinals)
            start, self._end = self._end, self._end + len(ordinals) * _LINE_BYTES
            self._line({"t": "c", "o": [start, self._end, 1], "x": [0, 0, 0], "k": ordinals})
            if number % _COMMITS_PER_MARKER == 0:
                self._marker(first + len(ordinals))
            if first // _MARK_LINES != (first + group) // _MARK_LINES:
                lines = (first + group) // _MARK_LINES * _MARK_LINES
                self._line({"t": "i", "n": lines, "b": lines * _LINE_BYTES, "sha": f"{lines:064}"})
        self._marker(records)
        return self._end

    def _marker(self, settled: int) -> None:
        self._line({"t": "s", "o": self._end, "x": 0, "n": [settled, 0, 0], "at": "then", "rss": 0})

    def _line(self, fields: Fields) -> None:
        line, self._seal = seal(fields, self._seal)
        self._ledger.write(line)


def resume(directory: Path, records: int) -> dict[str, Any]:
    """Open the ledger; in a process of its own, whose peak is told."""
    output = LedgerOutput(str(directory / "out.jsonl"), dead=str(directory / "out.jsonl.dead.jsonl"))
    before = memory.peak_bytes()
    start = time.perf_counter()
    found: Resumption = output.open(request_for(records))
    seconds = time.perf_counter() - start
    right = found.totals.settled == records and found.done.count(0, 0, records) == 0
    return {"seconds": seconds, "peak": memory.peak_bytes(), "before": before, "right": right}


def measure_resume(settings: Settings, report: workload.Report) -> None:
    records = settings.size(10_000_000, 1_000_000, 2_000)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_long_ledger(directory, records)
        size = (directory / "out.jsonl.ledger").stat().st_size
        found = in_child("resume", directory, records, settings)
    if not found["right"]:
        raise WrongAnswer("going on: not all records have settled")
    report.row(
        what=f"go on after {records:,}, ledger of {size / MB:,.0f} MB", seconds=found["seconds"], MB=found["peak"] / MB
    )
    report.at_most(f"seconds to go on after {records:,}", found["seconds"], RESUME_SECONDS)
    report.at_most(f"MB to go on after {records:,}", found["peak"] / MB, RESUME_MB)


# Sorting


async def sort(directory: Path, records: int) -> dict[str, Any]:
    """Write records out of turn, and finish; in a process of its own, whose peak is told."""
    output = LedgerOutput(str(directory / "out.jsonl"), dead=None, fsync="off")
    output.open(request_for(records))
    rng = random.Random(1)
    for first in range(0, records, _OUT_OF_TURN):
        ordinals = list(range(first, min(first + _OUT_OF_TURN, records)))
        rng.shuffle(ordinals)
        for at in range(0, len(ordinals), NATURAL):
            group = ordinals[at : at + NATURAL]
            lines = [b'{"n":%d,"text":"%s"}\n' % (n, b"x" * 300) for n in group]
            await output.write(Commit(ordinals=group, lines=lines))
    before, start = memory.peak_bytes(), time.perf_counter()
    await output.close(complete=True)
    seconds, peak = time.perf_counter() - start, memory.peak_bytes()
    return {"seconds": seconds, "peak": peak, "before": before, "right": in_order(directory / "out.jsonl", records)}


def in_order(path: Path, records: int) -> bool:
    with path.open("rb") as file:
        found = (orjson.loads(line)["n"] for line in file)
        return all(n == wanted for n, wanted in zip(found, range(records), strict=True))


def measure_sort(settings: Settings, report: workload.Report) -> None:
    records = settings.size(1_000_000, 100_000, 1_000)
    with tempfile.TemporaryDirectory() as name:
        found = in_child("sort", Path(name), records, settings)
    if not found["right"]:
        raise WrongAnswer("the sort: the output is not in the order of the input")
    before = found["before"] / MB
    report.row(
        what=f"finish {records:,} out of turn", seconds=found["seconds"], MB=found["peak"] / MB, MB_before=before
    )
    report.at_most(f"MB more to finish {records:,} out of turn", found["peak"] / MB - before, SORT_MB)


# The loop meanwhile


class SlowDisk(Disk):
    """Takes its time to sync, in a call that blocks."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.synced = 0

    def sync(self, descriptor: int) -> None:
        time.sleep(self.seconds)
        self.synced += 1


async def lag(directory: Path, seconds: float, disk: SlowDisk) -> float:
    """The longest that a task which sleeps for 1 ms was late, while commits are written."""
    output = LedgerOutput(str(directory / "out.jsonl"), dead=None, interval=0.05, disk=disk)
    output.open(request_for(1))
    loop, worst, written = asyncio.get_running_loop(), 0.0, 0
    end = loop.time() + seconds

    async def watch() -> None:
        nonlocal worst
        while loop.time() < end:
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            worst = max(worst, loop.time() - due)

    watching = asyncio.create_task(watch())
    while loop.time() < end:
        await output.write(Commit(ordinals=[written], lines=[b'{"n":%d}\n' % written], marks=[InputMark(1, 1, "")]))
        written += 1
        await asyncio.sleep(0)
    await watching
    await output.close(complete=True)
    if (directory / "out.jsonl").read_bytes().count(b"\n") != written or not disk.synced:
        raise WrongAnswer("the loop meanwhile: not all was written, or nothing synced")
    return worst


def measure_lag(settings: Settings, report: workload.Report) -> None:
    seconds = settings.size(5.0, 1.5, 0.3)
    disk = SlowDisk(settings.size(0.2, 0.2, 0.02))
    with tempfile.TemporaryDirectory() as name:
        worst = settings.run(lag(Path(name), seconds, disk))
    report.row(what=f"the loop, while {disk.synced} syncs take {disk.seconds:g} s each", seconds=worst)
    report.at_most("seconds that the loop was held up", worst, LAG)


# All of it


def in_child(what: str, directory: Path, records: int, settings: Settings) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--loop", settings.loop, "--child", what, str(directory), str(records)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def child(what: str, directory: Path, records: int, settings: Settings) -> None:
    """Run a part and print its figures as JSON."""
    print(json.dumps(resume(directory, records) if what == "resume" else settings.run(sort(directory, records))))


def measure(settings: Settings) -> workload.Report:
    """All four questions."""
    columns = {"what": "", "us a record": ".1f", "us more": ".1f", "seconds": ".3f", "MB": ".0f", "MB before": ".0f"}
    report = workload.Report("durability", settings, columns)
    for part in (measure_writing, measure_resume, measure_sort, measure_lag):
        part(settings, report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("what the ledger costs")


if __name__ == "__main__":
    if "--child" in sys.argv:
        position = sys.argv.index("--child")
        what, directory, records = sys.argv[position + 1 :]
        child(what, Path(directory), int(records), workload.parse(__doc__, sys.argv[1:position]))
    else:
        workload.run_script(main)
