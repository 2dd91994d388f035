"""What does it take to keep very many calls in flight? Stages that sleep for a second, against a script by hand.

    python benchmarks/in_flight.py
    python benchmarks/in_flight.py --quick --loop asyncio

One stage whose calls take 1 s, give or take a fifth, with 5,000 and 20,000 of them in progress; in full 100,000, too,
of 5 s. Each run is a process of its own, so that no peak of memory hides another. The contenders take turns, and the
figures of a round are compared with each other: stageflow, and "by hand, tuned", worker pools over
asyncio.Queue(maxsize) which await a queue only where they have to wait. Both read records from a generator and hand
their outputs to a function that checks them.

* reached: the most calls that were in progress.
* records/s: in the steady state, as benchmarks/sleeping.py has it: from the end of the L-th call (of L in flight) to
  the beginning of the last one; "of by hand" is the share of what the script attains.
* us CPU/record: of the whole process over the whole run, which has at least twice as many records as calls in flight.
* bytes each: the most memory that was resident, less what was before the run, over the calls reached. It has the record
  itself in it, the task that waits, and its timer.

The last row, 100,000 calls of 1 s, is more than a loop can begin in a second: there throughput is what the CPU allows,
and so many calls are never reached. It is to be known, without a bound; like the row before it, from one round.

Exits 1 where stageflow attains less than 0.95 of the script at 5,000 or 0.9 at 20,000, or takes more CPU than PROMISES
allows. What it is to get to is told as a goal. A quick run has one round, and two more where that one was too slow: it
may have been the neighbours'.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import memory
import workload
from workload import Item, Settings, Step, WrongAnswer

from stageflow import Pipeline

OURS, TUNED = "stageflow", "by hand, tuned"
QUEUE_SIZE: Final = 256
JITTER: Final = 0.2


class Load(NamedTuple):
    """So many calls in flight, of so many seconds, for that many times as many records."""

    in_flight: int
    seconds: float
    turns: float
    rounds: int

    @property
    def name(self) -> str:
        return f"{self.in_flight:,} of {self.seconds:g} s"

    @property
    def records(self) -> int:
        return int(self.in_flight * self.turns)


FULL: Final = (Load(5_000, 1, 4, 5), Load(20_000, 1, 4, 5), Load(100_000, 5, 2.5, 1), Load(100_000, 1, 3, 1))
QUICK: Final = (Load(5_000, 1, 3, 1), Load(20_000, 1, 3, 1))
TINY: Final = (Load(50, 0.05, 3, 1),)


class Promise(NamedTuple):
    """What is promised of so many calls in flight, each as what it is to get to and what it has to be."""

    share: float
    share_bound: float
    cost: float
    cost_bound: float


PROMISES: Final = {
    "5,000 of 1 s": Promise(share=0.99, share_bound=0.95, cost=1.25, cost_bound=1.9),
    "20,000 of 1 s": Promise(share=0.98, share_bound=0.9, cost=1.25, cost_bound=1.9),
}


class Calls:
    """The records of a load, how long each takes, and when its call began and ended."""

    def __init__(self, load: Load) -> None:
        self.in_flight = load.in_flight
        self.reached = 0
        self._load = load
        self._begun = self._ended = 0
        self._last_begin = 0.0
        # Set aside before the run, so that it is no part of what the run takes.
        self._ends = array("d", bytes(8 * load.records))
        self._seen = bytearray(load.records)

    def records(self) -> Iterator[Item]:
        """Of the first ones in flight each is somewhere in its call already, so that they do not go in step."""
        chance = random.Random(1)
        for n in range(self._load.records):
            share = chance.random() if n < self.in_flight else 1 + JITTER * chance.uniform(-1, 1)
            yield {"n": n, "seconds": self._load.seconds * share}

    async def call(self, seconds: float) -> None:
        """Sleep, and note it."""
        self._last_begin = time.perf_counter()
        self._begun += 1
        self.reached = max(self.reached, self._begun - self._ended)
        await asyncio.sleep(seconds)
        self._ends[self._ended] = time.perf_counter()
        self._ended += 1

    def take(self, output: Item) -> None:
        """Check an output; each comes once."""
        n = output["n"]
        if output.get("answer") != n + 1 or self._seen[n]:
            raise WrongAnswer(f"the output {output!r}")
        self._seen[n] = 1

    def per_second(self) -> float:
        """Calls that ended in the steady state, per second of it."""
        if self._ended != self._load.records or not all(self._seen):
            raise WrongAnswer(f"{self._ended} calls and {sum(self._seen)} outputs for {self._load.records} records")
        began = self._ends[self.in_flight - 1]
        ended = sum(began < end <= self._last_begin for end in self._ends)
        return ended / (self._last_begin - began)


async def with_stageflow(calls: Calls) -> None:
    """The job, as a user writes it."""
    pipeline = Pipeline("in-flight")

    @pipeline.stage(max_in_flight=calls.in_flight, queue_size=QUEUE_SIZE)
    async def answer(n: int, seconds: float) -> int:
        await calls.call(seconds)
        return n + 1

    await pipeline.run(calls.records(), calls.take)


async def tuned_by_hand(calls: Calls) -> None:
    """The script."""

    async def answer(item: Item) -> None:
        await calls.call(item["seconds"])
        item["answer"] = item["n"] + 1

    await workload.hand_tuned(calls.records(), [Step(answer, calls.in_flight)], QUEUE_SIZE, calls.take)


WAYS: Final = {OURS: with_stageflow, TUNED: tuned_by_hand}


class Figures(NamedTuple):
    """What one run comes to."""

    reached: int
    per_second: float
    cpu_seconds: float
    memory_bytes: int


def run_once(way: str, load: Load, settings: Settings) -> Figures:
    """Run in this process, which has run a few records before, so that all modules are there, and nothing else."""
    settings.run(WAYS[way](Calls(Load(2, 0.001, 5, 1))))
    calls = Calls(load)
    before, cpu_before = memory.peak_bytes(), time.process_time()
    settings.run(WAYS[way](calls))
    cpu_seconds = time.process_time() - cpu_before
    return Figures(calls.reached, calls.per_second(), cpu_seconds, memory.peak_bytes() - before)


def in_child(way: str, load: Load, settings: Settings) -> Callable[[], Figures]:
    """A contender that is a process of its own."""
    command = [sys.executable, __file__, "--loop", settings.loop, "--child", way, json.dumps(load)]

    def once() -> Figures:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise WrongAnswer(f"{way}, {load.name}: exit code {done.returncode}")
        return Figures(*json.loads(done.stdout))

    return once


def measure(settings: Settings) -> workload.Report:
    """Compare both ways under each load."""
    columns = {"in flight": "", "contender": "", "reached": ",", "records/s": ",.0f", "of by hand": ".3f"}
    columns |= {"us CPU/record": ".1f", "CPU ratio": ".2f", "bytes each": ",.0f"}
    report = workload.Report("in_flight", settings, columns)
    for load in settings.size(FULL, QUICK, TINY):
        ways = {way: in_child(way, load, settings) for way in WAYS}
        found = workload.in_turns(ways, rounds=load.rounds, warm_up=False)
        if load.rounds == 1 and is_short(load, found):
            more = workload.in_turns(ways, rounds=2, warm_up=False)
            found = {way: [*runs, *more[way]] for way, runs in found.items()}
        compare(load, found, report)
    return report


def is_short(load: Load, found: dict[str, list[Figures]]) -> bool:
    """One round has missed the bound on throughput; by the machine's fault, if two more do not agree."""
    ours, theirs = ([run.per_second for run in found[way]] for way in (OURS, TUNED))
    return load.name in PROMISES and workload.ratio(ours, theirs) < PROMISES[load.name].share_bound


def compare(load: Load, found: dict[str, list[Figures]], report: workload.Report) -> None:
    """A row for each way, and what is promised of ours."""
    rates = {way: [run.per_second for run in runs] for way, runs in found.items()}
    spent = {way: [run.cpu_seconds for run in runs] for way, runs in found.items()}
    shares = {way: workload.ratio(rates[way], rates[TUNED]) for way in found}
    costs = {way: workload.ratio(spent[way], spent[TUNED]) for way in found}
    for way, runs in found.items():
        values: dict[str, Any] = {
            "reached": max(run.reached for run in runs),
            "records/s": statistics.median(rates[way]),
            "us CPU/record": statistics.median(spent[way]) / load.records * 1e6,
            "bytes each": statistics.median(run.memory_bytes / run.reached for run in runs),
        }
        report.row(in_flight=load.name, contender=way, of_by_hand=shares[way], CPU_ratio=costs[way], **values)
    if load.name in PROMISES:
        promise = PROMISES[load.name]
        share, cost = (f"{load.name}: {what}, over by hand" for what in ("throughput", "CPU per record"))
        report.at_least(share, shares[OURS], promise.share_bound)
        # A quick run has one round, and the CPU time of one swings by a third with what else the machine does.
        report.at_most(cost, costs[OURS], promise.cost_bound / report.settings.size(1.0, workload.SLACK, 1.0))
        report.goal(share, shares[OURS], promise.share)
        report.goal(cost, costs[OURS], promise.cost, at_most=True)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("calls in flight, against a script by hand")


if __name__ == "__main__":
    if "--child" in sys.argv:
        position = sys.argv.index("--child")
        way, load = sys.argv[position + 1 :]
        print(json.dumps(run_once(way, Load(*json.loads(load)), workload.parse(__doc__, sys.argv[1:position]))))
    else:
        workload.run_script(main)
