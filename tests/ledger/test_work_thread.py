"""The one thread beside the loop: in turn, with what was raised, and whether or not anybody still waits."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from stageflow.ledger.thread import WorkThread
from stageflow.testing import run_virtual

DEADLINE = 10.0


class Gate:
    """Work that begins, and goes on when it may."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.opened.wait(DEADLINE), "nobody opened the gate"
        return "through"


async def arrival(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.begun.wait, DEADLINE), "the work was not begun"


def test_one_thing_after_another_in_one_thread_and_each_gets_its_answer() -> None:
    async def main() -> None:
        loop, thread = asyncio.get_running_loop(), WorkThread("a name")
        done: list[int] = []

        def work(number: int) -> tuple[int, str]:
            done.append(number)
            return number, threading.current_thread().name

        answers = await asyncio.gather(*(loop.run_in_executor(thread, work, number) for number in range(50)))
        assert answers == [(number, "a name") for number in range(50)]
        assert done == list(range(50))
        thread.shutdown()

    asyncio.run(main())


def test_what_the_work_raises_is_raised_where_it_is_awaited_and_the_thread_goes_on() -> None:
    async def main() -> None:
        loop, thread = asyncio.get_running_loop(), WorkThread("t")
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(thread, divmod, 1, 0)
        with pytest.raises(KeyboardInterrupt):
            await loop.run_in_executor(thread, _interrupt)
        assert await loop.run_in_executor(thread, divmod, 7, 2) == (3, 1)
        thread.shutdown()

    asyncio.run(main())


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_the_loop_goes_on_meanwhile_and_a_cancelled_wait_does_not_end_the_work() -> None:
    async def main() -> None:
        loop, thread, gate = asyncio.get_running_loop(), WorkThread("t"), Gate()
        troubles: list[object] = []
        loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
        waiting = asyncio.ensure_future(loop.run_in_executor(thread, gate))
        await arrival(gate)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.opened.set()
        assert await loop.run_in_executor(thread, str, 1) == "1"
        assert not troubles
        thread.shutdown()

    asyncio.run(main())


def test_a_shutdown_returns_when_all_is_done() -> None:
    async def main() -> None:
        loop, thread, done = asyncio.get_running_loop(), WorkThread("t"), list[int]()
        futures = [loop.run_in_executor(thread, done.append, number) for number in range(100)]
        thread.shutdown()
        assert done == list(range(100))
        await asyncio.gather(*futures)
        WorkThread("never started").shutdown()

    asyncio.run(main())


def test_a_loop_that_was_closed_is_not_told() -> None:
    thread, gate = WorkThread("t"), Gate()

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(thread, gate)
        await arrival(gate)

    asyncio.run(main())
    gate.opened.set()
    thread.shutdown()
    assert not any(other.name == "t" for other in threading.enumerate())


def test_nothing_is_kept_of_what_was_done() -> None:
    class Big:
        pass

    async def main() -> None:
        loop, thread, big = asyncio.get_running_loop(), WorkThread("t"), Big()
        seen = weakref.ref(big)
        await loop.run_in_executor(thread, id, big)
        del big
        end = loop.time() + DEADLINE
        while seen() is not None:  # the thread is on its way to the next call, of which there is none
            assert loop.time() < end, "it is kept"
            await asyncio.sleep(0)
            gc.collect()
        thread.shutdown()

    asyncio.run(main())


def test_a_virtual_clock_stands_still_while_it_works() -> None:
    async def main() -> None:
        loop, thread, gate = asyncio.get_running_loop(), WorkThread("t"), Gate()
        threading.Timer(0.05, gate.opened.set).start()
        async with asyncio.timeout(0.001):
            assert await loop.run_in_executor(thread, gate) == "through"
        assert loop.time() == 0.0
        thread.shutdown()

    run_virtual(main())
