"""Where handlers run: threads that hang are left behind, processes that hang are killed, and others serve instead."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hanging_handlers
import pytest

from stageflow import Pipeline
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.engine.processes import child_setups
from stageflow.engine.targets import Target, target_of
from stageflow.testing import run_virtual


def target(function: Callable[..., Any], run: str, max_in_flight: int, left: Callable[[], None]) -> Target:
    pipeline = Pipeline("targets")
    pipeline.add_stage("x", function, run=run, max_in_flight=max_in_flight)
    plan = pipeline.plan()
    return target_of(plan.stages["x"], child_setups(plan, None).get("x"), left)


def stage_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stageflow-x")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def nothing() -> None:
    raise AssertionError("no thread was to be left behind")


def test_as_many_calls_as_max_in_flight_are_in_threads_at_once() -> None:
    all_in = threading.Barrier(8, timeout=10)

    def x(n: int) -> int:
        all_in.wait()
        return n

    async def main() -> list[int]:
        own = target(x, "thread", 8, nothing)
        try:
            return list(await asyncio.gather(*(own(n) for n in range(8))))
        finally:
            own.close()

    assert run_virtual(main()) == list(range(8))
    until(lambda: not stage_threads())


def test_a_hung_thread_leaves_its_pool_and_later_calls_find_as_many_as_before() -> None:
    let_go = threading.Event()
    both = threading.Barrier(2, timeout=10)
    left: list[float] = []

    def x(hang: bool) -> str:
        if hang:
            let_go.wait()
            return "late"
        both.wait()
        return "in time"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        own = target(x, "thread", 2, lambda: left.append(loop.time()))
        try:
            for _ in range(2):  # twice, so that more hang than the stage has threads
                hung = [asyncio.ensure_future(own(True)) for _ in range(2)]
                await asyncio.sleep(1)
                for call in hung:
                    call.cancel()
                ended = await asyncio.gather(*hung, return_exceptions=True)
                assert [type(each) for each in ended] == [asyncio.CancelledError] * 2
                assert list(await asyncio.gather(own(False), own(False))) == ["in time"] * 2
            await asyncio.sleep(SWALLOW_GRACE)
        finally:
            own.close()

    try:
        run_virtual(main(), thread_seconds=0.3)
    finally:
        let_go.set()
    assert left == [6.0, 6.0, 7.0, 7.0], "each is told of when it has not ended within the grace"
    until(lambda: not stage_threads())


def test_one_that_ends_within_the_grace_is_not_told_of() -> None:
    let_go = threading.Event()

    def x() -> None:
        let_go.wait()

    async def main() -> None:
        own = target(x, "thread", 1, nothing)
        call = asyncio.ensure_future(own())
        await asyncio.sleep(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        let_go.set()
        await asyncio.get_running_loop().run_in_executor(None, until, lambda: not stage_threads())
        await asyncio.sleep(100)
        own.close()

    run_virtual(main(), thread_seconds=0.1)


def test_a_call_that_is_given_up_before_a_thread_has_it_is_never_begun() -> None:
    let_go = threading.Event()
    begun: list[int] = []

    def x(n: int) -> None:
        begun.append(n)
        let_go.wait()

    async def main() -> None:
        own = target(x, "thread", 1, nothing)
        first, second = asyncio.ensure_future(own(1)), asyncio.ensure_future(own(2))
        await asyncio.sleep(0)  # both are on their way
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        let_go.set()
        await first
        await own(3)
        own.close()

    run_virtual(main())
    assert begun == [1, 3]


def test_no_timer_is_left_when_the_target_is_closed() -> None:
    let_go = threading.Event()

    async def main() -> None:
        own = target(lambda: let_go.wait(), "thread", 1, nothing)
        call = asyncio.ensure_future(own())
        await asyncio.sleep(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        own.close()
        await asyncio.sleep(100)

    try:
        run_virtual(main(), thread_seconds=0.1)
    finally:
        let_go.set()


def test_a_hung_process_is_killed_and_the_next_call_has_another(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    async def main() -> tuple[int, int]:
        own = target(hanging_handlers.hangs, "process", 1, nothing)
        try:
            first = await own(n=0, mark="")
            call = asyncio.ensure_future(own(n=1, mark=str(mark)))
            await asyncio.get_running_loop().run_in_executor(None, until, mark.exists)
            assert alive(first)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.get_running_loop().run_in_executor(None, until, lambda: not alive(first))
            return first, await own(n=2, mark="")
        finally:
            own.close()

    first, second = run_virtual(main())
    assert first != second
    assert not alive(second)


def test_a_timeout_kills_the_process_of_a_stage(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    pipeline = Pipeline("hangs")
    pipeline.add_stage("x", hanging_handlers.hangs, run="process", max_in_flight=1, timeout=10.0)
    records = [{"n": 0, "mark": ""}, {"n": 1, "mark": str(mark)}, {"n": 2, "mark": ""}]
    written: list[Any] = []
    dead: list[Any] = []

    async def main() -> Any:
        return await pipeline.run(records, written, dead=dead)

    # By then a process has started and answered, on a machine with other things to do, too.
    report = run_virtual(main(), thread_seconds=5.0)

    assert (report.written, report.dead, report.exit_code) == (2, 1, 3)
    assert [letter["error"]["message"] for letter in dead] == ["Timeout after 10 s"]
    assert report.stages["x"].abandoned == 0
    hung = int(mark.read_text())
    assert not alive(hung)
    assert [record["x"] == hung for record in written] == [True, False]
    assert os.getpid() not in [record["x"] for record in written]


@pytest.mark.parametrize("run", ["thread", "inline"])
def test_a_handler_may_return_something_to_await(run: str) -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(1)
        return n

    def x(n: int) -> Any:
        return later(n)

    async def main() -> int:
        own = target(x, run, 1, nothing)
        try:
            value: int = await own(7)
            return value
        finally:
            own.close()

    assert run_virtual(main()) == 7
