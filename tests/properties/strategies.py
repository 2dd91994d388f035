"""Random jobs as plain data, what each of them must come to, and the smallest one that still fails.

A :class:`Shape` is drawn from a seed and says everything about a run but the schedule: the graph, the limits, the
records, how long each call takes and which calls fail. It is a value, so a failing one can be printed, pasted into a
test and cut down.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

__all__ = ["Expected", "Shape", "StageShape", "expected", "random_shape", "smallest"]

DELAYS = (0.0, 0.0, 0.001, 1.0, 1.0, 7.0)
"""Seconds of a call. Repeated values make calls end at one moment, which is where schedules differ."""


@dataclass(frozen=True)
class StageShape:
    """One stage; ``depends_on`` may name stages that are defined after it."""

    name: str
    depends_on: tuple[str, ...] = ()
    max_in_flight: int = 1
    queue_size: int = 1


@cache  # many tests ask for the same, and to seed a generator takes long
def _delay(seed: int, stage: str, index: int) -> float:
    return random.Random(f"{seed} {stage} {index}").choice(DELAYS)


@dataclass(frozen=True)
class Shape:
    """A job and its input.

    Args:
        stages: In the order of definition, which need not be one of execution.
        records: How many there are; the index of each is its ``id``.
        failing: The calls that raise, as (stage, index).
        max_open_records: The bound on records in flight; ``None`` is the default.
        unhurried: The source is asynchronous and takes its time, too.
        delays: The seed of the delays. Each depends on this, the stage and the index alone, so that a stage or a
            record can be left out without changing the rest.
    """

    stages: tuple[StageShape, ...]
    records: int
    failing: frozenset[tuple[str, int]] = frozenset()
    max_open_records: int | None = None
    unhurried: bool = False
    delays: int = 0

    def delay(self, stage: str, index: int) -> float:
        """How long the call takes, in virtual seconds."""
        return _delay(self.delays, stage, index)

    @property
    def seconds(self) -> float:
        """What it takes one call at a time. Nothing the engine does takes time, so no run may take longer."""
        names = [stage.name for stage in self.stages] + ["source"] * self.unhurried
        return sum(self.delay(name, index) for name in names for index in range(self.records))


@dataclass(frozen=True)
class Expected:
    """What becomes of one record.

    Args:
        results: Of the stages that succeed if they are started, by name.
        failing: The stages that fail if they are started. Any of them may be the first; if there is one, the record is
            dead, and some of the others may never have been started.
    """

    results: dict[str, Any]
    failing: frozenset[str]


def random_shape(seed: int) -> Shape:
    """The job of this seed: 1 to 8 stages, 0 to 40 records, limits mostly small, since full channels are the point."""
    draw = random.Random(seed)
    names = draw.sample("abcdefghijkl", draw.randint(1, 8))
    density = draw.choice((0.0, 0.3, 0.6, 1.0))
    stages = [
        StageShape(
            name=name,
            depends_on=tuple(earlier for earlier in names[:position] if draw.random() < density),
            max_in_flight=draw.randint(1, 5),
            queue_size=draw.randint(1, 5),
        )
        for position, name in enumerate(names)
    ]
    draw.shuffle(stages)
    records = draw.choice((0, 1, draw.randint(2, 40), draw.randint(2, 40), draw.randint(2, 40)))
    share = draw.choice((0.0, 0.02, 0.2, 1.0))
    calls = [(stage.name, index) for stage in stages for index in range(records)]
    return Shape(
        stages=tuple(stages),
        records=records,
        failing=frozenset(call for call in calls if draw.random() < share),
        max_open_records=draw.choice((None, 1, draw.randint(2, 30))),
        unhurried=draw.random() < 0.5,
        delays=seed,
    )


def expected(shape: Shape) -> dict[int, Expected]:
    """The right answer, computed directly: record by record, stage by stage, without any concurrency."""
    stages = {stage.name: stage for stage in shape.stages}

    def outcome(index: int) -> Expected:
        results: dict[str, Any] = {}
        failing: set[str] = set()
        waiting = dict(stages)
        while waiting:
            # A stage starts when each stage it depends on has succeeded; below a failed one nothing starts.
            ready = [name for name, stage in waiting.items() if all(above in results for above in stage.depends_on)]
            if not ready:
                break
            for name in ready:
                stage = waiting.pop(name)
                if (name, index) in shape.failing:
                    failing.add(name)
                else:
                    results[name] = result_of(name, index, {above: results[above] for above in stage.depends_on})
        return Expected(results, frozenset(failing))

    return {index: outcome(index) for index in range(shape.records)}


def result_of(stage: str, index: int, results: dict[str, Any]) -> list[Any]:
    """What a stage makes of a record: its whole ancestry, so that whatever was joined wrongly shows in the output."""
    return [stage, index, [results[name] for name in sorted(results)]]


def smallest(shape: Shape, fails: Callable[[Shape], bool]) -> Shape:
    """Cut ``shape`` down as long as it still fails; greedy, so a local minimum."""
    while True:
        for candidate in _smaller(shape):
            if fails(candidate):
                shape = candidate
                break
        else:
            return shape


def _smaller(shape: Shape) -> Iterator[Shape]:
    for stage in shape.stages if len(shape.stages) > 1 else ():
        yield _without(shape, stage.name)
    for records in dict.fromkeys((shape.records // 2, shape.records - 1)):
        if 0 <= records < shape.records:
            yield replace(shape, records=records, failing=frozenset(f for f in shape.failing if f[1] < records))
    if shape.failing:
        yield replace(shape, failing=frozenset())
        for failure in sorted(shape.failing):
            yield replace(shape, failing=shape.failing - {failure})
    if shape.unhurried:
        yield replace(shape, unhurried=False)
    if shape.max_open_records is not None:
        yield replace(shape, max_open_records=None)
    for place, stage in enumerate(shape.stages):
        for plainer in _plainer(stage):
            yield replace(shape, stages=(*shape.stages[:place], plainer, *shape.stages[place + 1 :]))


def _plainer(stage: StageShape) -> Iterator[StageShape]:
    for above in stage.depends_on:
        yield replace(stage, depends_on=tuple(name for name in stage.depends_on if name != above))
    if stage.max_in_flight > 1:
        yield replace(stage, max_in_flight=stage.max_in_flight - 1)
    if stage.queue_size > 1:
        yield replace(stage, queue_size=stage.queue_size - 1)


def _without(shape: Shape, name: str) -> Shape:
    stages = tuple(
        replace(stage, depends_on=tuple(above for above in stage.depends_on if above != name))
        for stage in shape.stages
        if stage.name != name
    )
    return replace(shape, stages=stages, failing=frozenset(f for f in shape.failing if f[0] != name))
