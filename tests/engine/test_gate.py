"""Leave to start a call: exact times, permits that come back from those that give up, and none that is lost."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stageflow import RateLimit
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter, limiters_of
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


# Shares of a limit


async def change(limiter: Limiter, *steps: tuple[float, float]) -> None:
    for at, share in steps:
        await asyncio.sleep(at - now())
        limiter.set_share(share)


def starts_under(limit: RateLimit, calls: int, *steps: tuple[float, float], seed: int | None = None) -> list[float]:
    """When so many calls start that all come at 0, where the share changes at these times."""

    async def main() -> list[float]:
        own, times = gate(limit), list[float]()
        assert own.limiter is not None
        own.limiter.set_share(steps[0][1])
        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(pass_through(own, times))
            group.create_task(change(own.limiter, *steps[1:]))
        return times

    return run_virtual(main(), seed=seed)


def test_a_share_before_the_first_call_is_of_the_burst_too() -> None:
    limit = RateLimit(per_second=8)
    assert starts_under(limit, 4, (0, 0.25)) == [0.0, 0.0, 0.5, 1.0]
    assert starts_under(limit, 3, (0, 0.05)) == [0.0, 2.5, 5.0]
    assert starts_under(limit, 2, (0, 0.0), (1, 0.25)) == [1.5, 2.0], "with no share there is no burst"


def test_who_waits_when_the_share_changes_does_not_sit_out_the_old_time() -> None:
    limit = RateLimit(per_second=1, burst=1)
    # At 0.1 a second the second call would start at 10. At 5 half of its permit is there; the rest takes 0.5 s.
    assert starts_under(limit, 3, (0, 0.1), (5, 1.0)) == [0.0, 5.5, 6.5]
    assert starts_under(limit, 3, (0, 1.0), (0.5, 0.1)) == pytest.approx([0.0, 5.5, 15.5])


def test_without_a_share_nobody_starts_and_what_had_begun_goes_on_after_it() -> None:
    limit = RateLimit(per_second=1, burst=1)
    assert starts_under(limit, 3, (0, 1.0), (0.75, 0.0), (100, 1.0), (100.5, 0.0), (200, 1.0)) == [0.0, 100.25, 200.75]


def test_a_turn_that_ends_just_before_the_permit_is_there_is_not_lost() -> None:
    """A call every 60 s, and turns of 59 s: without what is kept none would ever start."""
    limit = RateLimit(per_minute=1)
    turns = [(at, share) for turn in range(4) for at, share in ((turn * 100, 1.0), (turn * 100 + 59, 0.0))]
    assert starts_under(limit, 4, *turns, (400, 1.0)) == pytest.approx([0.0, 101.0, 202.0, 303.0])


@pytest.mark.parametrize("seed", [None, *range(20)])
def test_a_permit_that_is_due_when_the_share_goes_is_not_used(seed: int | None) -> None:
    async def main() -> list[float]:
        own, times = gate(RateLimit(per_second=1, burst=1)), list[float]()
        assert own.limiter is not None
        changes = asyncio.create_task(asyncio.sleep(1.0))
        tasks = [asyncio.create_task(pass_through(own, times)) for _ in range(2)]
        await changes
        own.limiter.set_share(0.0)
        before = len(times)
        await asyncio.sleep(9.0)
        assert len(times) == before, "a call started without a share"
        own.limiter.set_share(1.0)
        await asyncio.gather(*tasks)
        return times

    assert run_virtual(main(), seed=seed) in ([0.0, 1.0], [0.0, 10.0])


def test_without_a_share_a_permit_that_comes_back_is_not_used_either() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=1, burst=1))
        assert own.limiter is not None
        reserved = await own.wait()
        waiting = asyncio.create_task(own.wait())
        await asyncio.sleep(0.5)
        own.limiter.set_share(0.0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        own.give_back(reserved)
        assert own.open_for == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await own.wait()
        own.limiter.set_share(1.0)
        assert own.open_for == 1

    run_virtual(main())


def test_where_nobody_waits_what_is_there_is_given_up_with_the_share() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=4))
        assert own.limiter is not None
        assert own.open_for == 4
        own.limiter.set_share(0.0)
        assert own.open_for == 0
        assert not own.pass_at_once()
        await asyncio.sleep(100)
        own.limiter.set_share(1.0)
        assert own.open_for == 0
        await asyncio.sleep(0.5)
        assert own.open_for == 2

    run_virtual(main())


@pytest.mark.parametrize(
    "limit",
    [RateLimit(per_second=1), RateLimit(tokens_per_minute=60), RateLimit(per_second=1, tokens_per_minute=60)],
    ids=repr,
)
def test_who_gives_up_without_a_share_holds_nothing(limit: RateLimit) -> None:
    async def main() -> list[float]:
        own, times = gate(limit), list[float]()
        assert own.limiter is not None
        await own.wait()
        tasks = [asyncio.create_task(pass_through(own, times)) for _ in range(5)]
        await asyncio.sleep(0.5)
        own.limiter.set_share(0.0)
        await asyncio.sleep(10)
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        assert not times
        own.limiter.set_share(1.0)
        await asyncio.gather(*tasks[3:])
        assert own.limiter.waiting == 0
        return times

    assert run_virtual(main()) == pytest.approx([11.0, 12.0])


def test_tokens_are_shared_as_calls_are() -> None:
    """600 a minute, of which each call takes 10. 5 are there at half the share; what the first takes more is owed."""

    async def main() -> list[float]:
        own, times = gate(RateLimit(tokens_per_minute=600)), list[float]()
        assert own.limiter is not None
        own.limiter.set_share(0.5)
        changes = asyncio.create_task(change(own.limiter, (1.0, 0.0), (10.0, 1.0)))
        for _ in range(3):
            reserved = await own.wait()
            times.append(now())
            own.settle(reserved, 10)
        await changes
        return times

    # 5 are owed at 0 and 0 at 1, where 10 are to come by 1 a tenth from 10 on.
    assert run_virtual(main()) == pytest.approx([0.0, 11.0, 12.0])


def test_what_was_used_since_last_asked_and_whether_calls_waited() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=4, tokens_per_minute=600))
        limiter = own.limiter
        assert limiter is not None
        assert limiter.take_use() == (0.0, False)
        for _ in range(2):
            own.settle(await own.wait(), 2)
        await asyncio.sleep(10)
        # Two calls of the 40 that were allowed, and 4 tokens of 100. The second sat out the tokens of the first guess.
        assert limiter.take_use() == (pytest.approx(2 / 40), False)
        own.settle(await own.wait(), 50)
        await asyncio.sleep(10)
        assert limiter.take_use() == (pytest.approx(50 / 100), False)
        await asyncio.sleep(10)
        assert limiter.take_use() == (0.0, False)
        limiter.set_share(0.0)
        waiting = asyncio.create_task(own.wait())
        await asyncio.sleep(1)
        assert limiter.take_use() == (0.0, True)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(1)
        assert limiter.take_use() == (0.0, False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await own.wait()
        assert limiter.take_use() == (0.0, True), "the one that gave up had waited since"

    run_virtual(main())


def test_calls_that_start_at_once_are_used_and_those_given_back_are_not() -> None:
    async def main() -> None:
        own = gate(RateLimit(per_second=4))
        assert own.limiter is not None
        own.passed(2)
        own.give_back(await own.wait())
        own.limiter.set_share(0.5)
        await asyncio.sleep(1)
        assert own.limiter.take_use() == (0.5, False)

    run_virtual(main())


@given(
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])), max_size=12),
    st.lists(st.tuples(st.floats(0, 12), st.floats(0, 30)), max_size=20),
    st.sampled_from([RateLimit(per_second=5), RateLimit(per_second=2, burst=1), RateLimit(per_minute=12)]),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_whatever_the_shares_no_more_start_than_they_allow(
    steps: list[tuple[float, float]], calls: list[tuple[float, float]], limit: RateLimit, seed: int
) -> None:
    """Over any time: the sum of share x rate x time, and one burst. Calls come and give up at any time."""

    async def main() -> tuple[list[float], list[tuple[float, float]]]:
        own, times, shares = gate(limit), list[float](), [(0.0, 1.0)]
        assert own.limiter is not None

        async def call(comes: float, patience: float) -> None:
            await asyncio.sleep(comes)
            try:
                async with asyncio.timeout(patience):
                    await own.wait()
            except TimeoutError:
                return
            times.append(now())

        tasks = [asyncio.create_task(call(*one)) for one in calls]
        for seconds, share in steps:
            await asyncio.sleep(seconds)
            own.limiter.set_share(share)
            shares.append((now(), share))
        await asyncio.gather(*tasks)
        assert own.limiter.waiting == 0
        return sorted(times), shares

    times, shares = run_virtual(main(), seed=seed)
    rate = limit.rate_per_second or 0.0

    def flowed(until: float) -> float:
        ends = [at for at, _ in shares[1:]] + [float("inf")]
        return sum(rate * share * max(0.0, min(end, until) - at) for (at, share), end in zip(shares, ends, strict=True))

    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = flowed(times[last]) - flowed(times[first]) + limit.burst_calls
            assert last - first + 1 <= allowed + 1e-6, (times, shares)
    for at, share in shares:
        end = min((later for later, _ in shares if later > at), default=float("inf"))
        if not share and (at, share) == [one for one in shares if one[0] == at][-1]:
            assert not [time for time in times if at < time < end], "a call started without a share"
