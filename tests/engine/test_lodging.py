"""Items that are finished and have no room below: where they wait, what they hold up, and what is told of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.engine.run import Engine
from stageflow.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def behind_a_slow_stage(workers: int, queue_size: int, begun: list[tuple[float, int]]) -> Pipeline:
    """A stage whose calls take a second, before one that takes ten for each item."""

    async def quick(x: int) -> int:
        begun.append((now(), x))
        await asyncio.sleep(1)
        return x

    async def slow(quick: int) -> int:
        await asyncio.sleep(10)
        return quick

    pipeline = Pipeline("slow below")
    pipeline.add_stage("quick", quick, max_in_flight=workers, queue_size=4)
    pipeline.add_stage("slow", slow, max_in_flight=1, queue_size=queue_size)
    return pipeline


@pytest.mark.parametrize(("workers", "queue_size"), [(1, 1), (3, 1), (3, 2), (5, 4)])
def test_finished_items_take_up_the_places_of_workers(workers: int, queue_size: int) -> None:
    begun: list[tuple[float, int]] = []
    output: list[dict[str, Any]] = []
    pipeline = behind_a_slow_stage(workers, queue_size, begun)
    report = run_virtual(pipeline.run([{"x": number} for number in range(20)], output))
    assert [record["x"] for record in output] == list(range(20))
    # One is in the slow call, as many as fit are in the channel, and as many as there are workers wait for room.
    held = 1 + queue_size + workers
    started = dict.fromkeys(range(held), 0.0) | {x: 1.0 + 10.0 * (x - held + 1) for x in range(held, 20)}
    for time, x in begun:
        assert time == started[x] if x >= held else time <= 1.0 + held / workers
    assert report.seconds == 201.0
    assert report.stages["quick"].peak_in_flight == workers
    assert report.stages["slow"].peak_depth == queue_size
    for stage in report.stages.values():
        assert (stage.received, stage.passed) == (20, 20)
        assert stage.busy + stage.blocked + stage.waiting + stage.starved == pytest.approx(1.0)


def test_time_without_room_is_counted_for_each_item() -> None:
    report = run_virtual(behind_a_slow_stage(1, 1, []).run([{"x": number} for number in range(4)], []))
    # Finished at 1, 2, 3 and 12: the third finds room at 11, when the first is done, and the fourth at 21.
    assert report.seconds == 41.0
    assert report.stages["quick"].blocked == pytest.approx((8 + 9) / 41)
    assert report.stages["quick"].busy == pytest.approx(4 / 41)


def test_a_run_that_is_cancelled_leaves_none_of_them_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Engine] = []
    enter = Engine.__aenter__

    async def remember(self: Engine) -> Engine:
        engines.append(self)
        return await enter(self)

    monkeypatch.setattr(Engine, "__aenter__", remember)

    async def main() -> None:
        task = asyncio.create_task(behind_a_slow_stage(3, 1, []).run([{"x": number} for number in range(20)], []))
        await asyncio.sleep(5)
        (engine,) = engines
        assert engine.snapshot()[0].blocked == 3
        task.cancel()
        await asyncio.wait([task])
        counters = engine.pools["quick"].counters
        assert (counters.blocked, counters.in_flight, counters.passed) == (0, 0, 5)
        assert counters.blocked_seconds == 3 + 3 + 4

    run_virtual(main())


def test_the_end_comes_behind_them() -> None:
    output: list[dict[str, Any]] = []
    report = run_virtual(behind_a_slow_stage(5, 1, []).run([{"x": number} for number in range(7)], output))
    assert [record["x"] for record in output] == list(range(7))
    assert report.seconds == 71.0
