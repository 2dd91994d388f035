"""What does a start cost? CPU time of whole processes that import stageflow, show its help, or run one record.

    python benchmarks/start.py
    python benchmarks/start.py --quick

Each contender is a process of its own, user and system time together, in turns; a ratio is the median over the rounds.
What they are measured against does no more than import what they cannot do without: asyncio for ``import stageflow``,
asyncio and click for the command. "nothing" is the interpreter, which is in all the others.

* ``import stageflow``: what a program pays that only defines a pipeline
* ``stageflow --help``: as ``python -m stageflow``
* one record: ``stageflow run`` of a job with one stage over one record, from file to file, with the loop asked for

Exits 1 where one costs more than PROMISES allows; what each is to get to is told as a goal.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import jsonl
import workload
from workload import Settings, WrongAnswer

import stageflow

IMPORTABLE: Final = Path(stageflow.__file__).resolve().parents[1]

JOB: Final = """\
from stageflow import Pipeline

pipeline = Pipeline("start")


@pipeline.stage
async def answer(n: int) -> int:
    return n + 1
"""

NOTHING, ASYNCIO, CLICK = "nothing", "import asyncio", "import asyncio, click"
IMPORT, HELP, RUN = "import stageflow", "stageflow --help", "one record"


class Promise(NamedTuple):
    """The most that one costs over what it is measured against: what is to be, and what has to be."""

    ours: str
    against: str
    goal: float
    bound: float


PROMISES: Final = (
    Promise(IMPORT, ASYNCIO, goal=1.25, bound=1.5),
    Promise(HELP, CLICK, goal=1.25, bound=1.5),
    Promise(RUN, CLICK, goal=2.5, bound=3.0),
)


def contenders(directory: Path, settings: Settings) -> dict[str, Callable[[], float]]:
    """Every process, each measured and checked."""
    job, source, sink = directory / "job.py", directory / "in.jsonl", directory / "out.jsonl"
    job.write_text(JOB, encoding="ascii")
    source.write_text('{"n":1}\n', encoding="ascii")
    command = ["-m", "stageflow"]
    run = [*command, "run", str(job), str(source), "-o", str(sink), "--loop", settings.loop, "--progress", "off"]

    def as_is(name: str, output: str) -> None:
        if output:
            raise WrongAnswer(f"{name}: it says {output[:200]!r}")

    def help_is_shown(name: str, output: str) -> None:
        if not output.startswith("Usage:"):
            raise WrongAnswer(f"{name}: it says {output[:200]!r}")

    def record_is_written(name: str, output: str) -> None:
        lines = sink.read_text(encoding="utf-8").splitlines()
        if [json.loads(line) for line in lines] != [{"n": 1, "answer": 2}]:
            raise WrongAnswer(f"{name}: it has written {lines!r}")
        jsonl.remove(sink)

    ways: Mapping[str, tuple[list[str], Callable[[str, str], None]]] = {
        NOTHING: (["-c", "pass"], as_is),
        ASYNCIO: (["-c", "import asyncio"], as_is),
        IMPORT: (["-c", "import stageflow"], as_is),
        CLICK: (["-c", "import asyncio, click"], as_is),
        HELP: ([*command, "--help"], help_is_shown),
        RUN: (run, record_is_written),
    }
    return {name: measured(name, arguments, check) for name, (arguments, check) in ways.items()}


def measured(name: str, arguments: Sequence[str], check: Callable[[str, str], None]) -> Callable[[], float]:
    """A contender that returns the CPU seconds of its process."""
    path = os.pathsep.join([str(IMPORTABLE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}

    def once() -> float:
        with subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise WrongAnswer(f"{name}: exit code {process.returncode}")
        check(name, output)
        return usage.ru_utime + usage.ru_stime

    return once


def measure(settings: Settings) -> workload.Report:
    """Compare each with what it is measured against."""
    columns = {"process": "", "ms CPU": ".1f", "against": "", "ratio": ".2f", "lowest": ".2f", "highest": ".2f"}
    report = workload.Report("start", settings, columns)
    with tempfile.TemporaryDirectory() as directory:
        runs = contenders(Path(directory), settings)
        # The warm-up writes the bytecode, which is no part of a start.
        seconds = workload.in_turns(runs, rounds=settings.size(25, 9, 1), warm_up=settings.mode != "tiny")
    promises = {promise.ours: promise for promise in PROMISES}
    for name, spent in seconds.items():
        cost = {"ms CPU": statistics.median(spent) * 1e3}
        promise = promises.get(name)
        if promise is None:
            report.row(process=name, **cost)
            continue
        below = seconds[promise.against]
        ratios = [a / b for a, b in zip(spent, below, strict=True)]
        ratio = workload.ratio(spent, below)
        report.row(process=name, against=promise.against, ratio=ratio, lowest=min(ratios), highest=max(ratios), **cost)
        report.at_most(f"{name} / {promise.against}", ratio, promise.bound)
        report.goal(f"{name} / {promise.against}", ratio, promise.goal, at_most=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("CPU time of whole processes")


if __name__ == "__main__":
    workload.run_script(main)
