"""What do queue_size and max_in_flight buy? Throughput over both, for stages that sleep unequally long.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --quick --loop asyncio

queue_size: three stages of four workers and equally long calls, each of which takes between nothing and twice the mean.
A channel evens out what one stage is early and the next one late; the share is that of Little's bound.

max_in_flight: of a stage of 5 ms give or take half, between two quick ones. Throughput grows with it until the loop
itself is busy all the time: that is where the share of the bound falls, and where a wider stage buys nothing.

"of by hand" is over worker pools on asyncio.Queue(maxsize) with the same settings. No bound: the curves are to be seen.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

import workload
from sleeping import Shares, Sleeper, Task
from workload import Settings

QUEUE_SIZES = (1, 4, 16, 64, 256)
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def over_queue_size(settings: Settings) -> dict[int, Task]:
    """By queue size: three stages that are equally fast on average."""
    seconds = settings.size(0.005, 0.005, 0.0005)
    stages = [Sleeper(name, seconds, 4, jitter=1.0) for name in ("retrieve", "generate", "validate")]
    records = settings.size(800, 200, 40)
    return {size: Task(stages, size, records) for size in settings.size(QUEUE_SIZES, QUEUE_SIZES, (1, 16))}


def over_in_flight(settings: Settings) -> dict[int, Task]:
    """By max_in_flight: one slow stage between two quick ones."""
    seconds = settings.size(0.005, 0.005, 0.001)
    duration = settings.size(1.5, 0.25, 0.02)

    def task(workers: int) -> Task:
        quick = [Sleeper(name, 0.0, 16) for name in ("retrieve", "validate")]
        stages = [quick[0], Sleeper("generate", seconds, workers, jitter=0.5), quick[1]]
        return Task(stages, 64, max(3 * workers, int(workers / seconds * duration)))

    return {workers: task(workers) for workers in settings.size(IN_FLIGHT, IN_FLIGHT, (1, 8))}


def measure(settings: Settings) -> workload.Report:
    """Run both sweeps."""
    columns = {"setting": "", "records/s": ",.0f", "gain": ".2f", "of bound": ".2f", "of by hand": ".2f", "curve": ""}
    report = workload.Report("sweep", settings, columns)
    rounds = settings.size(5, 1, 1)
    for setting, tasks in {"queue_size": over_queue_size(settings), "max_in_flight": over_in_flight(settings)}.items():
        found: dict[int, dict[str, list[Shares]]] = {}
        for value, task in tasks.items():
            with asyncio.Runner(loop_factory=settings.new_loop) as runner:
                both = {name: run for name, run in task.contenders(runner).items() if name != "bare tasks"}
                found[value] = workload.in_turns(both, rounds=rounds, warm_up=settings.mode == "full")
        shares = {v: statistics.median(s.steady for s in runs["stageflow"]) for v, runs in found.items()}
        rates = {value: shares[value] * task.per_second for value, task in tasks.items()}
        first, most = next(iter(rates.values())), max(rates.values())
        for value, runs in found.items():
            report.row(
                setting=f"{setting}={value}",
                gain=rates[value] / first,
                of_bound=shares[value],
                of_by_hand=workload.ratio([s.steady for s in runs["stageflow"]], [s.steady for s in runs["by hand"]]),
                **{"records/s": rates[value], "curve": workload.bar(rates[value] / most)},
            )
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("throughput of the whole pipeline in its steady state")


if __name__ == "__main__":
    workload.run_script(main)
