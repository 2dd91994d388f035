"""A random flow as a pipeline whose handlers watch what the engine does with them, and its runs."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from strategies_flow import (
    TIMEOUT,
    Flow,
    FlowStage,
    Key,
    Place,
    expected,
    message_of,
    random_flow,
    result_of,
    smallest,
)

from stageflow import Batch, Pipeline, RateLimit, Retry, RunReport, degrade, done, drop
from stageflow.testing import CallCount, run_virtual

SEEDS = range(300)
EPS = 1e-6
"""For sums of floats."""

WAYS: dict[str, Callable[[Any], Any]] = {"value": lambda value: value, "done": done, "drop": lambda value: drop("so")}


class Planned(Exception):
    """The failure that a flow plans for."""


class SteadyRetry(Retry):
    """Waits the same time before each attempt, so that a run can be repeated."""

    def delay(self, attempt: int, uniform: float, retry_after: float | None = None) -> float:
        return self.base


class Job:
    """A flow as a pipeline whose handlers watch what the engine does with them.

    What a handler finds wrong it can't raise, since that would be the record's failure: it stands in ``wrong``.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.right = expected(flow)
        self.nodes = {node.key: node for right in self.right.values() for node in right.tree.family()}
        self.wrong: list[str] = []
        self.calls: defaultdict[str, CallCount] = defaultdict(CallCount)
        self.attempts: defaultdict[tuple[str, Place], list[int]] = defaultdict(list)
        self.keys: defaultdict[tuple[str, Place], set[str]] = defaultdict(set)
        self.sizes: set[tuple[str, int]] = set()
        self.starts: defaultdict[int, list[float]] = defaultdict(list)
        self.ended: dict[Key, str] = {}
        self.failed: set[int] = set()
        self.seconds = 0.0
        self.pulled = 0
        self.source_open = 0
        self.tools_open = 0
        self.over = False
        self.pipeline = Pipeline("flow", on_partial=flow.on_partial)
        self.pipeline.resource(name="tool")(self._tool)
        limits = [RateLimit(per_second=rate) for rate in flow.rates]
        for stage in flow.stages:
            self.pipeline.add_stage(
                stage.name,
                self._handler(stage),
                depends_on=stage.depends_on,
                max_in_flight=stage.max_in_flight,
                queue_size=stage.queue_size,
                timeout=TIMEOUT,
                retry=SteadyRetry(stage.attempts, base=stage.backoff, cap=stage.backoff)
                if stage.attempts > 1
                else None,
                rate_limit=None if stage.limit is None else limits[stage.limit],
                batch=Batch(stage.batch[0], within=stage.batch[1]) if stage.batch else None,
                when=wanted_by(self, stage) if "unwanted" in stage.troubles else None,
                on_error=self._on_error(stage),
                **({"run": "inline"} if stage.plain else {}),
            )

    async def _tool(self) -> AsyncIterator[object]:
        self.tools_open += 1
        yield self
        self.tools_open -= 1

    def _on_error(self, stage: FlowStage) -> Any:
        def stand_in(error: Exception, record: dict[str, Any]) -> list[Any]:
            return ["degraded", stage.name, record["id"], type(error).__name__]

        return degrade(stand_in) if stage.on_error == "degrade" else stage.on_error

    # Handlers

    def _handler(self, stage: FlowStage) -> Callable[..., Any]:
        if stage.batch:
            return self._plain_batch(stage) if stage.plain else self._batch(stage)
        if stage.fans_out:
            return self._plain_generator(stage) if stage.plain else self._generator(stage)
        return self._plain_call(stage) if stage.plain else self._call(stage)

    def _call(self, stage: FlowStage) -> Callable[..., Any]:
        async def handle(record: Any, results: Any, call: Any, tool: Any) -> Any:
            place = self._begin(stage, record, results, call)
            with self._in_progress(stage):
                await self._wait(stage, [(place, call.attempt)])
                return self._end(stage, place, results, call.attempt)

        return handle

    def _plain_call(self, stage: FlowStage) -> Callable[..., Any]:
        def handle(record: Any, results: Any, call: Any, tool: Any) -> Any:
            place = self._begin(stage, record, results, call)
            with self._in_progress(stage):
                return self._end(stage, place, results, call.attempt)

        return handle

    def _generator(self, stage: FlowStage) -> Callable[..., Any]:
        async def handle(record: Any, results: Any, call: Any, tool: Any) -> AsyncIterator[Any]:
            place = self._begin(stage, record, results, call)
            fate = self.flow.fate(stage.name, place)
            with self._in_progress(stage):
                await self._wait(stage, [(place, call.attempt)])
                for value in self._children(stage, place, results, call.attempt):
                    yield value
                    self.seconds += fate.seconds
                    await asyncio.sleep(fate.seconds)
                self._break(stage, place)

        return handle

    def _plain_generator(self, stage: FlowStage) -> Callable[..., Any]:
        def handle(record: Any, results: Any, call: Any, tool: Any) -> Iterator[Any]:
            place = self._begin(stage, record, results, call)
            with self._in_progress(stage):
                yield from self._children(stage, place, results, call.attempt)
                self._break(stage, place)

        return handle

    def _batch(self, stage: FlowStage) -> Callable[..., Any]:
        async def handle(record: list[Any], results: list[Any], call: list[Any], tool: Any) -> list[Any]:
            places = self._begin_batch(stage, record, results, call)
            with self._in_progress(stage):
                await self._wait(stage, [(place, each.attempt) for place, each in zip(places, call, strict=True)])
                return self._end_batch(stage, places, results, call)

        return handle

    def _plain_batch(self, stage: FlowStage) -> Callable[..., Any]:
        def handle(record: list[Any], results: list[Any], call: list[Any], tool: Any) -> list[Any]:
            places = self._begin_batch(stage, record, results, call)
            with self._in_progress(stage):
                return self._end_batch(stage, places, results, call)

        return handle

    # What they have in common

    @contextmanager
    def _in_progress(self, stage: FlowStage) -> Iterator[None]:
        count = self.calls[stage.name]
        count.calls += 1
        count.in_progress += 1
        count.peak = max(count.peak, count.in_progress)
        if stage.limit is not None:
            self.starts[stage.limit].append(asyncio.get_running_loop().time())
        if self.over or not self.tools_open:
            self.wrong.append(f"{stage.name} was called {'after the run' if self.over else 'without its resource'}")
        try:
            yield
        finally:
            count.in_progress -= 1

    def _begin(self, stage: FlowStage, record: dict[str, Any], results: dict[str, Any], call: Any) -> Place:
        """Who the item is by its idempotency key, and whether all else that is said of it agrees."""
        name, number = stage.name, record["id"]
        _, index, *path, last = call.idempotency_key.split("-")
        place = (number, *map(int, path))
        level = self.flow.level[name]
        node = self.nodes.get((place, level))
        self.attempts[name, place].append(call.attempt)
        self.keys[name, place].add(call.idempotency_key)
        if last != name or int(index) != call.index or self.flow.records[call.index] != number:
            self.wrong.append(f"{name} {place} is called {call.idempotency_key}, index {call.index}")
        if node is None or name not in node.ran:
            self.wrong.append(f"{name} was started for {place}, for which it does not run")
        elif dict(results) != {need: node.results.get(need) for need in stage.depends_on}:
            self.wrong.append(f"{name} {place} was given {results}")
        for depth in range(1, len(place) + 1):
            by = self.ended.get((place[:depth], level[: depth - 1]))
            if by is not None:
                self.wrong.append(f"{name} was started for {place} after {by}")
        return place

    def _begin_batch(self, stage: FlowStage, record: list[Any], results: list[Any], call: list[Any]) -> list[Place]:
        self.sizes.add((stage.name, len(record)))
        return [self._begin(stage, *each) for each in zip(record, results, call, strict=True)]

    async def _wait(self, stage: FlowStage, items: list[tuple[Place, int]]) -> None:
        """The time that a call takes; one that hangs waits for its timeout."""
        fates = [(place, attempt, self.flow.fate(stage.name, place)) for place, attempt in items]
        hanging = [(place, attempt) for place, attempt, fate in fates if fate.hangs and attempt <= fate.bad]
        if not hanging:
            seconds = max(fate.seconds for _, _, fate in fates)
            self.seconds += seconds
            if seconds or self.flow.seed % 2:  # in every second job a call that takes no time does not wait
                await asyncio.sleep(seconds)
            return
        self.seconds += TIMEOUT
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if clock() - began > TIMEOUT + EPS:
                self.wrong.append(f"{stage.name} {hanging} was given {clock() - began} s")
            if clock() - began > TIMEOUT - EPS and len(items) == 1:
                self._mark_failure(stage, *items[0])
            raise

    def _mark_failure(self, stage: FlowStage, place: Place, attempt: int) -> None:
        if stage.on_error in ("dead_letter", "abort") and attempt >= stage.attempts:
            self.ended[place, self.flow.level[stage.name]] = f"{stage.name} had failed"
            self.failed.add(place[0])

    def _raise_if_bad(self, stage: FlowStage, place: Place, attempt: int) -> None:
        if attempt <= self.flow.fate(stage.name, place).bad:
            self._mark_failure(stage, place, attempt)
            raise Planned(message_of(stage.name, place))

    def _end(self, stage: FlowStage, place: Place, results: dict[str, Any], attempt: int) -> Any:
        self._raise_if_bad(stage, place, attempt)
        way = self.flow.fate(stage.name, place).way
        if way == "drop":
            self.ended.setdefault((place, self.flow.level[stage.name]), f"{stage.name} had dropped it")
        return WAYS[way](result_of(stage.name, place, dict(results)))

    def _end_batch(self, stage: FlowStage, places: list[Place], results: list[Any], call: list[Any]) -> list[Any]:
        if len(places) == 1:
            return [self._end(stage, places[0], results[0], call[0].attempt)]
        fates = [self.flow.fate(stage.name, place) for place in places]
        if any(each.attempt <= fate.bad for each, fate in zip(call, fates, strict=True)):
            raise Planned("one of them")
        return [
            WAYS[fate.way](result_of(stage.name, place, dict(given)))
            for place, given, fate in zip(places, results, fates, strict=True)
        ]

    def _children(self, stage: FlowStage, place: Place, results: dict[str, Any], attempt: int) -> Iterator[Any]:
        self._raise_if_bad(stage, place, attempt)
        for number, way in enumerate(self.flow.fate(stage.name, place).children):
            yield WAYS[way](result_of(stage.name, (*place, number), dict(results)))

    def _break(self, stage: FlowStage, place: Place) -> None:
        if self.flow.fate(stage.name, place).breaks:
            self.failed.add(place[0])
            raise Planned(message_of(stage.name, place))

    # The run

    def source(self) -> Iterable[dict[str, Any]] | AsyncIterator[dict[str, Any]]:
        return self._slow_source() if self.flow.unhurried else self._source()

    def _source(self) -> Iterable[dict[str, Any]]:
        for number in self.flow.records:
            self.pulled += 1
            yield {"id": number}

    async def _slow_source(self) -> AsyncIterator[dict[str, Any]]:
        self.source_open += 1
        try:
            for number in self.flow.records:
                await asyncio.sleep(self.flow.delay("source", (number,)))
                self.pulled += 1
                yield {"id": number}
        finally:
            self.source_open -= 1

    def options(self) -> dict[str, Any]:
        limit = self.flow.max_open_records
        return {} if limit is None else {"max_open_records": limit}

    async def assert_over(self) -> None:
        """Nothing is in progress or open any more, nothing comes after, and no handler found anything wrong."""
        self.over = True
        await asyncio.sleep(1e7)  # long enough for whatever timer was left to ring
        assert not self.wrong, self.wrong
        assert (self.source_open, self.tools_open) == (0, 0)
        assert {name: count.in_progress for name, count in self.calls.items() if count.in_progress} == {}


def wanted_by(job: Job, stage: FlowStage) -> Callable[..., bool]:
    def when(record: Any, call: Any) -> bool:
        path = call.idempotency_key.split("-")[2:-1]
        return job.flow.fate(stage.name, (record["id"], *map(int, path))).wanted

    return when


@dataclass
class Run:
    """A whole run, and the virtual seconds it took."""

    job: Job
    report: RunReport
    output: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    seconds: float

    def lines_of(self, number: int) -> list[dict[str, Any]]:
        return [line for line in self.output if line["id"] == number]


def run(flow: Flow, seed: int | None, **options: Any) -> Run:
    async def main() -> Run:
        job = Job(flow)
        output: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        report = await job.pipeline.run(job.source(), output, dead=dead, **job.options(), **options)
        seconds = asyncio.get_running_loop().time()
        await job.assert_over()
        return Run(job, report, output, dead, seconds)

    return run_virtual(main(), seed=seed)


@cache
def run_of(seed: int) -> Run:
    return run(random_flow(seed), seed)


Check = Callable[[Run], None]


def holds(check: Check, seeds: Iterable[int] = SEEDS) -> None:
    """``check`` passes for the run of every seed, or the smallest flow for which it fails is told."""
    for seed in seeds:
        try:
            check(run_of(seed))
        except Exception as error:
            tell_smallest(error, seed, lambda flow, seed: check(run(flow, seed)))
            raise


def holds_anew(check: Callable[[Flow, int], None], seeds: Iterable[int] = SEEDS) -> None:
    """As :func:`holds`, for a check that makes its own runs."""
    for seed in seeds:
        try:
            check(random_flow(seed), seed)
        except Exception as error:
            tell_smallest(error, seed, check)
            raise


def tell_smallest(error: Exception, seed: int, check: Callable[[Flow, int], None]) -> None:
    def fails_alike(flow: Flow) -> bool:
        try:
            check(flow, seed)
        except Exception as other:  # noqa: BLE001 - whatever it is, it is the failure that is being cut down
            return type(other) is type(error)
        return False

    error.add_note(f"seed {seed}; the smallest flow that fails: {smallest(random_flow(seed), fails_alike)}")


def text_of(flow: Flow, line: dict[str, Any]) -> str:
    """A line as text, without what is up to timing: how often a member of a batch was tried."""
    notes = {name: dict(note) for name, note in line.get("_stageflow", {}).items()}
    for name, note in notes.items():
        if is_open(flow.by_name[name], note["outcome"]) and note["attempts"] != 0:
            note["attempts"] = None
    fields = {name: value for name, value in line.items() if name != "_stageflow"}
    return json.dumps([fields, sorted(notes.items())])


def is_open(stage: FlowStage, outcome: str) -> bool:
    return stage.batch is not None or (stage.fans_out and outcome == "done")


def place_of(flow: Flow, letter: dict[str, Any]) -> Place:
    """The item of a dead letter. A letter does not say; the values that generators yielded do."""
    place: Place = (flow.records[letter["index"]],)
    for maker in flow.level[letter["stage"]]:
        value = letter["results"][maker]
        # A stand-in for a generator is its only child.
        place = tuple(value[1]) if value is not None and value[0] == maker else (*place, 0)
    return place


def whenever_time_moves(look: Callable[[], None]) -> None:
    """Call ``look`` each time that nothing is runnable."""
    loop: Any = asyncio.get_running_loop()
    move = loop._move_time

    def move_time() -> None:
        look()
        move()

    loop._move_time = move_time


def balances(said: Any) -> None:
    assert said.received == said.passed + said.dropped + said.dead + said.cancelled, said
