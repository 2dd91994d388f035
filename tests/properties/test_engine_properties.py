"""Whatever the graph, the limits, the delays, the failures and the schedule: what a run must hold to.

Each of 300 seeds draws a job and a schedule. A failure prints the smallest job that still fails under that seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from strategies import Shape, StageShape, expected, random_shape, result_of, smallest

from stageflow import Pipeline, RunFailed, RunReport
from stageflow.channel import Channel
from stageflow.engine.credits import Credits
from stageflow.engine.routing import Router
from stageflow.item import Item
from stageflow.testing import FaultPlan, run_virtual

SEEDS = range(300)


class Planned(Exception):
    """The failure that a shape plans for."""


class Job:
    """A shape as a pipeline whose handlers watch what the engine does with them."""

    def __init__(self, shape: Shape, **settings: Any) -> None:
        self.shape = shape
        self.right = expected(shape)
        self.started: Counter[tuple[str, int]] = Counter()
        self.calls = FaultPlan()
        self.pulled = 0
        self.source_open = 0
        self.pipeline = Pipeline("shape")
        for stage in shape.stages:
            self.pipeline.add_stage(
                stage.name,
                self._handler(stage),
                depends_on=stage.depends_on,
                max_in_flight=stage.max_in_flight,
                queue_size=stage.queue_size,
                **settings,
            )

    def _handler(self, stage: StageShape) -> Callable[..., Any]:
        async def handle(record: dict[str, Any], results: dict[str, Any]) -> list[Any]:
            index = record["id"]
            self.started[stage.name, index] += 1
            async with self.calls.call(stage.name, index):
                delay = self.shape.delay(stage.name, index)
                if delay or self.shape.delays % 2:  # in every second job a call that takes no time does not wait
                    await asyncio.sleep(delay)
                if (stage.name, index) in self.shape.failing:
                    raise Planned(f"{stage.name} {index}")
                return result_of(stage.name, index, dict(results))

        return handle

    def source(self) -> Iterable[dict[str, Any]] | AsyncIterator[dict[str, Any]]:
        return self._slow_source() if self.shape.unhurried else self._source()

    def _source(self) -> Iterable[dict[str, Any]]:
        for index in range(self.shape.records):
            self.pulled += 1
            yield {"id": index}

    async def _slow_source(self) -> AsyncIterator[dict[str, Any]]:
        self.source_open += 1
        try:
            for index in range(self.shape.records):
                await asyncio.sleep(self.shape.delay("source", index))
                self.pulled += 1
                yield {"id": index}
        finally:
            self.source_open -= 1

    def options(self) -> dict[str, Any]:
        limit = self.shape.max_open_records
        return {} if limit is None else {"max_open_records": limit}


@dataclass
class Run:
    """A whole run, and the virtual seconds it took."""

    job: Job
    report: RunReport
    output: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    seconds: float

    @property
    def buried(self) -> list[int]:
        return [letter["index"] for letter in self.dead]


def run(shape: Shape, seed: int | None, *, grace: float | None = None) -> Run:
    """``grace``: the first failure stops the run, which may take so many seconds more."""
    abort = {} if grace is None else {"on_error": "abort"}
    options = {} if grace is None else {"grace": grace}

    async def main() -> Run:
        job, output, dead = Job(shape, **abort), [], []
        report = await job.pipeline.run(job.source(), output, dead=dead, **job.options(), **options)
        return Run(job, report, output, dead, asyncio.get_running_loop().time())

    return run_virtual(main(), seed=seed)


def holds(check: Callable[[Shape, int], None], seeds: Iterable[int] = SEEDS) -> None:
    """``check`` passes for the shape of every seed, or the smallest shape for which it fails is told."""
    for seed in seeds:
        shape = random_shape(seed)
        try:
            check(shape, seed)
        except Exception as error:
            small = smallest(shape, partial(fails_alike, type(error), check, seed))
            error.add_note(f"seed {seed}; the smallest shape that fails: {small}")
            raise


def fails_alike(kind: type[Exception], check: Callable[[Shape, int], None], seed: int, shape: Shape) -> bool:
    try:
        check(shape, seed)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure that is being cut down
        return type(error) is kind
    return False


# What must hold


def output_is_right(done: Run) -> None:
    """Every record is written or dead, exactly once, with the results that direct computation gives."""
    shape, right_of = done.job.shape, done.job.right
    fields = ["id", *(stage.name for stage in shape.stages)]
    assert sorted(record["id"] for record in done.output) == [i for i, right in right_of.items() if not right.failing]
    assert sorted(done.buried) == [i for i, right in right_of.items() if right.failing]
    for record in done.output:
        assert list(record) == fields
        assert record == {"id": record["id"], **right_of[record["id"]].results}
    for letter in done.dead:
        index, right = letter["index"], right_of[letter["index"]]
        assert letter["stage"] in right.failing
        assert letter["record"] == {"id": index}
        assert letter["error"]["type"].endswith("Planned")
        assert letter["error"]["message"] == f"{letter['stage']} {index}"
        assert letter["attempts"] == 1
        # Everything above the stage that failed has finished, and nothing that is said to have finished is wrong.
        above = next(stage.depends_on for stage in shape.stages if stage.name == letter["stage"])
        assert set(above) <= letter["results"].keys()
        assert letter["results"] == {name: right.results[name] for name in letter["results"]}


def account_balances(done: Run) -> None:
    """The report adds up, per stage and for the run, and says what the handlers saw."""
    shape, report = done.job.shape, done.report
    assert report.read == shape.records
    assert (report.written, report.dead, report.dropped, report.not_done) == (len(done.output), len(done.dead), 0, 0)
    assert report.stopped is None
    assert report.exit_code == (3 if done.dead else 0)
    assert report.stages.keys() == {stage.name for stage in shape.stages}
    order = list(report.stages)
    assert all(order.index(above) < order.index(stage.name) for stage in shape.stages for above in stage.depends_on)
    assert sum(stage.dead for stage in report.stages.values()) == report.dead
    for name, stage in report.stages.items():
        assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled, stage
        assert stage.received <= shape.records
        assert (stage.dropped, stage.retries, stage.degraded, stage.skipped) == (0, 0, 0, 0), stage
        # What was given back without a call was received and cancelled; everything else was called once.
        started = done.job.calls[name].calls
        assert stage.passed + stage.dead <= started <= stage.received, stage
        if not shape.failing:
            assert stage.passed == stage.received == started == shape.records, stage


def nothing_runs_twice_or_too_early(done: Run) -> None:
    """A stage is called at most once for a record, only after all it depends on, and for written ones exactly once."""
    shape, started = done.job.shape, done.job.started
    assert set(started.values()) <= {1}
    for stage, index in started:
        right = done.job.right[index]
        assert stage in right.results or stage in right.failing, f"{stage} was started for {index}, below a failure"
    for record in done.output:
        assert all((stage.name, record["id"]) in started for stage in shape.stages)


def limits_hold(done: Run) -> None:
    """No more calls, queued items or open records than allowed; and no second that no call accounts for."""
    shape, report = done.job.shape, done.report
    for limits in shape.stages:
        seen, said = done.job.calls[limits.name], report.stages[limits.name]
        assert (said.max_in_flight, said.queue_size) == (limits.max_in_flight, limits.queue_size)
        assert seen.in_progress == 0
        assert seen.peak <= limits.max_in_flight, f"{seen.peak} calls at once in {said}"
        assert seen.peak <= said.peak_in_flight <= limits.max_in_flight, said
        assert said.peak_depth <= limits.queue_size, said
    default = sum(stage.max_in_flight + stage.queue_size for stage in shape.stages)
    assert report.max_open_records == (shape.max_open_records or default)
    assert report.peak_open <= report.max_open_records
    assert done.job.source_open == 0
    assert done.seconds == report.seconds
    assert done.seconds <= shape.seconds + 1e-6


CHECKS = (output_is_right, account_balances, nothing_runs_twice_or_too_early, limits_hold)


def test_every_run() -> None:
    def check(shape: Shape, seed: int) -> None:
        done = run(shape, seed)
        for each in CHECKS:
            each(done)

    holds(check)


@pytest.mark.parametrize("grace", [0.0, 0.5, 1000.0])
def test_a_run_that_is_stopped_accounts_for_what_it_did_not_do(grace: float) -> None:
    def check(shape: Shape, seed: int) -> None:
        done = run(shape, seed, grace=grace)
        report, right_of = done.report, done.job.right
        assert (report.written, report.dead, report.dropped) == (len(done.output), 0, 0)
        assert not done.dead
        assert report.read == report.written + report.not_done <= shape.records
        assert (report.stopped is not None) == bool(shape.failing)
        assert report.exit_code == (4 if shape.failing else 0)
        assert len({record["id"] for record in done.output}) == len(done.output)
        for record in done.output:
            assert record == {"id": record["id"], **right_of[record["id"]].results}
            assert not right_of[record["id"]].failing
        for name, stage in report.stages.items():
            assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled, stage
            assert done.job.calls[name].in_progress == 0
        assert done.job.source_open == 0

    holds(check)


def test_in_asyncios_own_order_too() -> None:
    def check(shape: Shape, seed: int) -> None:
        output_is_right(run(shape, None))  # no seed: first come, first served

    holds(check)


def test_output_does_not_depend_on_limits() -> None:
    """Neither on the seed: both sides are compared as they are, without ``expected`` in between."""

    def check(shape: Shape, seed: int) -> None:
        wide = tuple(replace(stage, max_in_flight=64, queue_size=64) for stage in shape.stages)
        one = run(shape, seed)
        other = run(replace(shape, stages=wide, max_open_records=None), None)
        assert {record["id"]: record for record in one.output} == {record["id"]: record for record in other.output}
        assert sorted(one.buried) == sorted(other.buried)

    holds(check)


def test_a_run_can_be_repeated_exactly() -> None:
    def check(shape: Shape, seed: int) -> None:
        one, other = run(shape, seed), run(shape, seed)
        assert one.output == other.output
        assert one.buried == other.buried
        assert one.report == other.report

    holds(check, range(100))


def test_whoever_leaves_the_stream_early_leaves_nothing_behind() -> None:
    """What came is right, no more was read than may be in flight, and no task (``LeftBehind``) or call is left."""

    def check(shape: Shape, seed: int) -> None:
        job = Job(shape)
        wanted = seed % 7
        taken: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []

        async def main() -> None:
            async with aclosing(job.pipeline.stream(job.source(), dead=dead, **job.options())) as records:
                async for record in records:
                    taken.append(record)
                    if len(taken) > wanted:
                        break
            assert job.source_open == 0
            assert all(job.calls[stage.name].in_progress == 0 for stage in shape.stages)

        run_virtual(main(), seed=seed)
        alive = [index for index, right in job.right.items() if not right.failing]
        assert len(taken) == min(wanted + 1, len(alive))
        assert len({record["id"] for record in taken}) == len(taken)
        for record in taken:
            assert record == {"id": record["id"], **job.right[record["id"]].results}
        bound = shape.max_open_records or sum(stage.max_in_flight + stage.queue_size for stage in shape.stages)
        # One more is in the hand of whoever reads, waiting to be admitted.
        assert job.pulled <= len(taken) + len(dead) + bound + 1

    holds(check)


def test_a_stream_that_is_merely_dropped_ends_as_well() -> None:
    """A bare ``break`` leaves the closing to the collector, which has it done soon, but not at once."""

    def check(shape: Shape, seed: int) -> None:
        job = Job(shape)

        async def main() -> None:
            async for _ in job.pipeline.stream(job.source(), dead=[], **job.options()):
                break
            await asyncio.sleep(1e-9)
            assert all(job.calls[stage.name].in_progress == 0 for stage in shape.stages)

        run_virtual(main(), seed=seed)

    holds(check)


def test_a_cancelled_run_leaves_nothing_behind() -> None:
    """Cancelled at any moment, at one where something else happens above all."""

    def check(shape: Shape, seed: int) -> None:
        job = Job(shape)
        output: list[dict[str, Any]] = []

        async def main() -> None:
            run = asyncio.create_task(job.pipeline.run(job.source(), output, dead=[], **job.options()))
            await asyncio.sleep((0.0, 0.001, 1.0, 2.0, 7.0, 8.001)[seed % 6])
            run.cancel()
            await asyncio.wait([run])
            assert run.cancelled() or not run.exception()
            assert job.source_open == 0
            assert all(job.calls[stage.name].in_progress == 0 for stage in shape.stages)

        run_virtual(main(), seed=seed)
        for record in output:
            assert record == {"id": record["id"], **job.right[record["id"]].results}

    holds(check)


# The tests of the tests


def forgets(self: Channel, *_: int) -> None:
    """A channel that does not do what it should: put the end marker back, or wake who waits."""


def join_of_anything() -> Callable[[Router, Item, str, frozenset[str]], bool]:
    """A join that counts arrivals, whichever records they are of."""
    arrived: WeakKeyDictionary[object, Counter[str]] = WeakKeyDictionary()

    def arrive(self: Router, item: Item, stage: str, others: frozenset[str]) -> bool:
        count = arrived.setdefault(asyncio.get_running_loop(), Counter())
        count[stage] += 1
        return count[stage] % len(self._plan.stages[stage].dependencies) == 0

    return arrive


def send_without_bound(self: Channel, item: Item) -> bool:
    """A channel that takes whatever comes."""
    self.put_nowait(item) if not self.full() else self.items.append(item)
    self.sent += 1
    self.peak_depth = max(self.peak_depth, self.qsize())
    self.wake()
    return True


def credit_without_bound(self: Credits) -> bool:
    """Admission that lets everybody in."""
    self.taken += 1
    self.peak = max(self.peak, self.taken)
    return True


@pytest.mark.parametrize(
    ("broken", "mistake", "check"),
    [
        ("stageflow.channel.Channel.leave", forgets, output_is_right),
        ("stageflow.channel.Channel.wake", forgets, output_is_right),
        ("stageflow.channel.Channel.try_send", send_without_bound, limits_hold),
        ("stageflow.engine.credits.Credits.try_take", credit_without_bound, limits_hold),
        ("stageflow.engine.routing.Router._arrive", join_of_anything(), output_is_right),
    ],
)
def test_planted_mistakes_are_found(
    broken: str, mistake: Callable[..., Any], check: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, mistake)
    with pytest.raises((AssertionError, RunFailed)):
        every(check)


def every(check: Callable[[Run], None]) -> None:
    """As :func:`holds`, without the cutting down."""
    for seed in SEEDS:
        check(run(random_shape(seed), seed))


@cache
def shapes() -> tuple[Shape, ...]:
    return tuple(random_shape(seed) for seed in SEEDS)


def test_shapes_are_as_various_as_they_should_be() -> None:
    assert {len(shape.stages) for shape in shapes()} == set(range(1, 9))
    assert {stage.max_in_flight for shape in shapes() for stage in shape.stages} == {1, 2, 3, 4, 5}
    assert {stage.queue_size for shape in shapes() for stage in shape.stages} == {1, 2, 3, 4, 5}
    assert {0, 1, 40} <= {shape.records for shape in shapes()}
    assert {None, 1, 30} <= {shape.max_open_records for shape in shapes()}
    assert sum(bool(shape.failing) for shape in shapes()) > 100
    assert sum(not shape.failing and shape.records > 1 for shape in shapes()) > 50
    assert sum(any(len(stage.depends_on) > 1 for stage in shape.stages) for shape in shapes()) > 100
    assert all(random_shape(seed) == shape for seed, shape in enumerate(shapes()))


def test_the_expected_outcome_of_a_diamond() -> None:
    diamond = Shape(
        stages=(
            StageShape("join", ("left", "right")),
            StageShape("left", ("top",)),
            StageShape("right", ("top",)),
            StageShape("top"),
        ),
        records=3,
        failing=frozenset({("left", 1), ("join", 1), ("top", 2), ("right", 2)}),
    )
    outcomes = expected(diamond)
    top = ["top", 0, []]
    assert outcomes[0].results["join"] == ["join", 0, [["left", 0, [top]], ["right", 0, [top]]]]
    assert outcomes[0].failing == frozenset()
    # Where the left branch fails, the right one may finish, and the join is not started, planned as its failure is.
    assert outcomes[1].failing == {"left"}
    assert outcomes[1].results.keys() == {"top", "right"}
    assert outcomes[2].failing == {"top"}
    assert outcomes[2].results == {}


def test_a_failing_shape_is_cut_down() -> None:
    def wants_a_join(shape: Shape) -> bool:
        return shape.records >= 3 and any(len(stage.depends_on) >= 2 for stage in shape.stages)

    shape = next(shape for shape in shapes() if wants_a_join(shape) and len(shape.stages) > 5 and shape.failing)
    small = smallest(shape, wants_a_join)
    assert (len(small.stages), small.records, small.failing, small.max_open_records) == (3, 3, frozenset(), None)
    assert {(stage.max_in_flight, stage.queue_size) for stage in small.stages} == {(1, 1)}
