"""Turns: many items at once where calls do not wait, and nothing that anybody could tell them by but the time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from typing import Any

import pytest

from stageflow import Pipeline, RateLimit, done, drop
from stageflow.channel import END, Channel
from stageflow.engine import garbage
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter
from stageflow.engine.turn import TURN_SECONDS, Pace
from stageflow.item import Item
from stageflow.testing import run_virtual

# How many


def test_turns_grow_while_calls_do_not_wait() -> None:
    pace = Pace()
    sizes = []
    for _ in range(5):
        sizes.append(pace.size)
        pace.went_through(pace.size, 0.0)
    assert sizes == [1, 2, 4, 8, 16]
    pace.went_through(3, 0.0)  # there were no more
    assert pace.size == 32


def test_turns_are_as_long_as_their_time_allows() -> None:
    pace = Pace()
    pace.went_through(1, 0.0)
    pace.went_through(2, 0.0)
    pace.went_through(4, 4 * TURN_SECONDS)
    assert pace.size == 1
    pace.went_through(1, 50 * TURN_SECONDS)
    assert pace.size == 1
    pace.went_through(1, 0.0)
    pace.broke_off(1, 10 * TURN_SECONDS)
    assert pace.size == 1


def test_calls_that_wait_are_made_alone_and_turns_are_tried_more_and_more_seldom() -> None:
    pace, alone = Pace(), []
    for _ in range(8):
        pace.broke_off(0)
        alone.append(pace.alone)
        pace.alone = 0
    assert (alone, pace.size) == ([2, 4, 8, 16, 32, 64, 64, 64], 1)
    pace.went_through(1, 0.0)
    pace.broke_off(0)
    assert (pace.alone, pace.size) == (0, 1)


def test_now_and_then_a_call_may_wait() -> None:
    pace = Pace()
    for _ in range(6):
        pace.went_through(pace.size, 0.0)
    pace.broke_off(5)
    assert pace.size == 32


# The channel


def items(*numbers: int) -> list[Item]:
    return [Item(number, {}, 1) for number in numbers]


def test_what_is_not_taken_stays_where_it_is() -> None:
    async def main() -> None:
        channel = Channel(4, 1)
        channel.put_all(items(1, 2, 3))
        assert [item.index for item in channel.first(channel.reach(10))] == [1, 2, 3]
        assert [item.index for item in channel.first(2)] == [1, 2]
        assert [item.index for item in channel.take(1)] == [1]
        channel.put_all(items(4))
        assert [item.index for item in channel.take(3)] == [2, 3, 4]
        assert (channel.sent, channel.peak_depth, list(channel.items)) == (4, 3, [])

    run_virtual(main())


def test_nothing_is_taken_beyond_the_end_nor_before_what_has_come_back() -> None:
    async def main() -> None:
        channel = Channel(4, 1)
        channel.put_all(items(1, 2))
        await channel.close()
        assert (channel.reach(1), channel.reach(10)) == (1, 2)
        channel.requeue(items(3)[0])
        assert channel.reach(10) == 0
        assert channel.try_receive() is not None
        channel.take(2)
        assert (channel.reach(10), list(channel.items)) == (0, [END])

    run_virtual(main())


def test_who_waits_is_let_in_up_to_the_bound() -> None:
    async def main() -> None:
        channel = Channel(3, 1)
        channel.put_all(items(1, 2, 3))
        async with asyncio.TaskGroup() as group:
            for item in items(4, 5, 6):
                group.create_task(channel.send(item))
            await asyncio.sleep(1)
            channel.take(1)
            channel.refill()
            assert [item.index for item in channel.items if item is not END] == [2, 3, 4]
            channel.take(3)
            channel.refill()
        assert [item.index for item in channel.items if item is not END] == [5, 6]

    run_virtual(main())


@pytest.mark.parametrize(("queue_size", "room"), [(1, 1), (3, 1), (8, 2), (64, 16)])
def test_who_feeds_is_woken_for_a_quarter_of_the_channel(queue_size: int, room: int) -> None:
    async def main() -> None:
        channel = Channel(queue_size, 1)
        channel.put_all(items(*range(queue_size)))
        waiting = asyncio.create_task(channel.wait_for_room())
        for taken in range(1, room + 1):
            await asyncio.sleep(1)
            assert not waiting.done(), taken
            channel.try_receive()
        await asyncio.sleep(1)
        assert waiting.done()

    run_virtual(main())


# Permits


def test_permits_that_are_there_are_taken_at_once_and_nobody_is_overtaken() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        limiter = Limiter(RateLimit(per_second=1, burst=3), clock)
        gate = Gate(limiter, clock)
        assert gate.open_for == 3
        gate.passed(2)
        assert gate.pass_at_once()
        assert not gate.pass_at_once()
        first, second = (asyncio.create_task(gate.wait()) for _ in range(2))
        await asyncio.sleep(1.5)
        assert (first.done(), second.done(), gate.open_for) == (True, False, 0)
        await second
        assert clock() == 2.0
        gate.pause(5)
        await asyncio.sleep(4)
        assert gate.open_for == 0
        await asyncio.sleep(1)
        assert gate.open_for == 3

    run_virtual(main())


def test_a_permit_that_is_taken_at_once_counts_as_used() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        limiter = Limiter(RateLimit(per_second=4, burst=2), clock)
        gate = Gate(limiter, clock)
        assert [gate.pass_at_once() for _ in range(3)] == [True, True, False]
        await asyncio.sleep(1)
        assert limiter.take_use() == (0.5, False)

    run_virtual(main())


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_limit_holds_for_calls_made_alone(seconds: float) -> None:
    times: list[float] = []

    async def ask(x: int) -> int:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
        return x

    pipeline = Pipeline("limited")
    pipeline.add_stage("s", ask, rate_limit=RateLimit(per_second=2, burst=4), max_in_flight=8)
    run_virtual(pipeline.run([{"x": number} for number in range(10)], []))
    assert times == [0.0] * 4 + [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_limit_holds_for_calls_that_do_not_wait() -> None:
    times: list[float] = []

    async def notes(x: int) -> int:
        times.append(asyncio.get_running_loop().time())
        return x

    pipeline = Pipeline("limited")
    pipeline.add_stage("s", notes, rate_limit=RateLimit(per_second=2, burst=4))
    run_virtual(pipeline.run([{"x": number} for number in range(10)], []))
    assert times == [0.0] * 4 + [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


# Handlers


@pytest.mark.parametrize("gives", [True, False])
def test_a_call_begun_in_a_turn_may_clean_up_after_its_timeout(gives: bool) -> None:
    async def cleans_up(x: int) -> int:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            await asyncio.sleep(1)
            if not gives:
                raise
        return x

    pipeline = Pipeline("cleans up")
    pipeline.add_stage("s", cleans_up, timeout=5.0)
    report, output, dead = run(pipeline, 1)
    assert report.seconds == 7.0
    assert ([record["s"] for record in output], len(dead)) == (([0], 0) if gives else ([], 1))


def run(pipeline: Pipeline, count: int, **options: Any) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    output: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    report = run_virtual(pipeline.run([{"x": number} for number in range(count)], output, dead=dead, **options))
    for stage in report.stages.values():
        assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled
    return report, output, dead


@pytest.mark.parametrize("every", [1, 2, 7, 50])
def test_one_call_that_waits_holds_up_none_beside_it(every: int) -> None:
    ended: dict[int, float] = {}

    async def some_wait(x: int) -> int:
        if x % every == 0:
            await asyncio.sleep(10)
        ended[x] = asyncio.get_running_loop().time()
        return x

    pipeline = Pipeline("some wait")
    pipeline.add_stage("s", some_wait, max_in_flight=200, queue_size=200)
    report, output, _ = run(pipeline, 200)
    assert ended == {x: 10.0 if x % every == 0 else 0.0 for x in range(200)}
    assert (report.seconds, len(output), report.stages["s"].peak_in_flight <= 200) == (10.0, 200, True)


def test_ways_out_in_the_middle_of_a_turn() -> None:
    async def ways(x: int) -> Any:
        match x % 5:
            case 1:
                return drop("enough")
            case 2:
                raise ValueError(x)
            case 3:
                return done("early")
            case 4:
                await asyncio.sleep(1)
        return x

    async def after(s: int) -> int:
        return s

    pipeline = Pipeline("ways")
    pipeline.add_stage("s", ways, max_in_flight=3)
    pipeline.add_stage("t", after)
    report, output, dead = run(pipeline, 100)
    stage = report.stages["s"]
    assert (stage.passed, stage.dropped, stage.dead) == (60, 20, 20)
    assert report.stages["t"].received == 40
    assert sorted(letter["index"] for letter in dead) == list(range(2, 100, 5))
    assert sorted(record["x"] for record in output if record["s"] == "early") == list(range(3, 100, 5))
    assert all("turn of" not in letter["error"]["trace"] for letter in dead)


def test_an_item_that_failed_beside_is_not_begun_in_a_turn() -> None:
    begun: list[int] = []

    async def top(x: int) -> int:
        return x

    async def fails(top: int) -> int:
        if top % 2:
            raise ValueError("odd")
        return top

    async def beside(top: int) -> int:
        begun.append(top)
        return top

    pipeline = Pipeline("branches")
    pipeline.add_stage("top", top)
    pipeline.add_stage("fails", fails)
    pipeline.add_stage("beside", beside)
    pipeline.add_stage("join", lambda fails, beside: fails + beside, run="inline")
    report, output, dead = run(pipeline, 40)
    assert (len(output), len(dead)) == (20, 20)
    assert report.stages["beside"].cancelled == 40 - len(begun)


def test_a_run_that_is_cancelled_in_the_middle_of_a_turn_keeps_what_was_finished() -> None:
    async def hangs_at_five(x: int) -> int:
        if x >= 5:
            await asyncio.sleep(1000)
        return x

    pipeline = Pipeline("hangs")
    pipeline.add_stage("s", hangs_at_five, max_in_flight=2, queue_size=10)
    pipeline.add_stage("t", lambda s: s, run="inline")
    output: list[dict[str, Any]] = []

    async def main() -> None:
        task = asyncio.create_task(pipeline.run([{"x": number} for number in range(20)], output))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main())
    assert [record["x"] for record in output] == [0, 1, 2, 3, 4]


def test_a_handler_finds_its_task_its_timeouts_and_its_context() -> None:
    own: contextvars.ContextVar[int] = contextvars.ContextVar("own")
    tasks: set[str] = set()

    async def looks(x: int) -> bool:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task.get_name())
        own.set(x)
        try:
            async with asyncio.timeout(1):
                if x % 3 == 0:
                    await asyncio.sleep(5)
        except TimeoutError:
            return task is asyncio.current_task() and own.get() >= x
        return own.get() == x

    pipeline = Pipeline("looks")
    pipeline.add_stage("s", looks, max_in_flight=4)
    _, output, _ = run(pipeline, 60)
    assert all(record["s"] for record in output)
    assert all(name.startswith("s worker") for name in tasks)


def test_a_call_that_is_over_its_timeout_is_the_only_one_that_fails() -> None:
    async def slow_at_seven(x: int) -> int:
        if x == 7:
            await asyncio.sleep(100)
        return x

    pipeline = Pipeline("slow")
    pipeline.add_stage("s", slow_at_seven, timeout=2.0, max_in_flight=1)
    report, output, dead = run(pipeline, 20)
    assert ([letter["index"] for letter in dead], len(output), report.seconds) == ([7], 19, 2.0)


@pytest.mark.parametrize(("first_wait", "most"), [(False, 4), (True, 20)])
def test_handlers_that_hold_the_loop_let_others_run_in_between(first_wait: bool, most: int) -> None:
    """On the real clock: each call holds the loop, and the next stage gets its turn long before all have."""
    at: list[tuple[str, int]] = []

    async def holds(x: int) -> int:
        at.append(("holds", x))
        if x >= 20:
            time.sleep(0.005)  # noqa: ASYNC251 - that is the point
        elif first_wait:
            await asyncio.sleep(0)
        return x

    async def after(s: int) -> int:
        at.append(("after", s))
        return s

    pipeline = Pipeline("holds")
    pipeline.add_stage("s", holds, queue_size=100)
    pipeline.add_stage("t", after, queue_size=100)
    asyncio.run(pipeline.run([{"x": number} for number in range(80)], []))
    behind = [sum(who == "holds" and x > y for who, x in at[: at.index(("after", y))]) for y in range(64, 80)]
    assert max(behind) <= most


# The collector


def test_the_collector_is_as_before_when_the_last_run_has_ended() -> None:
    before = gc.get_threshold()
    garbage.quieten()
    quiet = gc.get_threshold()
    garbage.quieten()
    garbage.restore()
    assert gc.get_threshold() == quiet != before
    garbage.restore()
    assert gc.get_threshold() == before


def test_a_collector_that_is_off_stays_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        garbage.quieten()
        assert gc.get_threshold()[0] == 0
        garbage.restore()
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_long_calls_begin_within_few_turns_of_the_loop() -> None:
    """Whoever takes an item calls as many others as are busy, so that their number doubles."""
    begun: list[float] = []
    counting: list[asyncio.Task[int]] = []

    async def turns_until_all_have_begun() -> int:
        turns = 0
        while len(begun) < 60:
            turns += 1
            await asyncio.sleep(0)
        return turns

    async def long(x: int) -> int:
        begun.append(asyncio.get_running_loop().time())
        if not counting:
            counting.append(asyncio.create_task(turns_until_all_have_begun()))
        await asyncio.sleep(5)
        return x

    pipeline = Pipeline("long")
    pipeline.add_stage("s", long, max_in_flight=60, queue_size=64)
    run(pipeline, 120)
    assert begun == [0.0] * 60 + [5.0] * 60
    assert counting[0].result() <= 15


def test_brief_calls_start_no_more_workers_than_they_keep_busy() -> None:
    async def brief(x: int) -> int:
        await asyncio.sleep(0)
        return x

    pipeline = Pipeline("brief")
    pipeline.add_stage("s", brief, max_in_flight=64, queue_size=8)
    report, output, _ = run(pipeline, 200)
    assert [record["x"] for record in output] == list(range(200))
    assert report.stages["s"].peak_in_flight <= 10


@pytest.mark.parametrize("every", [2, 3, 10])
@pytest.mark.parametrize("workers", [1, 4])
def test_calls_of_both_kinds_keep_to_limits_timeouts_and_order(every: int, workers: int) -> None:
    """Some suspend for a turn of the loop, one is over its time, and one worker keeps the order they came in."""
    in_progress, most = 0, 0

    async def mixed(x: int) -> int:
        nonlocal in_progress, most
        in_progress += 1
        most = max(most, in_progress)
        try:
            if x == 50:
                await asyncio.sleep(100)
            elif x % every == 0:
                await asyncio.sleep(0)
        finally:
            in_progress -= 1
        return x

    async def after(s: int) -> int:
        if s % 3 == 0:
            await asyncio.sleep(0)
        return s

    pipeline = Pipeline("mixed")
    pipeline.add_stage("s", mixed, max_in_flight=workers, queue_size=16, timeout=2.0)
    pipeline.add_stage("t", after, max_in_flight=workers, queue_size=4)
    report, output, dead = run(pipeline, 200)
    found = [record["x"] for record in output]
    assert sorted(found) == [x for x in range(200) if x != 50]
    assert workers > 1 or found == sorted(found)
    assert ([letter["index"] for letter in dead], report.seconds) == ([50], 2.0)
    assert most <= workers
    for stage in report.stages.values():
        assert stage.peak_in_flight <= workers
        assert stage.peak_depth <= 16
