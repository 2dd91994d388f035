"""Does a second call cut the tail? One call in fifty takes fifty times as long; 3 % more calls are allowed.

    python benchmarks/hedging.py
    python benchmarks/hedging.py --quick --loop asyncio

One stage with 64 calls in flight asks a service that takes 20 ms, and for 2 % of its calls, at random, a second. The
same job runs without ``hedge=`` and with ``hedge=0.03``. "p50", "p99.5" and "p99.9" are of the milliseconds from the
first call for a record to the answer that counted; "calls" is how many the service saw, over the records; "us/record"
is CPU time of this process.

Exits 1 where p99.5 is not three times lower with second calls, or where there were more than 3 % of them.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import workload
from workload import Settings, WrongAnswer

from stageflow import Hedge, Pipeline

SLOW_SHARE: Final = 0.02
TIMES_SLOWER: Final = 50
EXTRA: Final = 0.03
TIMES_LOWER: Final = 3.0
WORKERS: Final = 64


class Run(NamedTuple):
    """What a run came to: how long each record's answer took, and all of it."""

    waited: list[float]
    calls: int
    seconds: float
    cpu: float

    def quantile(self, q: float) -> float:
        """Milliseconds that a share ``q`` of the records did not exceed."""
        return sorted(self.waited)[min(len(self.waited) - 1, int(q * len(self.waited)))] * 1e3


async def asked(hedge: Hedge | None, records: int, seconds: float, seed: int) -> Run:
    """Ask the service for all records."""
    chance = random.Random(seed)
    begun: dict[int, float] = {}
    waited: dict[int, float] = {}
    calls = 0
    pipeline = Pipeline("tail")

    @pipeline.stage(max_in_flight=WORKERS, hedge=hedge)
    async def answer(n: int) -> int:
        nonlocal calls
        calls += 1
        began = begun.setdefault(n, time.perf_counter())
        await asyncio.sleep(seconds * chance.uniform(0.9, 1.1) * (TIMES_SLOWER if chance.random() < SLOW_SHARE else 1))
        waited.setdefault(n, time.perf_counter() - began)
        return n + 1

    outputs: list[dict[str, Any]] = []
    start, cpu = time.perf_counter(), time.process_time()
    report = await pipeline.run(({"n": n} for n in range(records)), outputs)
    taken, used = time.perf_counter() - start, time.process_time() - cpu
    if sorted((each["n"], each["answer"]) for each in outputs) != [(n, n + 1) for n in range(records)]:
        raise WrongAnswer(f"{len(outputs)} outputs for {records} records, or others than expected")
    # One that was cancelled before it began was never seen by the service.
    if not records <= calls <= records + report.stages["answer"].hedged:
        raise WrongAnswer(f"the service saw {calls} calls, the report {report.stages['answer'].hedged} second ones")
    return Run(list(waited.values()), calls, taken, used)


def measure(settings: Settings) -> workload.Report:
    """The same job without second calls, and with them."""
    columns = {"hedge": "", "records": ",", "calls": ".3f", "seconds": ".2f", "us/record": ".0f"}
    columns |= {"p50": ".1f", "p99.5": ".1f", "p99.9": ".1f"}
    report = workload.Report("hedging", settings, columns)
    records, seconds = settings.size(10_000, 5_000, 300), settings.size(0.02, 0.02, 0.001)
    ways = {"none": None, f"{EXTRA}": Hedge(extra=EXTRA)}
    seeds = {name: iter(range(100)) for name in ways}

    def once(name: str) -> Run:
        return settings.run(asked(ways[name], records, seconds, next(seeds[name])))

    contenders = {name: lambda name=name: once(name) for name in ways}
    runs = workload.in_turns(contenders, rounds=settings.size(5, 1, 1), warm_up=settings.mode == "full")
    for name, found in runs.items():
        row = {f"p{100 * q:g}": statistics.median(run.quantile(q) for run in found) for q in (0.5, 0.995, 0.999)}
        row |= {"us/record": statistics.median(run.cpu for run in found) / records * 1e6}
        row |= {"calls": max(run.calls for run in found) / records}
        report.row(hedge=name, records=records, seconds=statistics.median(run.seconds for run in found), **row)
    without, with_ = ([run.quantile(0.995) for run in found] for found in runs.values())
    report.at_least("p99.5 without / with second calls", workload.ratio(without, with_), TIMES_LOWER)
    report.at_most("calls / records", max(run.calls for run in runs[f"{EXTRA}"]) / records, 1 + EXTRA)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("one call in fifty takes fifty times as long")


if __name__ == "__main__":
    workload.run_script(main)
