"""Admission: never more than the limit, first come first served, and no wake-up is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from stageflow.engine.credits import Credits
from stageflow.testing import Deadlock, run_virtual


def test_credits_are_given_up_to_the_limit() -> None:
    async def main() -> None:
        admission = Credits(2)
        assert (admission.try_take(), admission.try_take(), admission.try_take()) == (True, True, False)
        assert (admission.taken, admission.peak) == (2, 2)
        admission.give(2)
        assert (admission.taken, admission.peak) == (0, 2)
        assert await admission.take()

    run_virtual(main())


def test_who_comes_first_is_served_first_and_nobody_overtakes() -> None:
    async def main() -> list[int]:
        admission, order = Credits(1), list[int]()

        async def ask(number: int) -> None:
            assert await admission.take()
            order.append(number)

        assert admission.try_take()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(number))
            await asyncio.sleep(1)
            for _ in range(4):
                assert not admission.try_take()
                admission.give()
                await asyncio.sleep(1)
        return order

    assert run_virtual(main()) == [0, 1, 2, 3]


def test_a_wait_ends_when_a_credit_is_given_back() -> None:
    async def main() -> None:
        loop, admission = asyncio.get_running_loop(), Credits(1)
        assert admission.try_take()
        loop.call_later(5, admission.give)
        assert await admission.take()
        assert (loop.time(), admission.taken) == (5.0, 1)

    run_virtual(main())


def test_several_given_at_once_wake_several() -> None:
    async def main() -> None:
        admission = Credits(3)
        assert all(admission.try_take() for _ in range(3))
        waiting = [asyncio.create_task(admission.take()) for _ in range(4)]
        await asyncio.sleep(1)
        admission.give(3)
        await asyncio.sleep(1)
        assert [task.done() for task in waiting] == [True, True, True, False]
        admission.give()
        assert await waiting[-1]

    run_virtual(main())


def test_the_end_of_admission_wakes_everybody_with_none() -> None:
    async def main() -> None:
        admission = Credits(1)
        assert admission.try_take()
        waiting = [asyncio.create_task(admission.take()) for _ in range(3)]
        await asyncio.sleep(1)
        admission.close()
        assert await asyncio.gather(*waiting) == [False, False, False]
        admission.give()
        assert not admission.try_take()
        assert not await admission.take()
        assert admission.taken == 0

    run_virtual(main())


def test_a_cancelled_wait_holds_none_and_passes_its_wake_up_on() -> None:
    async def main() -> None:
        admission = Credits(1)
        assert admission.try_take()
        first, second = (asyncio.create_task(admission.take()) for _ in range(2))
        await asyncio.sleep(0)
        admission.give()
        first.cancel()
        assert await second
        assert (first.cancelled(), admission.taken) == (True, 1)

    run_virtual(main())


def test_more_given_back_than_taken_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        Credits(1).give()


def asking(seed: int) -> Coroutine[Any, Any, int]:
    draw = random.Random(seed)

    async def main() -> int:
        admission, admitted = Credits(draw.randint(1, 3)), 0

        async def record(number: int) -> None:
            nonlocal admitted
            await asyncio.sleep(draw.choice((0.0, 1.0)))
            if not admission.try_take():
                assert await admission.take()
            assert admission.taken <= admission.limit
            admitted += 1
            try:
                await asyncio.sleep(draw.choice((0.0, 1.0, 2.0)))
            finally:
                admission.give()

        async def impatient() -> None:
            task = asyncio.create_task(record(-1))
            await asyncio.sleep(draw.choice((0.0, 1.0, 2.0)))
            task.cancel()
            await asyncio.wait([task])

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(record(number))
                if draw.random() < 0.5:
                    group.create_task(impatient())
        assert admission.taken == 0
        assert admission.peak <= admission.limit
        return admitted

    return main()


def test_everybody_is_served_whatever_the_schedule() -> None:
    for seed in range(300):
        assert run_virtual(asking(seed), seed=seed) >= 10


def every(seeds: range) -> None:
    for seed in seeds:
        run_virtual(asking(seed), seed=seed)


def test_a_lost_wake_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail at all."""
    monkeypatch.setattr(Credits, "_hand_over", lambda self, credit: False)
    with pytest.raises(Deadlock):
        every(range(50))
