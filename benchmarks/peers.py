"""stageflow against other tools, and against what is written by hand: the same work, in one run.

    pip install 'stageflow[bench]'
    python benchmarks/peers.py
    python benchmarks/peers.py --quick --loop asyncio
    python benchmarks/peers.py --json results.json --plot results.svg --plot results.png

Three questions, all of them about three stages in a row with 16, 64 and 8 calls in progress:

* no-op: stages that do nothing, records in memory. CPU time per record: what the engine costs.
* sleeping: stages that take 5, 20 and 2 ms. Wall time per record, and as a share of Little's bound over the whole run
  (records times 20 ms over 64 workers, over the time of the run): are the services kept busy? And the CPU time of it.
* file to file: stages that do nothing between two JSONL files of records of 320 bytes. CPU time per record. stageflow
  keeps its ledger and the order of the input, and syncs the file; the others read and write with orjson and a buffer,
  and Bytewax with its own connectors. None of them could go on after a crash here.

"of tuned" is a contender's time per record over that of the worker pools that are tuned by hand, "lead" over that of
stageflow: 2.00 says that stageflow needs half as much. Both are medians of ratios within a round. The costlier
contenders run fewer records. Who is not installed is skipped, and named.

How each peer is written, and why so, is in ``contenders/``: every one in the form that is cheapest for it here. Bytewax
calls plain functions, one after the other; where calls wait it has pools of threads. SPDL runs on the loop of a thread
of its own. Both are in this process, and the CPU time is that of all its threads. Answers are compared as multisets,
and in the sleeping stages no contender may have more calls in progress than agreed.

Source: J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", 1961.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jsonl
import workload
from contenders import CONTENDERS
from contenders.contender import QUEUE_SIZE, Contender, Job, Stage
from sleeping import Sleeper
from workload import Item, Settings, WrongAnswer

from stageflow import Pipeline

WORKERS: Final = jsonl.WORKERS
OURS: Final = "stageflow"
TUNED: Final = "by hand, tuned"

# The work: three stages that only compute, or call a service first


class Service:
    """What a stage calls: it takes its time, and counts the calls that are in progress."""

    def __init__(self, sleeper: Sleeper) -> None:
        self.sleeper = sleeper
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    async def wait(self) -> None:
        self._begin()
        await asyncio.sleep(self.sleeper.seconds)
        self._end()

    def block(self) -> None:
        self._begin()
        time.sleep(self.sleeper.seconds)
        self._end()

    def _begin(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def _end(self) -> None:
        with self._lock:
            self._now -= 1


def do_first(item: Item) -> Item:
    item["first"] = item["n"] + 1
    return item


def do_second(item: Item) -> Item:
    item["second"] = item["first"] * 2
    return item


def do_third(item: Item) -> Item:
    item["third"] = item["second"] - 3
    return item


# Written out: a call through a common wrapper would be a cost that stageflow's stages do not have.


async def first(item: Item) -> Item:
    item["first"] = item["n"] + 1
    return item


async def second(item: Item) -> Item:
    item["second"] = item["first"] * 2
    return item


async def third(item: Item) -> Item:
    item["third"] = item["second"] - 3
    return item


def nothing() -> Job:
    """Stages that do nothing but fill in a number."""
    functions = zip((first, second, third), (do_first, do_second, do_third), WORKERS, strict=True)
    return Job([Stage(*each) for each in functions], lambda: jsonl.pipeline, waits=False)


def calling(services: Sequence[Service]) -> Job:
    """The same stages, each of which calls its service first."""

    def stage(service: Service, compute: Callable[[Item], Item]) -> Stage:
        async def work(item: Item) -> Item:
            await service.wait()
            return compute(item)

        def plain(item: Item) -> Item:
            service.block()
            return compute(item)

        return Stage(work, plain, service.sleeper.workers)

    stages = [stage(*each) for each in zip(services, (do_first, do_second, do_third), strict=True)]
    return Job(stages, lambda: calling_pipeline(*services), waits=True)


def calling_pipeline(one: Service, two: Service, three: Service) -> Pipeline:
    """What stageflow runs."""
    pipeline = Pipeline("sleeping")

    @pipeline.stage(max_in_flight=one.sleeper.workers, queue_size=QUEUE_SIZE)
    async def first(n: int) -> int:
        await one.wait()
        return n + 1

    @pipeline.stage(max_in_flight=two.sleeper.workers, queue_size=QUEUE_SIZE)
    async def second(first: int) -> int:
        await two.wait()
        return first * 2

    @pipeline.stage(max_in_flight=three.sleeper.workers, queue_size=QUEUE_SIZE)
    async def third(second: int) -> int:
        await three.wait()
        return second - 3

    return pipeline


# Measuring


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds per record."""

    wall: float
    cpu: float


Runs = dict[str, Callable[[], Spent]]


def measured(run: Callable[[], None], records: int) -> Spent:
    """Run once, in both clocks."""
    wall = 0.0

    def clocked() -> None:
        nonlocal wall
        start = time.perf_counter()
        run()
        wall = time.perf_counter() - start

    spent = workload.timed(clocked, lambda _: None, time.process_time)
    return Spent(wall / records, spent / records)


def compare(name: str, outputs: list[Item], records: int) -> None:
    """See that there is each answer once.

    Raises:
        WrongAnswer: There is not.
    """
    expected = [{"n": n, "first": n + 1, "second": 2 * n + 2, "third": 2 * n - 1} for n in range(records)]
    outputs.sort(key=lambda output: int(output["n"]))
    if outputs != expected:
        wrong = next((o for o, e in zip(outputs, expected, strict=False) if o != e), f"{len(outputs)} outputs")
        raise WrongAnswer(f"{name}: {wrong}")


def in_memory(contender: Contender, job: Callable[[], Job], records: int, settings: Settings) -> Spent:
    """Run the records through the job and compare the answers."""
    outputs: list[Item] = []
    items = ({"n": n} for n in range(records))
    made = job()
    spent = measured(lambda: contender.run(made, items, outputs.append, settings), records)
    compare(contender.name, outputs, records)
    return spent


def no_op(contenders: Sequence[Contender], settings: Settings) -> Runs:
    records = settings.size(20_000, 5_000, 60)

    def runs(contender: Contender) -> Callable[[], Spent]:
        return lambda: in_memory(contender, nothing, records // contender.fewer, settings)

    return {contender.name: runs(contender) for contender in contenders}


SLEEPERS: Final = [Sleeper("first", 0.005, 16), Sleeper("second", 0.020, 64), Sleeper("third", 0.002, 8)]
BOUND: Final = min(sleeper.per_second for sleeper in SLEEPERS)


def sleeping(contenders: Sequence[Contender], settings: Settings) -> Runs:
    records = settings.size(3_200, 640, 30)

    def once(contender: Contender) -> Spent:
        services = [Service(sleeper) for sleeper in SLEEPERS]
        spent = in_memory(contender, lambda: calling(services), records, settings)
        for service in services:
            if service.most > service.sleeper.workers:
                raise WrongAnswer(
                    f"{contender.name}: {service.most} calls in progress where {service.sleeper.workers} were agreed"
                )
        return spent

    def runs(contender: Contender) -> Callable[[], Spent]:
        return lambda: once(contender)

    return {contender.name: runs(contender) for contender in contenders if contender.concurrent}


def file_to_file(contenders: Sequence[Contender], settings: Settings, directory: Path) -> Runs:
    records = settings.size(50_000, 5_000, 60)

    def once(contender: Contender) -> Spent:
        some = records // contender.fewer
        source, sink = directory / f"{some}.jsonl", directory / "out.jsonl"
        if not source.exists():
            workload.write_records(source, some)
        jsonl.remove(sink)
        spent = measured(lambda: contender.run_files(nothing(), source, sink, settings), some)
        jsonl.check(contender.name, sink, some, ordered=contender.name == OURS)
        jsonl.remove(sink)
        return spent

    def runs(contender: Contender) -> Callable[[], Spent]:
        return lambda: once(contender)

    return {contender.name: runs(contender) for contender in contenders}


# Telling

COLUMNS: Final = {
    "work": "",
    "contender": "",
    "us/record": ",.1f",
    "records/s": ",.0f",
    "share": ".2f",
    "of tuned": ",.2f",
    "lead": ",.2f",
}

WORKS: Final = {
    "no-op": "CPU per record, stages that do nothing (log scale)",
    "file to file": "CPU per record, JSONL file to JSONL file (log scale)",
    "sleeping, CPU": "CPU per record, stages of 5, 20 and 2 ms (log scale)",
    "sleeping": "Share of Little's bound, stages of 5, 20 and 2 ms",
}
"""What is measured, as the picture heads it."""


def tell(report: workload.Report, work: str, found: Mapping[str, Sequence[Spent]], *, wall: bool = False) -> None:
    """Add a row for each contender: by its CPU time, or by ``wall`` time, to which belongs a share of the bound."""
    times = {name: [each.wall if wall else each.cpu for each in runs] for name, runs in found.items()}
    for name, runs in found.items():
        per_second = statistics.median(1 / each.wall for each in runs)
        report.row(
            work=work,
            contender=name,
            **{"us/record": statistics.median(times[name]) * 1e6, "records/s": per_second},
            share=per_second / BOUND if wall else None,
            of_tuned=workload.ratio(times[name], times[TUNED]),
            lead=workload.ratio(times[name], times[OURS]),
        )


def rounds_of(settings: Settings) -> dict[str, int]:
    """How often each contender is asked each question."""
    return {"no-op": settings.size(9, 5, 1), "sleeping": settings.size(5, 3, 1), "file to file": settings.size(9, 5, 1)}


def measure(settings: Settings, contenders: Sequence[Contender]) -> workload.Report:
    """Ask all questions."""
    report = workload.Report("peers", settings, COLUMNS)
    rounds = rounds_of(settings)
    tell(report, "no-op", workload.in_turns(no_op(contenders, settings), rounds=rounds["no-op"]))
    found = workload.in_turns(sleeping(contenders, settings), rounds=rounds["sleeping"])
    tell(report, "sleeping", found, wall=True)
    tell(report, "sleeping, CPU", found)
    with tempfile.TemporaryDirectory() as directory:
        runs = file_to_file(contenders, settings, Path(directory))
        tell(report, "file to file", workload.in_turns(runs, rounds=rounds["file to file"]))
    return report


def processor() -> str:
    """What the machine calls its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def document(
    report: workload.Report, contenders: Sequence[Contender], skipped: Mapping[str, str], load: float
) -> dict[str, Any]:
    """All that was measured, and what it was measured with; ``load`` is what else the machine had to do before."""
    return {
        "benchmark": report.name,
        "mode": report.settings.mode,
        "loop": report.settings.loop,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs ({processor()})",
        "load": round(load, 2),
        "rounds": rounds_of(report.settings),
        "works": WORKS,
        "contenders": {
            each.name: {"kind": each.kind, "version": each.version, "in turn": each.in_turn} for each in contenders
        },
        "skipped": dict(skipped),
        "rows": [
            {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            for row in report.rows
        ],
    }


def outputs_of(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the arguments that are this script's own; the rest are those that all scripts have."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, action="append", default=[])
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    outputs, rest = outputs_of(argv)
    settings = workload.parse(__doc__, rest)
    skipped = {each.name: why for each in CONTENDERS if (why := each.missing())}
    contenders = [each for each in CONTENDERS if each.name not in skipped]
    for name, why in skipped.items():
        print(f"skipped: {name}, {why}")
    load, *_ = os.getloadavg()
    report = measure(settings, contenders)
    told = document(report, contenders, skipped, load)
    if outputs.json is not None:
        outputs.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if outputs.plot:
        import plot

        for path in outputs.plot:
            plot.draw(told, path)
    return report.finish("time per record, over that of the pools tuned by hand, and over that of stageflow")


if __name__ == "__main__":
    workload.run_script(main)
