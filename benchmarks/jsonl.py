"""What does a run from file to file cost? A JSONL file through three stages that do nothing, against a script.

    python benchmarks/jsonl.py
    python benchmarks/jsonl.py --quick --loop asyncio

The script is what an expert writes with orjson and asyncio: it reads the file as a stream, has three worker pools over
asyncio.Queue(maxsize), and writes through a buffer. It does not order its output, sync it to the disk, keep dead
letters, or notice a damaged line; stageflow does. Records have about 320 bytes. Both also write to /dev/null, where
stageflow has no ledger either. No bound: the figure is to be known.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import workload
from workload import Item, Settings, Step, WrongAnswer

from stageflow import Pipeline

WORKERS = (16, 64, 8)
QUEUE_SIZE = 64
NOWHERE = Path(os.devnull)
Way = Callable[[Path, Path, Settings], None]

pipeline = Pipeline("jsonl")


@pipeline.stage(max_in_flight=WORKERS[0], queue_size=QUEUE_SIZE)
async def first(n: int) -> int:
    return n + 1


@pipeline.stage(max_in_flight=WORKERS[1], queue_size=QUEUE_SIZE)
async def second(first: int) -> int:
    return first * 2


@pipeline.stage(max_in_flight=WORKERS[2], queue_size=QUEUE_SIZE)
async def third(second: int) -> int:
    return second - 3


async def do_first(item: Item) -> None:
    item["first"] = item["n"] + 1


async def do_second(item: Item) -> None:
    item["second"] = item["first"] * 2


async def do_third(item: Item) -> None:
    item["third"] = item["second"] - 3


STEPS = [Step(work, workers) for work, workers in zip((do_first, do_second, do_third), WORKERS, strict=True)]


class Deaf:
    """Hears that a run to nowhere can't be resumed, which else were logged for each."""

    def on_event(self, event: object) -> None:
        """Do nothing."""


def with_stageflow(source: Path, sink: Path, settings: Settings) -> None:
    """The job, as a user runs it."""
    pipeline.run_sync(str(source), str(sink), loop=settings.loop, listeners=(Deaf(),))


def by_hand(source: Path, sink: Path, settings: Settings) -> None:
    """The script."""
    with source.open("rb") as lines, sink.open("wb") as output:

        def write(item: Item) -> None:
            output.write(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))

        settings.run(workload.hand_written(map(orjson.loads, lines), STEPS, QUEUE_SIZE, write))


def answer(n: int) -> Item:
    """The output for a record."""
    return {**workload.record(n), "first": n + 1, "second": 2 * n + 2, "third": 2 * n - 1}


def check(name: str, sink: Path, records: int, *, ordered: bool) -> None:
    """See that the sink holds every answer once.

    Args:
        ordered: They have to stand in the order of the input, too.

    Raises:
        WrongAnswer: They do not.
    """
    seen = bytearray(records)
    with sink.open("rb") as outputs:
        for number, line in enumerate(outputs):
            output = orjson.loads(line)
            n = output["n"]
            if output != answer(n) or seen[n] or (ordered and n != number):
                raise WrongAnswer(f"{name}: line {number + 1} is {line[:200]!r}")
            seen[n] = 1
    if not all(seen):
        raise WrongAnswer(f"{name}: {records - sum(seen)} records are missing")


def remove(sink: Path) -> None:
    """Remove an output with its ledger, so that the next run begins anew."""
    for path in (sink, Path(f"{sink}.ledger")):
        path.unlink(missing_ok=True)


def contenders(source: Path, records: int, settings: Settings) -> dict[str, Callable[[], tuple[float, float]]]:
    """Both ways, to a file and to nowhere, measured in wall and CPU seconds; what is in the file is checked."""

    def measured(name: str, way: Way, sink: Path) -> Callable[[], tuple[float, float]]:
        def once() -> tuple[float, float]:
            start = time.perf_counter()
            spent = workload.timed(lambda: way(source, sink, settings), lambda _: None, time.process_time)
            seconds = time.perf_counter() - start
            if sink != NOWHERE:
                check(name, sink, records, ordered=way is with_stageflow)
                remove(sink)
            return seconds, spent

        return once

    ways = {"stageflow": with_stageflow, "by hand": by_hand}
    sinks = {"": source.with_name("out.jsonl"), ", to nowhere": NOWHERE}
    return {name + to: measured(name + to, way, sink) for to, sink in sinks.items() for name, way in ways.items()}


def measure(settings: Settings) -> workload.Report:
    """Compare both."""
    columns = {"contender": "", "records/s": ",.0f", "wall ratio": ".2f", "CPU ratio": ".2f", "us CPU/record": ".1f"}
    report = workload.Report("jsonl", settings, columns)
    records = settings.size(100_000, 20_000, 300)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "in.jsonl")
        workload.write_records(source, records)
        found = workload.in_turns(contenders(source, records, settings), rounds=settings.size(7, 5, 1))
    wall = {name: [seconds for seconds, _ in runs] for name, runs in found.items()}
    spent = {name: [seconds for _, seconds in runs] for name, runs in found.items()}
    for name in found:
        ours = name.replace("by hand", "stageflow")
        report.row(
            contender=name,
            **{
                "records/s": records / statistics.median(wall[name]),
                "wall ratio": workload.ratio(wall[name], wall[ours]),
                "CPU ratio": workload.ratio(spent[name], spent[ours]),
                "us CPU/record": statistics.median(spent[name]) / records * 1e6,
            },
        )
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("time over that of stageflow to the same place")


if __name__ == "__main__":
    workload.run_script(main)
