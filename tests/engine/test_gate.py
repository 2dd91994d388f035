"""Leave to start a call: exact times, permits that come back from those that give up, and none that is lost."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from stageflow import RateLimit
from stageflow.engine.gate import Gate, Limiter, limiters_of
from stageflow.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def gate(limit: RateLimit | None = None) -> Gate:
    return Gate(Limiter(limit, now) if limit is not None else None, now)


async def pass_through(own: Gate, times: list[float]) -> None:
    await own.wait()
    times.append(now())


def test_the_burst_goes_at_once_and_the_others_at_the_rate_in_the_order_they_came() -> None:
    async def main() -> list[tuple[int, float]]:
        own, passed = gate(RateLimit(per_second=2, burst=3)), list[tuple[int, float]]()

        async def call(number: int) -> None:
            await own.wait()
            passed.append((number, now()))

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(call(number))
        return passed

    assert run_virtual(main()) == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (5, 1.5)]


def test_without_a_limit_nobody_waits() -> None:
    async def main() -> float:
        own = gate()
        assert not own.shut
        assert await own.wait() == 0.0
        return now()

    assert run_virtual(main()) == 0.0


def test_who_is_cancelled_while_waiting_takes_no_permit_along() -> None:
    """One per second. The second and third of five give up: the others come at 0, 1 and 2 all the same."""

    async def main() -> list[float]:
        own, times = gate(RateLimit(per_second=1, burst=1)), list[float]()
        tasks = [asyncio.create_task(pass_through(own, times)) for _ in range(5)]
        await asyncio.sleep(0.5)
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return times

    assert run_virtual(main()) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("at", [0.0, 0.25, 0.999, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", [None, *range(20)])
def test_after_any_cancellation_as_many_pass_as_the_rate_says(at: float, seed: int | None) -> None:
    """No permit is lost, and none is made: ten more pass in ten seconds, each a second after the one before."""

    async def main() -> None:
        own, times = gate(RateLimit(per_second=1, burst=1)), list[float]()
        given_up = [asyncio.create_task(pass_through(own, times)) for _ in range(3)]
        await asyncio.sleep(at)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        before = len(times)
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(pass_through(own, times))
        assert all(late - early >= 1.0 - 1e-9 for early, late in pairwise(times)), times
        assert times[-1] - at <= 10.0 + 1e-9, times
        assert len(times) == before + 10

    run_virtual(main(), seed=seed)


def test_a_pause_holds_all_back_also_those_on_their_way_and_may_grow_meanwhile() -> None:
    async def main() -> list[float]:
        own, times = gate(RateLimit(per_second=1, burst=1)), list[float]()
        tasks = [asyncio.create_task(pass_through(own, times)) for _ in range(3)]
        await asyncio.sleep(0.5)
        own.pause(5.0)
        assert own.shut
        await asyncio.sleep(1)
        own.pause(1.0)  # shorter: the longer one stands
        await asyncio.sleep(1)
        own.pause(10.0)
        await asyncio.gather(*tasks)
        return times

    first, second, third = run_virtual(main())
    assert first == 0.0
    assert second >= 12.5
    assert third - second >= 1.0 - 1e-9


def test_a_pause_without_a_limit_ends_and_leaves_the_gate_open() -> None:
    async def main() -> None:
        own = gate()
        own.pause(3.0)
        assert own.shut
        await own.wait()
        assert now() == 3.0
        assert not own.shut

    run_virtual(main())


def test_a_pause_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=1, burst=1))
        own.pause(5.0)
        waiting = asyncio.create_task(own.wait())
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await own.wait()
        assert now() == 5.0

    run_virtual(main())


def test_stages_that_name_one_object_share_its_permits() -> None:
    async def main() -> dict[str, list[float]]:
        shared, own = RateLimit(per_second=1, burst=1), RateLimit(per_second=1, burst=1)
        limiters = limiters_of({"a": shared, "b": shared, "c": own, "d": None}, now)
        assert limiters["a"] is limiters["b"]
        assert limiters["a"] is not limiters["c"]
        assert "d" not in limiters
        gates = {name: Gate(limiter, now) for name, limiter in limiters.items()}
        times: dict[str, list[float]] = {name: [] for name in gates}
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c", "a", "b", "c"):
                group.create_task(pass_through(gates[name], times[name]))
        return times

    assert run_virtual(main()) == {"a": [0.0, 2.0], "b": [1.0, 3.0], "c": [0.0, 1.0]}


def test_a_pause_of_one_stage_is_not_sat_out_with_the_turn_of_another() -> None:
    async def main() -> dict[str, list[float]]:
        shared = Limiter(RateLimit(per_second=1, burst=1), now)
        gates = {"paused": Gate(shared, now), "free": Gate(shared, now)}
        times: dict[str, list[float]] = {"paused": [], "free": []}
        await gates["free"].wait()  # the burst
        tasks = [asyncio.create_task(pass_through(gates[name], times[name])) for name in ("paused", "free", "free")]
        await asyncio.sleep(0.5)
        gates["paused"].pause(60.0)
        await asyncio.gather(*tasks)
        return times

    times = run_virtual(main())
    assert times["free"][-1] <= 4.0
    assert times["paused"][0] >= 60.5


def test_tokens_are_reserved_settled_and_given_back() -> None:
    """600 a minute, ten a second. What a call used beyond its estimate is waited for by the next ones."""

    async def main() -> list[float]:
        own = gate(RateLimit(tokens_per_minute=600))
        times = []
        for used in (10, 10, 40, 10):
            reserved = await own.wait()
            times.append(now())
            own.settle(reserved, used)
        return times

    times = run_virtual(main())
    assert times == sorted(times)
    # 10 + 10 + 40 have been used before the last call: at ten a second, with ten there at the start, that takes 5 s.
    assert times[3] >= 5.0 - 1e-6


def test_a_barred_gate_lets_everybody_by_to_be_told_so() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=0.01, burst=1))
        await own.wait()
        own.bar()
        assert own.barred
        assert own.shut
        await own.wait()
        assert now() == 0.0

    run_virtual(main())
