"""Timeouts by one timer per stage: exact, from each call's own start, and none left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from typing import Any, cast

import pytest

from stageflow import Batch, Pipeline, RateLimit, Retry, degrade
from stageflow.engine.deadlines import SWALLOW_GRACE, Deadlines
from stageflow.engine.worker import Worker
from stageflow.testing import VirtualLoop, run_virtual

FAR = 1000.0
"""When all calls have ended."""


class Call:
    """What the timer looks at: a call that began, and the task it can be cancelled by."""

    def __init__(self, since: float, *, swallows: bool = False) -> None:
        self.since = since
        self.timed_out = False
        self.cancelled_at: list[float] = []
        self.task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._run(swallows))

    async def _run(self, swallows: bool) -> None:
        while now() < FAR:
            try:
                await asyncio.sleep(FAR - now())
            except asyncio.CancelledError:
                self.cancelled_at.append(now())
                if not swallows:
                    self.since = inf
                    raise


def now() -> float:
    return asyncio.get_running_loop().time()


def timers() -> list[float]:
    """When the loop's timers ring, those of the calls left out."""
    loop = cast("VirtualLoop", asyncio.get_running_loop())
    return sorted(timer.when() for timer in loop._scheduled if not timer.cancelled() and timer.when() != FAR)


def deadlines(timeout: float, calls: set[Call], abandoned: list[tuple[Worker, float]] | None = None) -> Deadlines:
    said = [] if abandoned is None else abandoned

    def abandon(worker: Worker) -> None:
        said.append((worker, now()))
        calls.discard(cast("Call", worker))

    return Deadlines(timeout, cast("set[Worker]", calls), clock=now, abandon=abandon)


def test_each_call_is_over_a_timeout_after_its_own_start_by_one_timer() -> None:
    async def main() -> None:
        calls: set[Call] = set()
        own = deadlines(10.0, calls)
        begun = []
        for start in (0.0, 3.0, 3.0, 7.5):
            await asyncio.sleep(start - now())
            begun.append(Call(start))
            calls.add(begun[-1])
            own.arm()
            assert timers() == [10.0], "one timer, whatever the number of calls"
        await asyncio.sleep(100)
        assert [call.cancelled_at for call in begun] == [[10.0], [13.0], [13.0], [17.5]]
        assert timers() == []

    run_virtual(main())


def test_a_call_that_ended_in_time_is_let_alone_and_its_timer_rings_once_for_nothing() -> None:
    async def main() -> None:
        call = Call(0.0)
        own = deadlines(10.0, {call})
        own.arm()
        await asyncio.sleep(4)
        call.since = 4.0  # its worker has begun the next one
        await asyncio.sleep(9.5)
        assert call.cancelled_at == []
        call.since = inf
        await asyncio.sleep(100)
        assert call.cancelled_at == []
        assert timers() == []
        own.arm()
        assert timers() == [now() + 10.0]
        own.stop()
        assert timers() == []
        assert call.task is not None
        await call.task

    run_virtual(main())


def test_a_call_that_is_still_there_after_the_grace_is_abandoned_once() -> None:
    async def main() -> None:
        call, gone = Call(0.0, swallows=True), list[tuple[Worker, float]]()
        own = deadlines(10.0, {call}, gone)
        own.arm()
        await asyncio.sleep(100)
        assert call.cancelled_at == [10.0]
        assert gone == [(cast("Worker", call), 10.0 + SWALLOW_GRACE)]
        assert timers() == []
        assert call.task is not None
        await call.task

    run_virtual(main())


def test_a_call_whose_time_stood_still_is_over_that_much_later_and_not_a_moment_more() -> None:
    async def main() -> None:
        stood, other = Call(0.0), Call(0.0)
        own = deadlines(10.0, {stood, other})
        own.arm()
        await asyncio.sleep(6)
        stood.since = inf
        other.since = 6.0
        await asyncio.sleep(5)
        assert timers() == [16.0]
        own.resume(cast("Worker", stood), 1.0)
        assert timers() == [11.0]
        await asyncio.sleep(100)
        assert stood.cancelled_at == [11.0]
        assert other.cancelled_at == [16.0]

    run_virtual(main())


def test_resuming_sets_no_timer_where_the_one_there_is_early_enough() -> None:
    async def main() -> None:
        call, other = Call(0.0), Call(0.0)
        own = deadlines(10.0, {call, other})
        own.arm()
        await asyncio.sleep(2)
        own.resume(cast("Worker", call), 2.0)
        assert timers() == [10.0]
        await asyncio.sleep(100)
        assert (call.cancelled_at, other.cancelled_at) == ([12.0], [10.0])

    run_virtual(main())


# What is no part of an attempt


class Paused(Exception):
    retry_after = 30.0


def run(pipeline: Pipeline, records: Any) -> tuple[Any, float]:
    async def main() -> tuple[Any, float]:
        report = await pipeline.run(records, [], dead=[])
        loop = cast("VirtualLoop", asyncio.get_running_loop())
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == [], "no timer is left"
        return report, loop.time()

    return run_virtual(main())


def test_waiting_for_a_permit_does_not_count() -> None:
    async def x(n: Any) -> Any:
        await asyncio.sleep(0.9)
        return n

    each: tuple[dict[str, Any], ...] = ({}, {"batch": Batch(1)})
    for settings in each:
        pipeline = Pipeline("permits")
        pipeline.add_stage("x", x, timeout=1.0, rate_limit=RateLimit(per_second=0.1), **settings)
        report, seconds = run(pipeline, [{"n": n} for n in range(4)])
        assert (report.written, report.dead) == (4, 0)
        assert seconds == 30.9


def test_waiting_for_the_end_of_a_pause_does_not_count() -> None:
    first = True

    async def x(n: int) -> None:
        nonlocal first
        if first:
            first = False
            raise Paused
        await asyncio.sleep(0.9)

    pipeline = Pipeline("pauses")
    pipeline.add_stage("x", x, timeout=1.0, retry=Retry(2, base=0.0, cap=0.0), max_in_flight=1)
    report, seconds = run(pipeline, [{"n": n} for n in range(4)])
    assert (report.written, report.dead) == (4, 0)
    # The one that is tried again comes up to a tenth later than asked.
    assert 30.0 + 4 * 0.9 - 1e-9 <= seconds <= 33.0 + 0.9 + 1e-9


@pytest.mark.parametrize("children", [1, 3], ids=["straight", "several"])
def test_waiting_for_room_in_the_next_channel_does_not_count(children: int) -> None:
    async def x(n: int) -> int:
        await asyncio.sleep(0.9)
        return n

    async def slow(x: int) -> None:
        await asyncio.sleep(20)

    pipeline = Pipeline("full")
    pipeline.add_stage("x", x, timeout=1.0)
    for number in range(children):
        pipeline.add_stage(f"slow{number}", slow, depends_on=["x"], max_in_flight=1, queue_size=1)
    report, seconds = run(pipeline, [{"n": n} for n in range(20)])
    assert (report.written, report.dead) == (20, 0)
    assert seconds == 0.9 + 20 * 20


def test_nor_does_it_where_a_generator_waits_between_its_children() -> None:
    async def x(n: int) -> AsyncIterator[int]:
        for child in range(4):
            await asyncio.sleep(0.24)
            yield child

    async def slow(x: int) -> None:
        await asyncio.sleep(20)

    pipeline = Pipeline("full")
    pipeline.add_stage("x", x, timeout=1.0)
    pipeline.add_stage("slow", slow, max_in_flight=1, queue_size=1)
    report, seconds = run(pipeline, [{"n": n} for n in range(5)])
    assert (report.written, report.dead) == (5, 0)
    assert seconds == 0.24 + 20 * 20


def test_what_a_stand_in_takes_is_bounded_by_the_attempts_timeout() -> None:
    async def stand_in(error: BaseException) -> None:
        await asyncio.sleep(1e6)

    async def x(n: int) -> None:
        await asyncio.sleep(0.5)
        raise ValueError("no")

    async def batch(n: list[int]) -> None:
        await asyncio.sleep(0.5)
        raise ValueError("no")

    each: tuple[tuple[Any, dict[str, Any]], ...] = ((x, {}), (batch, {"batch": Batch(1)}))
    for handler, settings in each:
        pipeline = Pipeline("stands in")
        pipeline.add_stage("x", handler, timeout=2.0, on_error=degrade(stand_in), **settings)
        report, seconds = run(pipeline, [{"n": 0}])
        assert (report.written, report.dead) == (0, 1)
        assert seconds == 2.0


def test_a_retried_call_has_its_whole_time_again() -> None:
    async def x(n: int, call: Any) -> int:
        await asyncio.sleep(9 if call.attempt == 3 else 20)
        return n

    pipeline = Pipeline("retries")
    pipeline.add_stage("x", x, timeout=10.0, retry=Retry(3, base=0.0, cap=0.0))
    report, seconds = run(pipeline, [{"n": 0}])
    assert (report.written, report.stages["x"].retries) == (1, 2)
    assert seconds == 10.0 + 10.0 + 9.0


def test_a_run_that_is_cancelled_leaves_no_attempt_for_later() -> None:
    """In a loop that goes on: the one that waits for its second attempt is given back, and never called again."""
    calls: list[int] = []

    async def x(n: int) -> None:
        calls.append(n)
        raise ValueError("again")

    async def aborts(n: int) -> None:
        await asyncio.sleep(1)
        raise ValueError("enough")

    pipeline = Pipeline("cancelled")
    pipeline.add_stage("x", x, retry=Retry(9, base=500.0, cap=500.0))
    pipeline.add_stage("aborts", aborts, on_error="abort")

    async def main() -> Any:
        report = await pipeline.run([{"n": 0}, {"n": 1}], [], dead=[], grace=0.001)
        assert now() == 1.001
        assert timers() == []
        done = len(calls)
        await asyncio.sleep(1e6)
        assert len(calls) == done
        return report

    report = run_virtual(main())
    assert (report.exit_code, report.not_done) == (4, 2)
    x_report = report.stages["x"]
    assert (x_report.received, x_report.cancelled) == (2, 2)
