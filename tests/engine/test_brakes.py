"""What a provider's own limits cost in refused calls: with what it says and without, and after pauses."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from math import ceil
from random import Random

import pytest

from stageflow import RateLimit
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter
from stageflow.llm.limits import ProviderLimit
from stageflow.testing import run_virtual

WINDOW = 10.0
LIMIT = 100


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Provider:
    """So many calls in each window, or as many flowing in evenly."""

    evenly: bool
    left: float = LIMIT
    at: float = 0.0
    refused: int = 0

    def take(self) -> tuple[bool, float, float]:
        """One call: whether it is taken, and after how long all of the limit, and one call of it, is there again."""
        if self.evenly:
            self.left = min(LIMIT, self.left + (now() - self.at) * LIMIT / WINDOW)
        elif now() // WINDOW != self.at // WINDOW:
            self.left = LIMIT
        self.at = now()
        taken = self.left >= 1
        self.left -= taken
        self.refused += not taken
        whole = (LIMIT - self.left) * WINDOW / LIMIT if self.evenly else (now() // WINDOW + 1) * WINDOW - now()
        return taken, whole, (1 - self.left) * WINDOW / LIMIT if self.evenly else whole


async def client(provider: Provider, records: int, told: bool, draw: Random) -> None:
    """64 calls in flight of about a second, at a gate without a declared limit."""
    gate, todo = Gate(None, now), [None] * records

    async def worker() -> None:
        while todo:
            todo.pop()
            taken = False
            while not taken:
                if gate.shut:
                    await gate.wait()
                began = now()
                await asyncio.sleep(0.02 * draw.random())
                taken, whole, one = provider.take()
                left = int(provider.left)
                await asyncio.sleep(draw.uniform(0.5, 1.5) if taken else 0.05)
                if told:
                    gate.heed(
                        ProviderLimit(
                            began=began, requests_remaining=left, requests_reset=whole, requests_limit=float(LIMIT)
                        )
                    )
                if not taken:
                    gate.pause(ceil(one))

    await asyncio.gather(*(worker() for _ in range(64)))


def refused(*, evenly: bool, clients: int, told: bool, seed: int = 1, records: int = 2000) -> tuple[int, float]:
    """How many of 2,000 records' calls are refused, and how long it takes."""

    async def main() -> tuple[int, float]:
        provider, draw = Provider(evenly), Random(seed)
        await asyncio.gather(*(client(provider, records // clients, told, draw) for _ in range(clients)))
        return provider.refused, now()

    return run_virtual(main(), seed=seed, max_steps=50_000_000)


# A window ends while requests are on their way: one or so is refused in each of twenty.
@pytest.mark.parametrize("evenly", [True, False], ids=["evenly", "windows"])
@pytest.mark.parametrize("seed", [1, 2])
def test_who_is_told_what_remains_is_hardly_refused_and_as_fast(evenly: bool, seed: int) -> None:
    _, without = refused(evenly=evenly, clients=1, told=False, seed=seed)
    count, seconds = refused(evenly=evenly, clients=1, told=True, seed=seed)
    print(f"{count} refused, {seconds:.0f} s instead of {without:.0f}")
    assert count <= 40
    assert seconds <= 1.05 * without


@pytest.mark.parametrize(("clients", "most"), [(2, 400), (4, 1000)])
def test_those_who_share_a_limit_unawares_leave_each_other_their_part(clients: int, most: int) -> None:
    before, without = refused(evenly=True, clients=clients, told=False)
    count, seconds = refused(evenly=True, clients=clients, told=True)
    print(f"{count} refused instead of {before}, {seconds:.0f} s instead of {without:.0f}")
    assert count < min(most, before / 2)
    assert seconds <= 1.05 * without


def told(remaining: float, reset: float = 60.0, scope: str = "", **more: float) -> ProviderLimit:
    return ProviderLimit(began=now(), scope=scope, requests_remaining=remaining, requests_reset=reset, **more)


async def starts(gate: Gate, seconds: float = 1.0) -> int:
    """How many of 20 calls start within that time."""
    passed = 0

    async def call() -> None:
        nonlocal passed
        if gate.shut:
            await gate.wait()
        passed += 1

    tasks = [asyncio.create_task(call()) for _ in range(20)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return passed


def test_no_more_start_than_remain_and_newer_news_let_others_go_at_once() -> None:
    async def main() -> None:
        gate = Gate(None, now)
        gate.heed(told(3))
        assert gate.shut
        assert gate.open_for == 3
        waiting = asyncio.create_task(starts(gate, 10.0))
        await asyncio.sleep(5.0)
        gate.heed(told(4))
        assert await waiting == 7

    run_virtual(main())


def test_a_declared_limit_is_only_ever_tightened() -> None:
    async def main() -> None:
        gate = Gate(Limiter(RateLimit(per_second=5), now), now)
        gate.heed(told(1000))
        assert gate.open_for == 5
        assert await starts(gate, 0.5) in (7, 8)
        gate = Gate(Limiter(RateLimit(per_second=5), now), now)
        gate.heed(told(2))
        assert gate.open_for == 2
        assert await starts(gate, 10.0) == 2

    run_virtual(main())


def test_it_can_be_switched_off() -> None:
    async def main() -> None:
        gate = Gate(Limiter(RateLimit(per_second=5, adaptive=False), now), now)
        gate.heed(told(0))
        assert gate.open_for == 5

    run_virtual(main())


def test_a_process_uses_its_share_of_what_remains() -> None:
    async def main() -> None:
        gate = Gate(Limiter(RateLimit(per_second=1000), now), now)
        assert gate.limiter is not None
        gate.limiter.set_share(0.25)
        gate.heed(told(8))
        assert gate.open_for == 2

    run_virtual(main())


def test_of_several_limits_the_tightest_holds_and_tokens_are_reckoned_by_what_calls_used() -> None:
    async def main() -> None:
        gate = Gate(None, now)
        gate.heed(told(9, scope="a"))
        gate.heed(told(5, scope="b", tokens_remaining=350.0, tokens_reset=60.0))
        assert gate.open_for == 5
        gate.settle(0.0, 100)
        assert gate.open_for == 3

    run_virtual(main())


def test_it_may_be_told_from_any_thread() -> None:
    async def main() -> None:
        gate, news = Gate(None, now), told(2)
        thread = threading.Thread(target=gate.heed, args=(news,))
        thread.start()
        thread.join()
        assert await starts(gate) == 2

    run_virtual(main())


def test_a_gate_that_is_barred_holds_nobody_back() -> None:
    async def main() -> None:
        gate = Gate(None, now)
        gate.heed(told(0))
        waiting = asyncio.create_task(gate.wait())
        await asyncio.sleep(1.0)
        gate.bar()
        await waiting
        assert now() == 1.0

    run_virtual(main())


def test_who_is_cancelled_in_line_leaves_what_remains_to_the_others() -> None:
    async def main() -> None:
        gate = Gate(None, now)
        gate.heed(told(1))
        await gate.wait()
        waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
        await asyncio.sleep(1.0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        gate.heed(told(2))
        await asyncio.gather(*waiting[1:])
        assert now() == 1.0

    run_virtual(main())
