"""What do two processes gain over one on a job that takes a core?

The job is one stage of pure Python, about 300 microseconds of it per record, from a file of JSON lines to another one.
The machine decides what a second process can gain at all, so that is measured in the same rounds: a plain loop over the
whole file, in a process of its own, against two such processes with half of the file each. Held to that are
``stageflow run --processes 2`` against ``stageflow run``. Of the gain of two bare processes, nine tenths are promised.

All are timed from the start of the work to its end by their own account of it: the interpreter's start, which is no
part of the question and is the longer the more processes there are, is left out on both sides.

What the fleet's own process adds (it reads, leases and writes) is told in CPU time per record.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from workload import Report, Settings, WrongAnswer, in_turns, parse, ratio, write_records

GAIN_KEPT: Final = 0.9
"""Of what a second bare process gains, at least so much is gained by a second process of a run."""

JOB: Final = """
from stageflow import Pipeline

pipeline = Pipeline("busy", key="id")

def busy(n):
    found = n
    for each in range({turns}):
        found = (found * 31 + each) % 1_000_003
    return found

@pipeline.stage(max_in_flight=16)
async def answer(n):
    return busy(n)
"""

BARE: Final = """
import json, sys, time
from job import busy

part, of, source, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
sys.stdin.readline()
started = time.monotonic()
lines = open(source, "rb").read().splitlines()
lines = lines[len(lines) * part // of : len(lines) * (part + 1) // of]
with open(target, "wb") as out:
    for line in lines:
        record = json.loads(line)
        record["answer"] = busy(record["n"])
        out.write(json.dumps(record, separators=(",", ":")).encode() + b"\\n")
print(started, time.monotonic())
"""

RUN: Final = """
import sys, time
from stageflow.events import RunEnded, RunStarted
from stageflow.loader import load

class Watch:
    def on_event(self, event):
        if isinstance(event, RunStarted):
            self.started, self.cpu = time.monotonic(), time.process_time()
        elif isinstance(event, RunEnded):
            self.ended, self.cpu = time.monotonic(), time.process_time() - self.cpu

watch = Watch()
pipeline = load("job.py").pipeline
sys.stdin.readline()
report = pipeline.run_sync(sys.argv[2], sys.argv[3], processes=int(sys.argv[1]), listeners=[watch], loop=sys.argv[4])
assert report.exit_code == 0, report
print(watch.started, watch.ended, watch.cpu)
"""


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds that a round took, and of those the CPU time of the first process."""

    wall: float
    cpu: float = 0.0


class Workshop:
    """A folder with the job, its input, and what runs it."""

    def __init__(self, folder: Path, settings: Settings, records: int) -> None:
        self.folder = folder
        self.records = records
        self._loop = settings.loop
        turns = _turns(300e-6)
        (folder / "job.py").write_text(JOB.format(turns=turns))
        (folder / "bare.py").write_text(BARE)
        (folder / "run.py").write_text(RUN)
        write_records(folder / "in.jsonl", records)
        self._expected: bytes | None = None

    def bare(self, processes: int) -> Took:
        """Plain loops, side by side."""
        outputs = [self.folder / f"bare-{part}.jsonl" for part in range(processes)]
        words = [["bare.py", str(part), str(processes), "in.jsonl", str(out)] for part, out in enumerate(outputs)]
        told = self._side_by_side(words)
        self._check(b"".join(out.read_bytes() for out in outputs))
        return Took(max(float(each[1]) for each in told) - min(float(each[0]) for each in told))

    def ours(self, processes: int) -> Took:
        """A run in so many processes."""
        output = self.folder / "out.jsonl"
        for path in self.folder.glob("out.jsonl*"):
            path.unlink()
        [(started, ended, cpu)] = self._side_by_side([["run.py", str(processes), "in.jsonl", str(output), self._loop]])
        self._check(output.read_bytes())
        return Took(float(ended) - float(started), float(cpu))

    def _side_by_side(self, words: list[list[str]]) -> list[list[str]]:
        """Start all, let them begin together, and return what each has printed."""
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        running = [
            subprocess.Popen(
                [sys.executable, *each],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for each in words
        ]
        time.sleep(0.1)
        told = []
        for process in running:
            assert process.stdin is not None, "it was given a pipe"
            process.stdin.write("\n")
            process.stdin.flush()
        for process in running:
            out, _ = process.communicate(timeout=600)
            if process.returncode:
                raise WrongAnswer(f"{process.args} ended with {process.returncode}")
            told.append(out.split())
        return told

    def _check(self, output: bytes) -> None:
        """The first answer is that of a plain loop, and all are the same to the byte."""
        if self._expected is None:
            self._expected = output
        if output != self._expected or output.count(b"\n") != self.records:
            raise WrongAnswer("the outputs differ")


def _turns(seconds: float) -> int:
    """How many turns of the job's loop take so much CPU time."""
    started = time.process_time()
    found = 0
    for each in range(100_000):
        found = (found * 31 + each) % 1_000_003
    return max(1, round(seconds * 100_000 / (time.process_time() - started)))


def main(argv: list[str] | None = None) -> int:
    settings = parse(__doc__, argv)
    records = settings.size(20_000, 5_000, 60)
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder), settings, records)
        contenders = {
            f"{name}, {count}": partial(run, count)
            for name, run in (("bare", shop.bare), ("stageflow", shop.ours))
            for count in (1, 2)
        }
        took = in_turns(contenders, rounds=settings.size(5, 3, 1), warm_up=settings.mode == "full")
    walls = {name: [each.wall for each in rounds] for name, rounds in took.items()}
    bare, ours = (ratio(walls[f"{name}, 1"], walls[f"{name}, 2"]) for name in ("bare", "stageflow"))
    report = Report(
        "processes", settings, {"work": "", "processes": "", "seconds": ".2f", "gain": ".2f", "us of CPU": ".1f"}
    )
    for name, rounds in took.items():
        who, _, count = name.partition(", ")
        gain = {"bare, 2": bare, "stageflow, 2": ours}.get(name)
        cpu = statistics.median(each.cpu for each in rounds) / records * 1e6 if name == "stageflow, 2" else None
        report.row(work=who, processes=count, seconds=statistics.median(walls[name]), gain=gain, us_of_CPU=cpu)
    report.at_least("of the gain of a second bare process", _kept(walls), GAIN_KEPT)
    return report.finish("us of CPU: of the process that reads, leases and writes, per record")


def _kept(walls: dict[str, list[float]]) -> float:
    """The median over the rounds of our gain over the bare one."""
    rounds = zip(walls["stageflow, 1"], walls["stageflow, 2"], walls["bare, 1"], walls["bare, 2"], strict=True)
    return statistics.median(ours / ours_2 / (bare / bare_2) for ours, ours_2, bare, bare_2 in rounds)


if __name__ == "__main__":
    sys.exit(main())
