"""Is every service kept as busy as allowed? Stages that sleep, against Little's law, in wall time.

    python benchmarks/sleeping.py
    python benchmarks/sleeping.py --quick --loop asyncio

By Little's law a stage whose calls take W seconds and of which L are in progress at once finishes L / W calls a second,
and a pipeline no more than its slowest stage does. The share of that bound is measured at that stage in its steady
state: from the end of the L-th call, when the ramp is over, to the beginning of the last call, after which there are no
records for workers that become free. The first L calls take a random part of their time, as if one had come in the
middle of them; else thousands of workers would go in step, and no window be like another. "whole run" has both ramps in
it: the seconds that all calls take over the workers, over the seconds of the run.

Contenders: stageflow; "by hand", worker pools over asyncio.Queue(maxsize) with sentinels; "bare tasks", as many tasks
as the stage has workers, each of which does nothing but take the next record and sleep: what the loop's clock allows.

Exits 1 where stageflow attains less than 0.95 of the bound with 5,000 calls in flight.

Source: J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", 1961.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import workload
from workload import Item, Settings, Step, Work, WrongAnswer

from stageflow import Pipeline

BOUND = 0.95


@dataclass(frozen=True)
class Sleeper:
    """A stage that sleeps for ``seconds``, give or take ``jitter`` of them (a share, uniformly), in ``workers``."""

    name: str
    seconds: float
    workers: int
    jitter: float = 0.0

    @property
    def per_second(self) -> float:
        """Little's bound."""
        return self.workers / self.seconds if self.seconds else float("inf")


class Meter:
    """Notes when calls begin and end at the stage that is the bottleneck."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.last_begin = 0.0
        self.ends: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Sleep, and note it."""
        self.last_begin = time.perf_counter()
        await asyncio.sleep(seconds)
        self.ends.append(time.perf_counter())

    def per_second(self) -> float:
        """Calls that ended in the steady state, per second of it."""
        began = self.ends[self.workers - 1]
        ended = bisect_right(self.ends, self.last_begin) - self.workers
        return ended / (self.last_begin - began)


@dataclass(frozen=True)
class Shares:
    """Shares of Little's bound."""

    steady: float
    whole: float


class Task:
    """Records through sleeping stages.

    Args:
        stages: In a row; the one with the lowest bound is measured.
        queue_size: Of every channel.
        records: How many; more than twice the workers of the slowest stage, for there to be a steady state.
    """

    def __init__(self, stages: Sequence[Sleeper], queue_size: int, records: int) -> None:
        self.stages = stages
        self.queue_size = queue_size
        self.slowest = min(stages, key=lambda stage: stage.per_second)
        assert records > 2 * self.slowest.workers, "too few records for a steady state"
        chance = random.Random(1)
        # How long each call takes is part of the record, so that all contenders have the same calls to make.
        self.records: list[Item] = [
            {"id": n} | {stage.name: stage.seconds * (1 + stage.jitter * chance.uniform(-1, 1)) for stage in stages}
            for n in range(records)
        ]
        name, workers = self.slowest.name, self.slowest.workers
        for record in self.records[:workers]:
            record[name] *= chance.random()
        self.per_second = workers / statistics.fmean(record[name] for record in self.records[workers:])
        self.seconds = sum(record[name] for record in self.records) / workers

    def measured(self, name: str, run: Callable[[Meter, list[Item]], None], expected: Sequence[Item]) -> Shares:
        """Run one contender; its outputs have to be ``expected``, in any order."""
        meter, outputs = Meter(self.slowest.workers), list[Item]()
        start = time.perf_counter()
        run(meter, outputs)
        seconds = time.perf_counter() - start
        if sorted(outputs, key=lambda output: int(output["id"])) != expected or len(meter.ends) != len(self.records):
            raise WrongAnswer(
                f"{name}: {len(outputs)} outputs after {len(meter.ends)} calls for {len(expected)} records"
            )
        return Shares(meter.per_second() / self.per_second, self.seconds / seconds)

    def sleeps(self, meter: Meter) -> dict[str, Callable[[float], Awaitable[None]]]:
        """By stage how it sleeps: the slowest one at the meter."""
        return {stage.name: meter.sleep if stage is self.slowest else asyncio.sleep for stage in self.stages}

    def pipeline(self, meter: Meter) -> Pipeline:
        """The stages for stageflow: the result of each is the record's number."""
        pipeline = Pipeline("sleeping")
        before: list[str] = []
        for stage, sleep in zip(self.stages, self.sleeps(meter).values(), strict=True):
            name = f"slept_{stage.name}"
            settings = {"max_in_flight": stage.workers, "queue_size": self.queue_size}
            pipeline.add_stage(name, _handler(stage.name, sleep), depends_on=before, **settings)
            before = [name]
        return pipeline

    def steps(self, meter: Meter) -> list[Step]:
        """The stages written by hand: each fills in the record's number."""
        sleeps = self.sleeps(meter)
        return [Step(_work(stage.name, sleeps[stage.name]), stage.workers) for stage in self.stages]

    async def bare_tasks(self, meter: Meter, outputs: list[Item]) -> None:
        """Nothing but the slowest stage: tasks that take a record, sleep, and take the next."""
        records, name = iter(self.records), self.slowest.name

        async def sleeper() -> None:
            for record in records:
                await meter.sleep(record[name])
                outputs.append(record)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.slowest.workers):
                tasks.create_task(sleeper())

    def contenders(self, runner: asyncio.Runner) -> dict[str, Callable[[], Shares]]:
        """Every way to run the records, each measured and checked."""
        expected = [record | {f"slept_{stage.name}": record["id"] for stage in self.stages} for record in self.records]

        def with_stageflow(meter: Meter, outputs: list[Item]) -> None:
            runner.run(self.pipeline(meter).run(self.records, outputs))

        def by_hand(meter: Meter, outputs: list[Item]) -> None:
            copies = map(dict, self.records)
            runner.run(workload.hand_written(copies, self.steps(meter), self.queue_size, outputs.append))

        def with_bare_tasks(meter: Meter, outputs: list[Item]) -> None:
            runner.run(self.bare_tasks(meter, outputs))

        return {
            "stageflow": lambda: self.measured("stageflow", with_stageflow, expected),
            "by hand": lambda: self.measured("by hand", by_hand, expected),
            "bare tasks": lambda: self.measured("bare tasks", with_bare_tasks, self.records),
        }


def _handler(field: str, sleep: Callable[[float], Awaitable[None]]) -> Callable[..., Awaitable[int]]:
    async def handler(record: Item, results: Item) -> int:
        await sleep(record[field])
        return int(record["id"])

    return handler


def _work(field: str, sleep: Callable[[float], Awaitable[None]]) -> Work:
    async def work(item: Item) -> None:
        await sleep(item[field])
        item[f"slept_{field}"] = item["id"]

    return work


def tasks(settings: Settings) -> dict[str, Task]:
    """What is measured, and for how long."""
    factor = settings.size(1.0, 1.0, 0.05)
    row = [
        Sleeper("retrieve", 0.005 * factor, 16),
        Sleeper("generate", 0.020 * factor, 64),
        Sleeper("validate", 0.002 * factor, 8),
    ]
    many = settings.size(5_000, 5_000, 50)
    wide = [
        Sleeper("prepare", 0.001 * factor, 64),
        Sleeper("generate", 1.0 * factor, many, jitter=0.2),
        Sleeper("finish", 0.001 * factor, 64),
    ]
    return {
        "5/20/2 ms over 16/64/8": Task(row, 64, settings.size(10_000, 1_200, 200)),
        f"{many:,} in flight of 1 s": Task(wide, 256, many * settings.size(5, 3, 3)),
    }


def measure(settings: Settings) -> workload.Report:
    """Compare all contenders over all tasks."""
    columns = {"task": "", "contender": "", "steady": ".3f", "lowest": ".3f", "whole run": ".3f", "of by hand": ".2f"}
    report = workload.Report("sleeping", settings, columns)
    for name, task in tasks(settings).items():
        rounds = settings.size(5, 1 if task.slowest.workers > 1_000 else 3, 1)
        with asyncio.Runner(loop_factory=settings.new_loop) as runner:
            # The first task warms up for the second one, whose runs take seconds.
            warm_up = settings.mode == "full" and not report.rows
            found = workload.in_turns(task.contenders(runner), rounds=rounds, warm_up=warm_up)
        steady = {contender: [shares.steady for shares in runs] for contender, runs in found.items()}
        for contender, runs in found.items():
            report.row(
                task=name,
                contender=contender,
                steady=statistics.median(steady[contender]),
                lowest=min(steady[contender]),
                whole_run=statistics.median(shares.whole for shares in runs),
                of_by_hand=workload.ratio(steady[contender], steady["by hand"]),
            )
    report.at_least(f"{name}: share of Little's bound", statistics.median(steady["stageflow"]), BOUND)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("throughput as a share of Little's bound")


if __name__ == "__main__":
    workload.run_script(main)
