"""Money at the gate: who waits for it, who is woken, and what it does to permits."""

from __future__ import annotations

import asyncio

from stageflow import Pipeline, Price, RateLimit, RunStopped
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter
from stageflow.engine.spending import Purse, Till
from stageflow.policies.budget import Budget
from stageflow.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def till(total: int, stopped: list[RunStopped] | None = None) -> Till:
    pipeline = Pipeline("paid", prices={"m": Price(input=1, output=1)})
    pipeline.add_stage("answer", lambda x: x)
    stop = stopped.append if stopped is not None else lambda error: None
    return Till(pipeline.plan(), budget=Budget(total), stop=stop, warn=lambda message: None)


def purse_of(own: Till, most: int) -> Purse:
    purse = own.purses["answer"] = Purse("answer", own, most)
    return purse


async def pass_through(gate: Gate, times: list[float]) -> None:
    await gate.wait()
    times.append(now())


def test_who_finds_the_money_gone_when_its_turn_comes_takes_no_permit() -> None:
    """One permit a second. Two queue for it while there is money for one: the second permit is another stage's."""

    async def main() -> tuple[list[float], list[float]]:
        limiter = Limiter(RateLimit(per_second=1, burst=1), now)
        purse = purse_of(till(10), 10)
        paid, free = Gate(limiter, now, purse), Gate(limiter, now)
        dear, cheap = list[float](), list[float]()
        await free.wait()
        waiting = [asyncio.create_task(pass_through(paid, dear)) for _ in range(2)]
        await asyncio.sleep(0)
        await pass_through(free, cheap)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return dear, cheap

    assert run_virtual(main()) == ([1.0], [2.0])


def test_those_who_wait_for_money_come_in_the_order_of_coming_as_it_comes_back() -> None:
    async def main() -> list[tuple[int, float]]:
        own = till(20)
        purse = purse_of(own, 10)
        gate, passed = Gate(None, now, purse), list[tuple[int, float]]()

        async def call(number: int) -> None:
            await gate.wait()
            passed.append((number, now()))
            await asyncio.sleep(1.0)
            own.add(purse.most, 0, 0)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(call(number))
        return passed

    assert run_virtual(main()) == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_what_was_given_to_one_that_is_cancelled_is_for_the_next() -> None:
    async def main() -> list[float]:
        own = till(10)
        purse = purse_of(own, 10)
        gate, times = Gate(None, now, purse), list[float]()
        await gate.wait()
        first, second = (asyncio.create_task(pass_through(gate, times)) for _ in range(2))
        await asyncio.sleep(1.0)
        purse.give_back()
        first.cancel()  # in the very step in which it was woken
        await asyncio.gather(first, return_exceptions=True)
        await second
        return times

    assert run_virtual(main()) == [1.0]


def test_when_no_money_can_come_back_the_run_stops_and_nobody_waits() -> None:
    async def main() -> tuple[list[str], bool]:
        stopped: list[RunStopped] = []
        own = till(25 * 10**10, stopped)
        purse = purse_of(own, 10**11)
        gate = Gate(None, now, purse)
        purse.bar = gate.bar
        await gate.wait()
        await gate.wait()
        waiting = asyncio.create_task(gate.wait())
        await asyncio.sleep(1.0)
        assert not stopped  # both may still give back what they did not use
        own.add(purse.most, purse.most, 0)
        own.add(purse.most, purse.most, 0)
        await waiting
        return [str(error) for error in stopped], gate.barred

    said = 'the budget of 0.25 is spent but for 0.05, and a call of "answer" may cost 0.10'
    assert run_virtual(main()) == ([said], True)
