"""What does the engine itself cost? Stages that do nothing, against the same pipeline written by hand, in CPU time.

    python benchmarks/engine.py
    python benchmarks/engine.py --quick --loop asyncio

Shapes: three stages in a row with 16, 64 and 8 workers, the same with one worker each, and a diamond (retrieve ->
{classify, entities} -> generate -> validate). Then the first shape again, with calls that wait as those to a service
do, but for one turn of the loop only (``await asyncio.sleep(0)``): every call of all three stages, every call of the
second stage, and one call in ten, drawn at random in each stage. A ratio above 1 says that the other way costs more
than stageflow.

Contenders:

* with retry, timeout: stageflow with policies on every stage, none of which is ever needed
* with a rate limit, too: the same, and one limit for all stages which is never reached
* by hand: worker pools over asyncio.Queue(maxsize) with sentinels; in the diamond one pool gathers the two branches
* by hand, tuned: the same, which awaits a queue only where it has to wait
* event per step: one asyncio.Event and one task per step and record, gathered under a semaphore
* bare loop: one await after another, with nothing around it: the limit

Exits 1 where stageflow has lost what PROMISES calls its bound, against "by hand, tuned". The goals there are what it is
to get to: each is told, with the figure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import workload
from workload import Item, Settings, Step, Work, WrongAnswer

from stageflow import Pipeline, RateLimit

QUEUE_SIZE: Final = 64
NEVER_REACHED: Final = 1e9
"""Permits a second."""

OURS, POLICIES, TUNED = "stageflow", "with a rate limit, too", "by hand, tuned"
ROW, SINGLE, DIAMOND = "linear 16/64/8", "linear 1/1/1", "diamond"
ALL, ONE, TENTH = "all calls wait", "one stage waits", "1 call in 10 waits"


class Promise(NamedTuple):
    """By how much "by hand, tuned" costs more than one of our ways, in one shape: what is to be, and what has to be."""

    shape: str
    ours: str
    goal: float
    bound: float


PROMISES: Final = (
    Promise(ROW, OURS, goal=2.5, bound=1.7),
    Promise(ROW, POLICIES, goal=1.8, bound=1.5),
    Promise(SINGLE, OURS, goal=1.7, bound=1.0),
    Promise(DIAMOND, OURS, goal=3.5, bound=3.5),
    Promise(ALL, OURS, goal=1.25, bound=0.6),
    Promise(ONE, OURS, goal=1.25, bound=0.7),
    Promise(TENTH, OURS, goal=1.25, bound=0.55),
)

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


PLAIN: Final = (first, second, third)
PLAIN_WORKS: Final = (do_first, do_second, do_third)

# The same, where a share of the calls wait for a turn of the loop, drawn for each stage by itself.

PERIOD: Final = 1_000
"""After so many records the draw repeats itself."""


def draws(shares: Sequence[float]) -> list[list[bool]]:
    """By stage, whether the call for the record of a number waits."""
    drawn = [[number < share * PERIOD for number in range(PERIOD)] for share in shares]
    for stage, waits in enumerate(drawn):
        random.Random(stage).shuffle(waits)
    return drawn


def waiting_stages(shares: Sequence[float]) -> list[Callable[..., Any]]:
    """The three handlers, of which those that never wait are as they were."""
    before, between, after = draws(shares)

    async def first(n: int) -> int:
        if before[n % PERIOD]:
            await asyncio.sleep(0)
        return n + 1

    async def second(first: int) -> int:
        if between[first % PERIOD]:
            await asyncio.sleep(0)
        return first * 2

    async def third(second: int) -> int:
        if after[second // 2 % PERIOD]:
            await asyncio.sleep(0)
        return second - 3

    handlers = zip((first, second, third), PLAIN, shares, strict=True)
    return [waits if share else plain for waits, plain, share in handlers]


def waiting_works(shares: Sequence[float]) -> list[Work]:
    """As :func:`waiting_stages`, for the pipelines written by hand."""
    before, between, after = draws(shares)

    async def first(item: Item) -> None:
        if before[item["n"] % PERIOD]:
            await asyncio.sleep(0)
        item["first"] = item["n"] + 1

    async def second(item: Item) -> None:
        if between[item["first"] % PERIOD]:
            await asyncio.sleep(0)
        item["second"] = item["first"] * 2

    async def third(item: Item) -> None:
        if after[item["second"] // 2 % PERIOD]:
            await asyncio.sleep(0)
        item["third"] = item["second"] - 3

    works = zip((first, second, third), PLAIN_WORKS, shares, strict=True)
    return [waits if share else plain for waits, plain, share in works]


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
        waits: Some calls wait: nothing is learnt from the slowest and the quickest way then.
    """

    stages: Mapping[Callable[..., Any], int]
    steps: Sequence[Step]
    graph: Mapping[str, tuple[Work, Sequence[str]]]
    answer: Callable[[int], Item]
    waits: bool = False

    def pipeline(self, **policies: Any) -> Pipeline:
        pipeline = Pipeline("benchmark")
        for handler, workers in self.stages.items():
            pipeline.stage(max_in_flight=workers, queue_size=QUEUE_SIZE, **policies)(handler)
        return pipeline

    @property
    def in_flight(self) -> int:
        return sum(step.workers for step in self.steps)


def linear(*workers: int, waiting: Sequence[float] = (0, 0, 0)) -> Shape:
    """Three stages in a row; of the calls of each a share waits."""
    handlers, works = waiting_stages(waiting), waiting_works(waiting)
    return Shape(
        dict(zip(handlers, workers, strict=True)),
        [Step(work, most) for work, most in zip(works, workers, strict=True)],
        dict(zip(("first", "second", "third"), zip(works, ((), ["first"], ["second"]), strict=True), strict=True)),
        lambda n: {"n": n, "first": n + 1, "second": 2 * n + 2, "third": 2 * n - 1},
        waits=any(waiting),
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


SHAPES = {
    ROW: linear(16, 64, 8),
    SINGLE: linear(1, 1, 1),
    DIAMOND: diamond(16),
    ALL: linear(16, 64, 8, waiting=(1, 1, 1)),
    ONE: linear(16, 64, 8, waiting=(0, 1, 0)),
    TENTH: linear(16, 64, 8, waiting=(0.1, 0.1, 0.1)),
}


def checks(shape: Shape, records: Sequence[Item]) -> Callable[[str], Callable[[list[Item]], None]]:
    """By contender what compares its outputs, in any order, with the answers."""
    expected = [shape.answer(record["n"]) for record in records]

    def check(name: str) -> Callable[[list[Item]], None]:
        def compare(outputs: list[Item]) -> None:
            outputs.sort(key=lambda output: output["n"])
            if outputs != expected:
                wrong = next((o for o, e in zip(outputs, expected, strict=False) if o != e), f"{len(outputs)} outputs")
                raise WrongAnswer(f"{name}: {wrong}")

        return compare

    return check


def ways(shape: Shape, records: Sequence[Item], runner: asyncio.Runner) -> dict[str, Callable[[], list[Item]]]:
    """Every way to run the records through the shape."""

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

    policies: dict[str, Any] = {"retry": 3, "timeout": 60.0, "on_error": "skip"}
    runs = {
        OURS: with_stageflow(),
        "with retry, timeout": with_stageflow(**policies),
        POLICIES: with_stageflow(**policies, rate_limit=RateLimit(per_second=NEVER_REACHED)),
        "by hand": by_hand(workload.hand_written),
        TUNED: by_hand(workload.hand_tuned),
    }
    if not shape.waits:
        runs |= {"event per step": with_events, "bare loop": bare}
    return runs


def contenders(shape: Shape, records: Sequence[Item], runner: asyncio.Runner) -> dict[str, Callable[[], float]]:
    """Every way, measured and checked."""
    check = checks(shape, records)
    return {name: workload.cpu(run, check(name)) for name, run in ways(shape, records, runner).items()}


def measure(settings: Settings) -> workload.Report:
    """Compare all contenders over all shapes."""
    columns = {"shape": "", "contender": "", "ratio": ".2f", "lowest": ".2f", "highest": ".2f", "us/record": ".1f"}
    report = workload.Report("engine", settings, columns)
    records = [{"n": n} for n in range(settings.size(20_000, 10_000, 50))]
    rounds = settings.size(9, 3, 1)
    with asyncio.Runner(loop_factory=settings.new_loop) as runner:
        for shape_name, shape in SHAPES.items():
            seconds = workload.in_turns(contenders(shape, records, runner), rounds=rounds)
            ours = seconds[OURS]
            for name, theirs in seconds.items():
                ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
                figures = {"ratio": workload.ratio(theirs, ours), "lowest": min(ratios), "highest": max(ratios)}
                cost = {"us/record": sorted(theirs)[len(theirs) // 2] / len(records) * 1e6}
                report.row(shape=shape_name, contender=name, **figures, **cost)
            for promise in PROMISES:
                if promise.shape == shape_name:
                    hold(promise, workload.ratio(seconds[TUNED], seconds[promise.ours]), report)
    return report


def hold(promise: Promise, ratio: float, report: workload.Report) -> None:
    """Compare a ratio with what is promised of it."""
    what = f"{promise.shape}: {TUNED} / {promise.ours}"
    report.at_least(what, ratio, promise.bound)
    report.goal(what, ratio, promise.goal)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(workload.parse(__doc__, argv)).finish("CPU time of each contender over that of stageflow")


if __name__ == "__main__":
    workload.run_script(main)
