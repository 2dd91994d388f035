"""The tasks of a run: waited for together, but for those that were left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, cast

import pytest

from stageflow.engine.crew import Crew
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


async def stubborn(seconds: float = 1e6) -> None:
    """Swallow every cancellation until it is time."""
    end = now() + seconds
    while now() < end:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(end - now())


def crew(broken: list[str] | None = None) -> Crew:
    return Crew(lambda: broken.append("broken") if broken is not None else None)


def test_join_waits_for_all_also_for_those_started_meanwhile() -> None:
    async def main() -> None:
        own = crew()
        ended: list[str] = []

        async def work(name: str, seconds: float, then: bool = False) -> None:
            await asyncio.sleep(seconds)
            ended.append(name)
            if then:
                own.start(work("child", 5), "child")

        own.start(work("parent", 1, then=True), "parent")
        own.start(work("other", 2), "other")
        await own.join()
        assert (ended, now()) == (["parent", "other", "child"], 6.0)
        await own.join()

    run_virtual(main())


def test_one_that_raises_ends_the_others_and_is_told() -> None:
    async def main() -> None:
        said: list[str] = []
        own = crew(said)

        async def fails() -> None:
            await asyncio.sleep(1)
            raise ValueError("mine")

        other = own.start(asyncio.sleep(1000), "other")
        own.start(fails(), "fails")
        with pytest.raises(BaseExceptionGroup) as raised:
            await own.join()
        assert [repr(error) for error in raised.value.exceptions] == ["ValueError('mine')"]
        assert other.cancelled()
        assert (said, now()) == (["broken"], 1.0)

    run_virtual(main())


def test_an_abandoned_one_is_not_waited_for_and_its_end_is_noted() -> None:
    async def main() -> None:
        own = crew()
        left = own.start(stubborn(10), "left")
        own.start(asyncio.sleep(2), "other")
        await asyncio.sleep(1)
        own.abandon(left)
        await own.join()
        assert now() == 2.0
        assert own.abandoned == {left}
        await left
        await asyncio.sleep(0)
        assert own.abandoned == set()

    run_virtual(main())


def test_after_a_cancellation_those_that_stay_are_abandoned_at_the_end_of_the_grace() -> None:
    async def main() -> None:
        own = crew()
        overdue: list[float] = []
        own.overdue = lambda: overdue.append(now())
        left = own.start(stubborn(20), "left")
        own.start(asyncio.sleep(1000), "goes")
        own.start(stubborn(3), "goes later")
        await asyncio.sleep(1)
        own.cancel()
        own.cancel()
        await own.join()
        assert now() == 1.0 + SWALLOW_GRACE
        assert overdue == [1.0 + SWALLOW_GRACE]
        assert own.abandoned == {left}
        await left

    run_virtual(main())


def test_where_all_go_nobody_waits_for_the_grace_and_no_timer_is_left() -> None:
    async def main() -> None:
        own = crew()
        overdue: list[float] = []
        own.overdue = lambda: overdue.append(now())
        own.start(asyncio.sleep(1000), "goes")
        await asyncio.sleep(1)
        own.cancel()
        await own.join()
        assert now() == 1.0
        await asyncio.sleep(100)
        assert overdue == []

    run_virtual(main())


def test_a_cancelled_join_cancels_them_and_waits_all_the_same() -> None:
    async def main() -> None:
        own = crew()
        own.start(stubborn(3), "slow to go")
        waiting = asyncio.create_task(own.join())
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert now() == 3.0
        assert own.cancelled

    run_virtual(main())


def test_what_is_disowned_is_no_business_of_the_loop() -> None:
    """asyncio.run would cancel it and wait for it, for ever; here the end of the loop finds nothing."""

    async def main() -> asyncio.Task[None]:
        own = crew()
        left = own.start(stubborn(), "left")
        await asyncio.sleep(1)
        own.abandon(left)
        own.disown()
        assert left not in asyncio.all_tasks()
        return left

    left = run_virtual(main())
    assert not left.done()
    cast("Coroutine[Any, Any, None]", left.get_coro()).close()


@pytest.mark.real_clock
def test_a_real_loop_closes_over_it() -> None:
    async def main() -> asyncio.Task[None]:
        own = crew()
        left = own.start(stubborn(), "left")
        await asyncio.sleep(0)
        own.abandon(left)
        own.disown()
        return left

    left = asyncio.run(main())
    assert not left.done()
    cast("Coroutine[Any, Any, None]", left.get_coro()).close()
