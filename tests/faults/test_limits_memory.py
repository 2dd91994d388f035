"""Memory that runs out in a stage: one record may be too large; two close together are the trouble of the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from accounts import Folder, run

from stageflow import Pipeline, Retry, degrade
from stageflow.errors import OutOfMemory, RunStopped

HUNGRY = """
import os
from stageflow import Pipeline, Retry

pipeline = Pipeline("hungry")

@pipeline.stage(max_in_flight=1, retry=Retry(5, on=Exception), run={mode!r})
def x(n):
    with open("calls.txt", "a") as calls:
        print(n, file=calls)
    if n in {failing} and "MEMORY" not in os.environ:
        raise MemoryError("no room")
    return n
"""


def hungry(at: dict[int, float], *, raises: Any = MemoryError, **settings: Any) -> tuple[Pipeline, list[int]]:
    """A stage that takes one record at a time, a second each, and has no memory for some: ``at`` gives extra time."""
    calls: list[int] = []
    pipeline = Pipeline("hungry")

    async def x(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(1.0 + at.get(n, 0.0))
        if n in at:
            raise raises("no room")
        return n

    pipeline.add_stage("x", x, max_in_flight=1, retry=Retry(5, on=Exception), **settings)
    return pipeline, calls


def test_row_10_a_call_without_memory_is_a_dead_letter_and_is_not_made_again() -> None:
    pipeline, calls = hungry({3: 0.0})
    ended = run(pipeline, 20)
    assert ended.run() == (20, 19, 0, 1, 0, 3)
    assert ended.errors() == {3: ("MemoryError", "no room", 1)}
    assert calls == list(range(20)), "once more would take as much again"


def test_row_10_two_that_are_far_apart_are_two_dead_letters() -> None:
    pipeline, calls = hungry({3: 0.0, 13: 0.0})  # ten seconds between their ends
    ended = run(pipeline, 20)
    assert ended.run() == (20, 18, 0, 2, 0, 3)
    assert sorted(ended.errors()) == [3, 13]
    assert len(calls) == 20


@pytest.mark.parametrize("settings", [{}, {"on_error": "skip"}, {"on_error": degrade(0)}])
def test_row_10_a_second_one_soon_after_stops_the_run_and_is_left_undone(settings: dict[str, Any]) -> None:
    pipeline, calls = hungry({3: 0.0, 12: 0.0}, **settings)
    ended = run(pipeline, 1000)
    assert ended.report.stopped == 'out of memory in stage "x" (twice within 10 s)'
    assert ended.report.exit_code == 5
    assert calls == list(range(13)), "no call starts any more"
    settled = {record["n"] for record in ended.written} | set(ended.errors())
    assert settled == set(range(12)), "the second one is not settled, so a later run does it"
    assert sorted(ended.errors()) == ([] if settings else [3])


def test_row_10_many_calls_that_fail_together_are_left_undone_but_the_first() -> None:
    pipeline = Pipeline("hungry")

    async def x(n: int) -> int:
        await asyncio.sleep(1.0)
        raise MemoryError

    pipeline.add_stage("x", x, max_in_flight=8)
    ended = run(pipeline, 100)
    assert ended.report.exit_code == 5
    assert (ended.report.written, ended.report.dead) == (0, 1)
    assert ended.report.not_done == ended.report.read - 1
    assert ended.seconds == 2.0, "one call began between the first failure and the second"


def test_row_10_what_fails_by_it_long_after_the_run_was_stopped_is_not_lost_either() -> None:
    pipeline = Pipeline("hungry")

    async def x(n: int) -> int:
        await asyncio.sleep(15.0 if n == 2 else 1.0)
        raise MemoryError

    pipeline.add_stage("x", x, max_in_flight=3)
    ended = run(pipeline, 3)
    assert ended.seconds == 15.0
    assert sorted(ended.errors()) == [0]
    assert ended.report.not_done == 2


def test_row_10_two_stages_are_counted_apart() -> None:
    pipeline = Pipeline("hungry")

    async def fails_at(n: int, which: int) -> int:
        if n == which:
            raise MemoryError
        return n

    async def a(n: int) -> int:
        return await fails_at(n, 1)

    async def b(n: int) -> int:
        return await fails_at(n, 2)

    pipeline.add_stage("a", a)
    pipeline.add_stage("b", b)
    assert run(pipeline, 5).run() == (5, 3, 0, 2, 0, 3)


def test_row_10_memory_that_ran_out_in_a_task_of_the_stage_counts() -> None:
    pipeline, calls = hungry({3: 0.0, 4: 0.0}, raises=lambda text: ExceptionGroup("tasks", [MemoryError(text)]))
    ended = run(pipeline, 20)
    assert (ended.report.exit_code, len(calls)) == (5, 5)


def test_row_10_a_batch_that_is_too_large_is_taken_apart_and_counts_once_per_record() -> None:
    from stageflow import Batch

    pipeline = Pipeline("hungry")

    async def x(n: list[int]) -> list[int]:
        if len(n) > 1:
            raise MemoryError("too many at once")
        return n

    pipeline.add_stage("x", x, batch=Batch(4))
    assert run(pipeline, 8).run() == (8, 8, 0, 0, 0, 0)


def test_row_10_the_error_says_how_a_run_ends() -> None:
    assert issubclass(OutOfMemory, RunStopped)
    assert OutOfMemory("x").exit_code == 5


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_row_10_the_command_ends_with_exit_code_5(folder: Folder, mode: str) -> None:
    folder.job(HUNGRY.format(mode=mode, failing=[2, 4]), 50)
    done = folder.run("--grace", "5")
    assert done.code == 5, done.err
    assert 'out of memory in stage "x" (twice within 10 s)' in done.err
    assert "Traceback" not in done.err
    calls = Path(folder.path / "calls.txt").read_text().split()
    assert sorted(map(int, calls)) == [0, 1, 2, 3, 4], "neither is tried again, and nothing after them begins"
    assert not (folder.path / "out.jsonl").exists(), "it is not complete"


def test_row_10_the_same_command_goes_on_once_there_is_memory(folder: Folder) -> None:
    folder.job(HUNGRY.format(mode="inline", failing=[2, 4]), 50)
    assert folder.run().code == 5
    done = folder.run(MEMORY="enough")
    assert done.code == 3, done.err
    assert [line["n"] for line in folder.lines("out.jsonl")] == [n for n in range(50) if n != 2]
    assert [line["record"]["n"] for line in folder.lines("out.jsonl.dead.jsonl")] == [2]
    calls = list(map(int, (folder.path / "calls.txt").read_text().split()))
    assert calls == [*range(5), *range(4, 50)], "what was done is not done again"
