"""Does one slow item hold others up? One call in a hundred takes 50 times as long, against the best that is possible.

    python benchmarks/slow_items.py
    python benchmarks/slow_items.py --quick --loop asyncio

Calls of 20 ms, and among them, at random, 1 % of 1 s, by 32 workers. The best is list scheduling: whoever is free takes
the next record in turn, at once; "of the best" is its time over the run's. "of an even share" is the same for the
seconds of all calls over the workers, as if the last calls could be shared out, too. "of bare tasks" is over as many
tasks which do nothing but take the next record and sleep: what the loop's clock allows, which is up to 1 ms late.

Contenders:

* to a list: stageflow, outputs as they come
* file, completion: stageflow to a JSONL file through its ledger, as they come
* file, in order: the same, with the output in the order of the input (``--order input``)
* by hand, tuned: a worker pool over asyncio.Queue(maxsize), outputs as they come
* ordered window: as many tasks as workers, begun in turn, of which the oldest is awaited: in order, and each slow one
  holds up all that come after it
* gather in chunks: of as many as there are workers, each awaited as a whole: a barrier

The last two are so much slower that they run once and have a fifth of the records, and are compared with the best for
those.

Exits 1 where stageflow attains less than 0.95 of bare tasks; 0.97 of the best is told as a goal.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jsonl
import orjson
import workload
from workload import Item, Settings, Step, WrongAnswer

from stageflow import Pipeline

GOAL: Final = 0.97
"""Of the best."""
BOUND: Final = 0.95
"""Of bare tasks: how late the loop's clock is on a busy machine is not the engine's."""
SLOW_SHARE: Final = 0.01
TIMES_SLOWER: Final = 50
QUEUE_SIZE: Final = 64
FEWER: Final = 5
"""The slowest contenders have a fifth of the records."""

OURS: Final = ("to a list", "file, completion", "file, in order")
BARE: Final = "bare tasks"

Way = Callable[["Calls", list[Item]], Coroutine[Any, Any, object]]
"""Makes all calls, and adds the outputs to the list."""


@dataclass(frozen=True)
class Calls:
    """Records with the seconds that their calls take, and how many calls may be in progress."""

    seconds: Sequence[float]
    workers: int
    records: list[Item] = field(init=False)

    def __post_init__(self) -> None:
        records = [{"n": n, "seconds": seconds} for n, seconds in enumerate(self.seconds)]
        object.__setattr__(self, "records", records)

    def outputs(self) -> list[Item]:
        return [record | {"answer": record["n"] + 1} for record in self.records]

    def best(self) -> float:
        """Seconds of list scheduling: who is free takes the next record."""
        free_at = [0.0] * self.workers
        for seconds in self.seconds:
            heapq.heapreplace(free_at, free_at[0] + seconds)
        return max(free_at)

    def even_share(self) -> float:
        """Seconds of all calls, over the workers."""
        return sum(self.seconds) / self.workers


def calls_of(records: int, workers: int, seconds: float) -> Calls:
    """Of each hundred calls one is slow, anywhere among them."""
    chance = random.Random(1)
    per_slow = round(1 / SLOW_SHARE)
    durations = [seconds] * records
    for first in range(0, records - per_slow + 1, per_slow):
        durations[first + chance.randrange(per_slow)] = seconds * TIMES_SLOWER
    return Calls(durations, workers)


# The ways


def pipeline_for(calls: Calls) -> Pipeline:
    pipeline = Pipeline("slow-items")

    @pipeline.stage(max_in_flight=calls.workers, queue_size=QUEUE_SIZE)
    async def answer(n: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return n + 1

    return pipeline


async def to_a_list(calls: Calls, outputs: list[Item]) -> None:
    await pipeline_for(calls).run(calls.records, outputs)


def to_a_file(order: str, directory: Path) -> Way:
    """From a file to a file; what the file holds is read after the run."""

    async def run(calls: Calls, outputs: list[Item]) -> None:
        await pipeline_for(calls).run(str(directory / "in.jsonl"), str(directory / "out.jsonl"), order=order)

    return run


async def do_answer(item: Item) -> None:
    await asyncio.sleep(item["seconds"])
    item["answer"] = item["n"] + 1


async def tuned_by_hand(calls: Calls, outputs: list[Item]) -> None:
    source = (dict(record) for record in calls.records)
    await workload.hand_tuned(source, [Step(do_answer, calls.workers)], QUEUE_SIZE, outputs.append)


async def bare_tasks(calls: Calls, outputs: list[Item]) -> None:
    items: Iterator[Item] = (dict(record) for record in calls.records)

    async def work() -> None:
        for item in items:
            await do_answer(item)
            outputs.append(item)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(calls.workers):
            tasks.create_task(work())


async def ordered_window(calls: Calls, outputs: list[Item]) -> None:
    begun: deque[tuple[Item, asyncio.Task[None]]] = deque()

    async def take_oldest() -> None:
        item, task = begun.popleft()
        await task
        outputs.append(item)

    async with asyncio.TaskGroup() as tasks:
        for record in calls.records:
            if len(begun) == calls.workers:
                await take_oldest()
            item = dict(record)
            begun.append((item, tasks.create_task(do_answer(item))))
        while begun:
            await take_oldest()


async def gather_in_chunks(calls: Calls, outputs: list[Item]) -> None:
    for first in range(0, len(calls.records), calls.workers):
        chunk = [dict(record) for record in calls.records[first : first + calls.workers]]
        await asyncio.gather(*map(do_answer, chunk))
        outputs += chunk


# Measuring


def measured(name: str, way: Way, calls: Calls, runner: asyncio.Runner, directory: Path) -> Callable[[], float]:
    """A contender that returns its wall seconds, after its answers were checked."""
    sink, expected = directory / "out.jsonl", calls.outputs()

    def once() -> float:
        outputs: list[Item] = []
        start = time.perf_counter()
        runner.run(way(calls, outputs))
        seconds = time.perf_counter() - start
        if name.startswith("file"):
            outputs += map(orjson.loads, sink.read_bytes().splitlines())
            jsonl.remove(sink)
        if name not in ("file, in order", "ordered window", "gather in chunks"):
            outputs.sort(key=lambda output: output["n"])
        if outputs != expected:
            raise WrongAnswer(f"{name}: {len(outputs)} outputs for {len(expected)} records, or others than expected")
        return seconds

    return once


def ways(directory: Path) -> dict[str, Way]:
    """The contenders that are slow at most at the end."""
    return {
        "to a list": to_a_list,
        "file, completion": to_a_file("completion", directory),
        "file, in order": to_a_file("input", directory),
        "by hand, tuned": tuned_by_hand,
        BARE: bare_tasks,
    }


CONTRASTS: Final[dict[str, Way]] = {"ordered window": ordered_window, "gather in chunks": gather_in_chunks}


def measure(settings: Settings) -> workload.Report:
    """Compare all contenders with the best."""
    columns = {"contender": "", "records": ",", "seconds": ".2f", "of the best": ".3f", "lowest": ".3f"}
    columns |= {"of an even share": ".3f", "of bare tasks": ".3f"}
    report = workload.Report("slow_items", settings, columns)
    seconds, workers = settings.size(0.02, 0.02, 0.001), settings.size(32, 32, 8)
    records = settings.size(5_000, 2_000, 200)
    warm_up, many, few = (calls_of(count, workers, seconds) for count in (10, records, records // FEWER))
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=settings.new_loop) as runner:
        directory = Path(name)
        for calls, rounds in ((warm_up, 1), (many, settings.size(5, 1, 1))):
            write_input(calls, directory)
            runs = {name: measured(name, way, calls, runner, directory) for name, way in ways(directory).items()}
            found = workload.in_turns(runs, rounds=rounds, warm_up=False)
        contrasts = {name: measured(name, way, few, runner, directory) for name, way in CONTRASTS.items()}
        found_of_few = workload.in_turns(contrasts, rounds=1, warm_up=False)
    tell(many, found, report)
    tell(few, found_of_few, report)
    return report


def write_input(calls: Calls, directory: Path) -> None:
    (directory / "in.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in calls.records))


def tell(calls: Calls, found: Mapping[str, Sequence[float]], report: workload.Report) -> None:
    """A row for each contender, and what is promised of ours."""
    for name, times in found.items():
        of_best = [calls.best() / taken for taken in times]
        shares: dict[str, Any] = {"of the best": statistics.median(of_best), "lowest": min(of_best)}
        shares["of an even share"] = calls.even_share() / statistics.median(times)
        if BARE in found:
            shares["of bare tasks"] = workload.ratio(found[BARE], times)
        report.row(contender=name, records=len(calls.records), seconds=statistics.median(times), **shares)
        if name in OURS:
            report.at_least(f"{name}: bare tasks / stageflow", shares["of bare tasks"], BOUND)
            report.goal(f"{name}: share of the best", shares["of the best"], GOAL)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("one call in a hundred takes 50 times as long")


if __name__ == "__main__":
    workload.run_script(main)
