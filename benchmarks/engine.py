"""What does the engine itself cost? Stages that do nothing, against the same pipeline written by hand, in CPU time.

    python benchmarks/engine.py
    python benchmarks/engine.py --quick --loop asyncio

Shapes: three stages in a row with 16, 64 and 8 workers, the same with one worker each, and a diamond (retrieve ->
{classify, entities} -> generate -> validate). A ratio above 1 says that the other way costs more than stageflow.

Contenders:

* with retry, timeout: stageflow with policies on every stage, none of which is ever needed
* by hand: worker pools over asyncio.Queue(maxsize) with sentinels; in the diamond one pool gathers the two branches
* by hand, tuned: the same, which awaits a queue only where it has to wait
* event per step: one asyncio.Event and one task per step and record, gathered under a semaphore
* bare loop: one await after another, with nothing around it: the limit

Exits 1 where stageflow costs more than "by hand" in the first or the last shape. With one worker each nobody ever waits
for a neighbour, and a plain queue is at its cheapest: that ratio is to be known, without a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import workload
from workload import Item, Settings, Step, Work, WrongAnswer

from stageflow import Pipeline

QUEUE_SIZE = 64
BOUND = 1.0
BOUNDED = ("linear 16/64/8", "diamond")

# Three in a row: as stages for stageflow, and as what fills in an item for the pipelines written by hand.


async def first(n: int) -> int:
    return n + 1


async def second(first: int) -> int:
    return first * 2


async def third(second: int) -> int:
    return second - 3


async def do_first(item: Item) -> None:
    item["first"] = item["n"] + 1


async def do_second(item: Item) -> None:
    item["second"] = item["first"] * 2


async def do_third(item: Item) -> None:
    item["third"] = item["second"] - 3


# The diamond.


async def retrieve(n: int) -> int:
    return n + 1


async def classify(retrieve: int) -> int:
    return retrieve % 7


async def entities(retrieve: int) -> int:
    return retrieve // 7


async def generate(n: int, retrieve: int, classify: int, entities: int) -> int:
    return n + retrieve + classify + entities


async def validate(generate: int) -> bool:
    return generate % 2 == 0


async def do_retrieve(item: Item) -> None:
    item["retrieve"] = item["n"] + 1


async def do_classify(item: Item) -> None:
    item["classify"] = item["retrieve"] % 7


async def do_entities(item: Item) -> None:
    item["entities"] = item["retrieve"] // 7


async def do_branches(item: Item) -> None:
    await asyncio.gather(do_classify(item), do_entities(item))


async def do_generate(item: Item) -> None:
    item["generate"] = item["n"] + item["retrieve"] + item["classify"] + item["entities"]


async def do_validate(item: Item) -> None:
    item["validate"] = item["generate"] % 2 == 0


@dataclass(frozen=True)
class Shape:
    """One graph, in all the ways to write it.

    Args:
        stages: The handlers and their workers.
        steps: The pools written by hand.
        graph: By step what does its work, and the steps before it.
        answer: The output for a number.
    """

    stages: Mapping[Callable[..., Any], int]
    steps: Sequence[Step]
    graph: Mapping[str, tuple[Work, Sequence[str]]]
    answer: Callable[[int], Item]

    def pipeline(self, **policies: Any) -> Pipeline:
        pipeline = Pipeline("benchmark")
        for handler, workers in self.stages.items():
            pipeline.stage(max_in_flight=workers, queue_size=QUEUE_SIZE, **policies)(handler)
        return pipeline

    @property
    def in_flight(self) -> int:
        return sum(step.workers for step in self.steps)


def linear(*workers: int) -> Shape:
    """Three stages in a row."""
    one, two, three = workers
    return Shape(
        {first: one, second: two, third: three},
        [Step(do_first, one), Step(do_second, two), Step(do_third, three)],
        {"first": (do_first, ()), "second": (do_second, ["first"]), "third": (do_third, ["second"])},
        lambda n: {"n": n, "first": n + 1, "second": 2 * n + 2, "third": 2 * n - 1},
    )


def diamond(workers: int) -> Shape:
    """Five stages, two of them side by side."""

    def answer(n: int) -> Item:
        found = {"n": n, "retrieve": n + 1, "classify": (n + 1) % 7, "entities": (n + 1) // 7}
        generated = sum(found.values())
        return {**found, "generate": generated, "validate": generated % 2 == 0}

    return Shape(
        dict.fromkeys((retrieve, classify, entities, generate, validate), workers),
        [Step(work, workers) for work in (do_retrieve, do_branches, do_generate, do_validate)],
        {
            "retrieve": (do_retrieve, ()),
            "classify": (do_classify, ["retrieve"]),
            "entities": (do_entities, ["retrieve"]),
            "generate": (do_generate, ["classify", "entities"]),
            "validate": (do_validate, ["generate"]),
        },
        answer,
    )


SHAPES = {"linear 16/64/8": linear(16, 64, 8), "linear 1/1/1": linear(1, 1, 1), "diamond": diamond(16)}


def contenders(shape: Shape, records: Sequence[Item], runner: asyncio.Runner) -> dict[str, Callable[[], float]]:
    """Every way to run the records through the shape, each measured and checked."""
    expected = [shape.answer(record["n"]) for record in records]

    def check(name: str) -> Callable[[list[Item]], None]:
        def compare(outputs: list[Item]) -> None:
            outputs.sort(key=lambda output: output["n"])
            if outputs != expected:
                wrong = next((o for o, e in zip(outputs, expected, strict=False) if o != e), f"{len(outputs)} outputs")
                raise WrongAnswer(f"{name}: {wrong}")

        return compare

    def copies() -> Iterator[Item]:
        return (dict(record) for record in records)

    def with_stageflow(**policies: Any) -> Callable[[], list[Item]]:
        def run() -> list[Item]:
            outputs: list[Item] = []
            runner.run(shape.pipeline(**policies).run(records, outputs))
            return outputs

        return run

    def by_hand(way: Callable[..., Any]) -> Callable[[], list[Item]]:
        def run() -> list[Item]:
            outputs: list[Item] = []
            runner.run(way(copies(), shape.steps, QUEUE_SIZE, outputs.append))
            return outputs

        return run

    def with_events() -> list[Item]:
        outputs: list[Item] = []
        runner.run(workload.event_per_step(copies(), shape.graph, shape.in_flight, outputs.append))
        return outputs

    def bare() -> list[Item]:
        outputs: list[Item] = []
        runner.run(workload.bare_loop(copies(), [work for work, _ in shape.graph.values()], outputs.append))
        return outputs

    runs = {
        "stageflow": with_stageflow(),
        "with retry, timeout": with_stageflow(retry=3, timeout=60.0, on_error="skip"),
        "by hand": by_hand(workload.hand_written),
        "by hand, tuned": by_hand(workload.hand_tuned),
        "event per step": with_events,
        "bare loop": bare,
    }
    return {name: workload.cpu(run, check(name)) for name, run in runs.items()}


def measure(settings: Settings) -> workload.Report:
    """Compare all contenders over all shapes."""
    columns = {"shape": "", "contender": "", "ratio": ".2f", "lowest": ".2f", "highest": ".2f", "us/record": ".1f"}
    report = workload.Report("engine", settings, columns)
    records = [{"n": n} for n in range(settings.size(20_000, 2_000, 50))]
    rounds = settings.size(9, 5, 1)
    with asyncio.Runner(loop_factory=settings.new_loop) as runner:
        for shape_name, shape in SHAPES.items():
            seconds = workload.in_turns(contenders(shape, records, runner), rounds=rounds)
            ours = seconds["stageflow"]
            for name, theirs in seconds.items():
                ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
                figures = {"ratio": workload.ratio(theirs, ours), "lowest": min(ratios), "highest": max(ratios)}
                cost = {"us/record": sorted(theirs)[len(theirs) // 2] / len(records) * 1e6}
                report.row(shape=shape_name, contender=name, **figures, **cost)
            if shape_name in BOUNDED:
                report.at_least(f"{shape_name}: by hand / stageflow", workload.ratio(seconds["by hand"], ours), BOUND)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("CPU time of each contender over that of stageflow")


if __name__ == "__main__":
    workload.run_script(main)
