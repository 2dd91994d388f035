"""What a job's own code does wrong, and what becomes of the record, of the stage and of the run.

Faults 54 to 73, by the numbers in the names of the tests. Where time matters a run is on the virtual
clock; where the process does, it is a ``stageflow run``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import crashing_handlers
import pytest
from accounts import ROOT, Folder, assert_balanced, run, until

from stageflow import Batch, DefinitionError, Pipeline, RateLimit, Retry, degrade, drop
from stageflow.events import Event, RecordDead
from stageflow.testing import FaultPlan

AT_ONCE = Retry(2, base=0.0, cap=0.0)
"""Two attempts, the second at once: for exact times."""


def one_stage(function: Callable[..., Any], **settings: Any) -> Pipeline:
    """A job of one stage, ``x``."""
    pipeline = Pipeline("faults")
    pipeline.add_stage("x", function, **settings)
    return pipeline


def no_line(folder: Folder, text: str) -> int:
    """The number of the line of the job that ends in a comment."""
    lines = (folder.path / "job.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {text}"))


# 54: exceptions


class Answered(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ValueError("no"), 3),
        (OSError("no"), 3),
        (Answered(503), 3),
        (ExceptionGroup("g", [OSError("no")]), 3),
        (Answered(400), 1),
        (Answered(422), 1),
        (TypeError("no"), 1),
        (NameError("no"), 1),
        (AttributeError("no"), 1),
        (ImportError("no"), 1),
        (NotImplementedError("no"), 1),
        (ExceptionGroup("g", [OSError("no"), TypeError("no")]), 1),
    ],
    ids=repr,
)
def test_row_54_an_exception_is_retried_by_its_class_and_then_a_dead_letter(error: Exception, attempts: int) -> None:
    calls = Counter[int]()

    async def x(n: int) -> int:
        calls[n] += 1
        if n == 1:
            raise error
        return n

    ended = run(one_stage(x, retry=Retry(3, base=0.0, cap=0.0), max_in_flight=1), 3)

    assert ended.run() == (3, 2, 0, 1, 0, 3)
    assert ended.stage("x") == (3, 2, 0, 1, 0)
    assert ended.report.stages["x"].retries == attempts - 1
    assert calls == {0: 1, 1: attempts, 2: 1}
    (letter,) = ended.dead
    assert (letter["index"], letter["stage"], letter["attempts"]) == (1, "x", attempts)
    assert letter["record"] == {"n": 1}
    group = isinstance(error, ExceptionGroup)
    assert group or letter["retryable"] == (attempts == 3)
    assert letter["error"]["type"] == ("HandlerFailed" if group else type(error).__name__)
    if not group:
        assert letter["error"]["message"] == str(error)


@pytest.mark.parametrize("kind", ["async", "thread", "inline"])
def test_row_54_the_trace_begins_in_the_users_own_code(kind: str) -> None:
    def deep() -> None:
        raise ValueError("here")

    def plain(n: int) -> None:
        deep()

    async def coroutine(n: int) -> None:
        deep()

    ended = run(one_stage(coroutine if kind == "async" else plain, run=kind), 1)

    trace = ended.dead[0]["error"]["trace"]
    places = re.findall(r'File "(.*)", line \d+, in (\w+)', trace)
    assert [name for _, name in places] == [{"async": "coroutine"}.get(kind, "plain"), "deep"]
    assert {Path(file) for file, _ in places} == {Path(__file__)}
    assert trace.endswith("ValueError: here\n")


def test_row_54_an_error_that_cannot_leave_its_process_keeps_its_name_and_place() -> None:
    ended = run(one_stage(crashing_handlers.raises, run="process", max_in_flight=1), [{"n": 0, "how": "particular"}])

    assert ended.run() == (1, 0, 0, 1, 0, 3)
    assert ended.errors() == {0: ("HandlerFailed", "Particular: no such thing (5)", 1)}
    assert "in raises" in ended.dead[0]["error"]["trace"]


# 55, 57: what no function may raise


MODES = ["async", "thread", "inline", "process"]


def raising(mode: str, **settings: Any) -> Pipeline:
    """A job whose stage ``x`` raises what ``how`` of the record says, wherever it runs."""
    if mode == "async":

        async def x(n: int, how: str) -> int:
            return crashing_handlers.raises(n, how)

        return one_stage(x, **settings)
    return one_stage(crashing_handlers.raises, run=mode, max_in_flight=2, **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("how", "message"), [("exit", "SystemExit(7)"), ("interrupt", "KeyboardInterrupt()")])
def test_row_55_an_exit_raised_in_a_stage_is_the_records_failure(mode: str, how: str, message: str) -> None:
    records = [{"n": n, "how": how if n in (0, 2) else ""} for n in range(5)]

    ended = run(raising(mode), records)

    assert ended.run() == (5, 3, 0, 2, 0, 3)
    assert ended.stage("x") == (5, 3, 0, 2, 0)
    failed = ("HandlerFailed", f'{message} raised in stage "x"', 1)
    assert ended.errors() == {0: failed, 2: failed}


EXITING = """
import asyncio, sys
from stageflow import Pipeline

pipeline = Pipeline("exits")

@pipeline.stage
async def x(n):
    if n == 1:
        sys.exit(0)
    return n
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_55_it_is_never_the_exit_code_of_the_process(folder: Folder, loop: str) -> None:
    folder.job(EXITING, 3)
    finished = folder.run("--summary", "json", "--loop", loop)
    assert finished.code == 3
    assert finished.counts() == (3, 2, 0, 1, 0)
    assert folder.lines("out.jsonl.dead.jsonl")[0]["error"]["message"] == 'SystemExit(0) raised in stage "x"'
    assert "Traceback" not in finished.err


LEAVING = """
import asyncio, sys
from stageflow import Pipeline

pipeline = Pipeline("leaves")

async def leave():
    await asyncio.sleep(0.01)
    sys.exit(0)

@pipeline.resource
async def service():
    task = asyncio.create_task(leave()) if False else None
    yield task

@pipeline.stage
async def x(n, service):
    if n == 1:
        await asyncio.gather(leave())
    if n == 2:
        asyncio.get_running_loop().create_task(leave())
    await asyncio.sleep(0.1)
    return n
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_55_nor_is_one_raised_in_a_task_that_a_stage_has_started(folder: Folder, loop: str) -> None:
    folder.job(LEAVING, 4)
    finished = folder.run("--summary", "json", "--loop", loop)
    assert finished.code == 3
    assert finished.counts() == (4, 3, 0, 1, 0)
    (letter,) = folder.lines("out.jsonl.dead.jsonl")
    assert (letter["index"], letter["error"]["message"]) == (1, "SystemExit(0) raised in a task")
    assert 'warning: stage "x": its task leave failed, and nobody asked for it: HandlerFailed' in finished.err
    assert "Traceback" not in finished.err


def test_row_55_one_in_a_task_of_a_resource_ends_the_run_as_one_to_be_continued(folder: Folder) -> None:
    """The loop ends with it, and nobody can tell which records it was needed for."""
    folder.job(LEAVING.replace("if False", "if True"), 1)
    finished = folder.run()
    assert finished.code == 4
    assert "stageflow: error: a task that the job had started raised SystemExit(0)" in finished.err
    assert not (folder.path / "out.jsonl").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["stop", "close"])
def test_row_57_the_end_of_an_iteration_raised_in_a_stage_hangs_nothing(mode: str, how: str) -> None:
    records = [{"n": n, "how": how if n == 1 else ""} for n in range(3)]

    ended = run(raising(mode), records)

    assert ended.run() == (3, 2, 0, 1, 0, 3)
    assert ended.stage("x") == (3, 2, 0, 1, 0)
    stopped = {
        "async": ("RuntimeError", "coroutine raised StopIteration", 1),
        "inline": ("RuntimeError", "coroutine raised StopIteration", 1),
        "thread": ("HandlerFailed", "StopIteration(1) raised by the handler", 1),
        "process": ("HandlerFailed", "StopIteration(1) raised by the handler", 1),
    }
    closed = ("HandlerFailed", 'GeneratorExit() raised in stage "x"', 1)
    assert ended.errors() == {1: stopped[mode] if how == "stop" else closed}
    assert ended.seconds == 0.0


# 56: cancellation out of the blue


@pytest.mark.parametrize("mode", MODES)
def test_row_56_a_cancellation_nobody_asked_for_is_tried_once_more(mode: str) -> None:
    records = [{"n": n, "how": "cancel" if n == 1 else ""} for n in range(3)]

    ended = run(raising(mode), records)

    assert ended.run() == (3, 2, 0, 1, 0, 3)
    assert ended.stage("x") == (3, 2, 0, 1, 0)
    assert ended.report.stages["x"].retries == 1
    assert ended.errors() == {1: ("HandlerFailed", 'cancelled inside stage "x"', 2)}


@pytest.mark.parametrize("how", ["raises", "cancels its own task"])
def test_row_56_it_costs_no_worker(how: str) -> None:
    """Ten records end so at first; they pass in their second attempt, and all of them four at a time."""
    calls = FaultPlan()

    async def x(n: int, call: Any) -> int:
        async with calls.call("x"):
            if n < 10 and call.attempt == 1:
                if how == "raises":
                    raise asyncio.CancelledError
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            await asyncio.sleep(1)
            return n

    ended = run(one_stage(x, max_in_flight=4, queue_size=100), 40)

    assert ended.run() == (40, 40, 0, 0, 0, 0)
    assert ended.stage("x") == (40, 40, 0, 0, 0)
    assert ended.report.stages["x"].retries == 10
    assert calls["x"].peak == 4
    assert ended.seconds == 10.0
    assert ended.heard.warnings == []


def test_row_56_a_batch_is_no_exception() -> None:
    first = True

    async def x(n: list[int]) -> list[int]:
        nonlocal first
        if first:
            first = False
            raise asyncio.CancelledError
        return n

    ended = run(one_stage(x, batch=Batch(4)), 4)

    assert ended.run() == (4, 4, 0, 0, 0, 0)
    assert ended.stage("x") == (4, 4, 0, 0, 0)


# 58: groups


def test_row_58_all_leaves_of_a_group_are_listed() -> None:
    inner = ExceptionGroup("inner", [TypeError("2"), ExceptionGroup("innermost", [KeyError("3"), OSError("4")])])

    async def x(n: int) -> None:
        raise BaseExceptionGroup("outer", [ValueError("1"), inner, SystemExit(5)])

    ended = run(one_stage(x), 1)

    assert ended.run() == (1, 0, 0, 1, 0, 3)
    assert ended.stage("x") == (1, 0, 0, 1, 0)
    leaves = "ValueError('1'), TypeError('2'), KeyError('3'), OSError('4'), SystemExit(5)"
    assert ended.errors() == {0: ("HandlerFailed", f'BaseExceptionGroup({leaves}) raised in stage "x"', 1)}


def test_row_58_what_a_task_group_in_a_handler_raises() -> None:
    async def part(n: int) -> None:
        raise OSError(f"part {n}")

    async def x(n: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part(1))
            group.create_task(part(2))

    ended = run(one_stage(x), 1)

    assert ended.errors() == {
        0: ("HandlerFailed", "ExceptionGroup(OSError('part 1'), OSError('part 2')) raised in stage \"x\"", 1)
    }


# 59: messages


CANARY = "canary-0123456789-yellow"


class Mute(Exception):
    """Raises from ``__str__`` and ``__repr__``."""

    def __str__(self) -> str:
        raise self.args[0]

    __repr__ = __str__


@pytest.mark.parametrize("second", [ValueError("no"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("group", [False, True])
def test_row_59_an_error_that_cannot_be_shown_is_no_second_failure(second: BaseException, group: bool) -> None:
    async def x(n: int) -> None:
        raise BaseExceptionGroup("all", [Mute(second), SystemExit(3)]) if group else Mute(second)

    ended = run(one_stage(x), 2)

    assert ended.run() == (2, 0, 0, 2, 0, 3)
    assert ended.stage("x") == (2, 0, 0, 2, 0)
    message = 'BaseExceptionGroup(Mute, SystemExit(3)) raised in stage "x"' if group else "(its message can't be read)"
    assert ended.errors()[0] == ("HandlerFailed" if group else "Mute", message, 1)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_row_59_a_message_of_ten_megabytes_is_cut_to_two_kilobytes(raised: type[BaseException]) -> None:
    async def x(n: int) -> None:
        raise raised("m" * 10_000_000)

    ended = run(one_stage(x), 1)

    error = ended.dead[0]["error"]
    assert 500 < len(error["message"]) <= 2048
    assert len(error["trace"]) <= 8192
    if raised is not ValueError:
        assert error["message"].endswith('raised in stage "x"')


@pytest.mark.parametrize("before", [0, 2030, 2040, 2047, 8185])
def test_row_59_no_piece_of_a_secret_is_left_at_the_cut(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setenv("SOME_API_KEY", CANARY)

    async def x(n: int) -> None:
        raise ValueError("m" * before + CANARY + "m" * 10_000)

    ended = run(one_stage(x), 1)

    text = json.dumps(ended.dead)
    assert not any(CANARY[at : at + 6] in text for at in range(len(CANARY) - 5))


LEAKING = """
import asyncio, os
from stageflow import Batch, Pipeline, degrade

KEY = os.environ["SOME_API_KEY"]
pipeline = Pipeline("leaks")

class Particular(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

@pipeline.resource
async def client():
    yield None
    raise ValueError(f"closing with {KEY}")

async def stray():
    raise ValueError(f"stray {KEY}")

@pipeline.stage(on_error="skip")
async def skips(n):
    raise ValueError(f"skip {KEY}")

@pipeline.stage(on_error=degrade("stand-in"))
def degrades(n):
    raise ValueError(f"degrade {KEY}")

@pipeline.stage(run="process", max_in_flight=1, on_error="skip")
def particular(n):
    raise Particular("particular", KEY)

@pipeline.stage(batch=Batch(2), on_error="skip")
async def batches(n):
    raise ValueError(f"batch {KEY}")

@pipeline.stage
async def x(n, client):
    task = asyncio.create_task(stray())
    await asyncio.wait([task])
    del task
    if n == 0:
        raise ValueError(f"Authorization: Bearer {KEY}")
    if n == 1:
        raise SystemExit(KEY)
    if n == 2:
        raise BaseExceptionGroup(KEY, [ValueError(KEY), SystemExit(KEY)])
    if n == 3:
        try:
            raise OSError(KEY)
        except OSError as error:
            raise ValueError("caused") from error
    if n == 4:
        error = ValueError("noted")
        error.add_note(KEY)
        raise error
    return n

@pipeline.stage(on_error="abort")
async def aborts(x):
    raise ValueError(f"abort {KEY}")
"""


def test_row_59_a_secret_of_the_environment_is_in_no_file_and_on_no_stream(folder: Folder) -> None:
    folder.job(LEAKING, 6)
    finished = folder.run("--summary", "json", SOME_API_KEY=CANARY)
    assert finished.code == 4
    assert len(folder.lines("out.jsonl.dead.jsonl")) == 5
    for said in ("closing with ***", "stray ***", "abort ***"):
        assert said in finished.err
    assert CANARY not in finished.out + finished.err + folder.texts()


# 60: a call that hangs


@pytest.mark.parametrize("mode", ["async", "batch"])
def test_row_60_a_hung_call_is_timed_out_and_troubles_no_other(mode: str) -> None:
    """Two workers; the record that hangs holds one of them for its two attempts of 600 s each."""
    calls = FaultPlan()
    calls.takes("x", 100.0)
    calls.hangs("x", where=lambda n: n in (1, [1]))

    async def x(n: Any) -> Any:
        return n

    settings: dict[str, Any] = {"batch": Batch(1)} if mode == "batch" else {}
    ended = run(one_stage(calls.wrap(x), max_in_flight=2, retry=AT_ONCE, **settings), 8)

    assert ended.run() == (8, 7, 0, 1, 0, 3)
    assert ended.stage("x") == (8, 7, 0, 1, 0)
    assert ended.errors() == {1: ("AttemptTimeout", "Timeout after 600 s", 2)}
    assert ended.at == {0: 100.0, 2: 200.0, 3: 300.0, 4: 400.0, 5: 500.0, 6: 600.0, 7: 700.0}
    assert ended.seconds == 1200.0
    assert ended.report.stages["x"].abandoned == 0
    assert ended.heard.warnings == []


def test_row_60_a_generator_has_its_time_for_itself_and_not_for_those_below() -> None:
    """Five children for a stage that takes a minute for each, from a generator that has 2 s for its own 1.5 s."""

    async def x(n: int) -> AsyncIterator[int]:
        for child in range(5):
            await asyncio.sleep(0.3)
            yield child
        if n == 1:
            await asyncio.sleep(0.6)

    async def below(x: int) -> int:
        await asyncio.sleep(60)
        return x

    pipeline = one_stage(x, timeout=2.0)
    pipeline.add_stage("below", below, max_in_flight=1, queue_size=1)
    assert run(pipeline, 1).run() == (1, 1, 0, 0, 0, 0)

    ended = run(pipeline, [{"n": 1}])
    assert ended.run() == (1, 0, 0, 1, 0, 3)
    assert ended.errors() == {0: ("AttemptTimeout", "Timeout after 2 s", 1)}
    assert len(ended.written) == 5


def test_row_60_a_predicate_that_hangs_is_timed_out_too() -> None:
    async def when(n: int) -> bool:
        await asyncio.sleep(1000 if n == 1 else 0)
        return n != 2

    async def x(n: Any) -> Any:
        return n

    for settings in ({}, {"batch": Batch(4)}):
        ended = run(one_stage(x, when=when, timeout=3.0, **settings), 4)
        assert ended.run() == (4, 3, 0, 1, 0, 3)
        assert ended.stage("x") == (4, 3, 0, 1, 0)
        assert ended.report.stages["x"].skipped == 1
        assert ended.errors() == {1: ("AttemptTimeout", "Timeout after 3 s", 1)}
        assert ended.seconds == 3.0


# 61: a call that hangs and cannot be cancelled


async def swallow(seconds: float) -> None:
    """Stay for so long, whatever is asked."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(end - loop.time())


def test_row_61_a_call_that_swallows_its_cancellation_is_abandoned_after_the_grace() -> None:
    """One worker: the next record starts when the place is given away, at 10 + 5 s."""
    began: dict[int, float] = {}

    async def x(n: int) -> str:
        began[n] = asyncio.get_running_loop().time()
        if n == 0:
            await swallow(100)
            return "late"
        await asyncio.sleep(1)
        return "in time"

    ended = run(one_stage(x, max_in_flight=1, timeout=10.0), 90)

    assert ended.run() == (90, 89, 0, 1, 0, 3)
    assert ended.stage("x") == (90, 89, 0, 1, 0)
    assert ended.report.stages["x"].abandoned == 1
    assert ended.errors() == {0: ("AttemptTimeout", "Timeout after 10 s", 1)}
    assert began[1] == 15.0
    assert ended.seconds == 15.0 + 89  # it is past the end of the abandoned call: what that returned is nowhere
    assert {record["x"] for record in ended.written} == {"in time"}
    assert ended.heard.warnings == [
        'stage "x": a call did not end 5 s after it was cancelled and is left behind',
    ]


def test_row_61_a_call_that_ends_within_the_grace_is_not_abandoned() -> None:
    async def x(n: int) -> str:
        await swallow(14.5)
        return "late, but there"

    ended = run(one_stage(x, timeout=10.0), 1)

    assert ended.run() == (1, 1, 0, 0, 0, 0)
    assert ended.report.stages["x"].abandoned == 0
    assert ended.heard.warnings == []


@pytest.mark.parametrize("style", ["result", "context", "generator", "degrade"])
def test_row_61_the_late_result_is_fenced(style: str) -> None:
    """The first attempt ends, late, while the record is still held up in another branch."""

    @dataclass
    class Context:
        n: int
        said: str = ""

    first = True

    async def saying() -> str:
        nonlocal first
        if first:
            first = False
            await swallow(30)
            return "late"
        return "in time"

    async def x(n: int) -> str:
        return await saying()

    async def fills(ctx: Context) -> None:
        said = await saying()
        ctx.said = said

    async def yields(n: int) -> AsyncIterator[str]:
        said = await saying()
        yield said
        yield said

    async def slow(n: int) -> None:
        await asyncio.sleep(60)

    async def slow_context(ctx: Context) -> None:
        await asyncio.sleep(60)

    pipeline = Pipeline("late", context=Context if style == "context" else None)
    handlers: dict[str, Any] = {"result": x, "degrade": x, "context": fills, "generator": yields}
    settings: dict[str, Any] = {"on_error": degrade("in time")} if style == "degrade" else {"retry": AT_ONCE}
    pipeline.add_stage("x", handlers[style], timeout=1.0, **settings)
    pipeline.add_stage("slow", slow_context if style == "context" else slow)

    ended = run(pipeline, 1)

    assert ended.run() == (1, 1, 0, 0, 0, 0)
    assert ended.stage("x") == (1, 1, 0, 0, 0)
    assert ended.report.stages["x"].abandoned == 1
    assert [record.get("said", record.get("x")) for record in ended.written] == ["in time"] * len(ended.written)
    assert len(ended.written) == (2 if style == "generator" else 1)
    assert ended.seconds == 60.0


def test_row_61_more_of_them_than_workers_stop_the_run() -> None:
    async def x(n: int) -> None:
        await swallow(1e6)

    ended = run(one_stage(x, max_in_flight=2, timeout=10.0), 50, grace=20.0)

    # Two are abandoned at 15 s and two at 30 s, which is one too many. What was accepted goes on for the grace: two
    # more are abandoned at 45 s; the last two are cancelled at 50 s, and left behind at 55 s.
    assert ended.report.stopped == 'stage "x": more than 2 calls did not end after they were cancelled'
    assert ended.report.exit_code == 4
    assert ended.run() == (50, 0, 0, 6, 44, 4)
    assert ended.stage("x")[1:] == (0, 0, 6, 2)
    assert ended.report.stages["x"].abandoned == 8
    assert set(ended.errors().values()) == {("AttemptTimeout", "Timeout after 10 s", 1)}
    assert len(ended.heard.warnings) == 1
    assert ended.seconds == 30.0 + 20.0 + 5.0


def test_row_61_one_in_a_batch_takes_no_other_with_it() -> None:
    """The batch fails, and one of its records hangs when it is tried alone."""

    async def x(n: list[int]) -> list[int]:
        if len(n) > 1:
            raise ValueError("no")
        if n == [1]:
            await swallow(1e6)
        return n

    ended = run(one_stage(x, batch=Batch(4), timeout=10.0, max_in_flight=1), 4)

    assert ended.run() == (4, 3, 0, 1, 0, 3)
    assert ended.stage("x") == (4, 3, 0, 1, 0)
    assert ended.errors() == {1: ("AttemptTimeout", "Timeout after 10 s", 2)}
    assert ended.seconds == 15.0


def test_row_61_a_cancelled_run_does_not_wait_for_it_either() -> None:
    """The timeout is far away; the run is stopped at 1 s, cancelled after its grace of 3 s, and leaves it 5 s later."""

    async def x(n: int) -> None:
        await swallow(1e6)

    async def aborts(n: int) -> None:
        await asyncio.sleep(1)
        raise ValueError("enough")

    pipeline = one_stage(x, max_in_flight=2)
    pipeline.add_stage("aborts", aborts, on_error="abort", max_in_flight=1)

    ended = run(pipeline, 4, grace=3.0)

    assert ended.run() == (4, 0, 0, 0, 4, 4)
    assert ended.stage("x") == (2, 0, 0, 0, 2)
    assert ended.report.stages["x"].abandoned == 2
    assert ended.seconds == 1.0 + 3.0 + 5.0


def test_row_61_the_grace_begins_with_the_cancellation_however_late_it_came() -> None:
    """The loop stood still over the timeout and the grace; a call that then ends properly is not abandoned.

    Nor is it where the timer rings once more before it has ended, for the next call.
    """

    async def x(n: int) -> None:
        if n == 1:
            await asyncio.sleep(0.3)
            asyncio.get_running_loop()._now += 100.0  # type: ignore[attr-defined]  # as if this line had taken so long
            return
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(1)

    ended = run(one_stage(x, timeout=0.4, max_in_flight=2), 3)

    assert ended.run() == (3, 1, 0, 2, 0, 3)
    assert set(ended.errors().values()) == {("AttemptTimeout", "Timeout after 0.4 s", 1)}
    assert ended.report.stages["x"].abandoned == 0
    assert ended.heard.warnings == []
    assert ended.seconds == pytest.approx(100.3 + 0.4 + 1)


SWALLOWING = """
import asyncio
from stageflow import Pipeline

pipeline = Pipeline("swallows")

@pipeline.stage(timeout=0.2, max_in_flight=2)
async def x(n):
    while n == 0:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            pass
    return n
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_61_no_task_is_left_that_keeps_the_process_from_ending(folder: Folder, loop: str) -> None:
    folder.job(SWALLOWING.replace("BaseException", "asyncio.CancelledError"), 3)
    finished = folder.run("--summary", "json", "--loop", loop, within=20)
    assert finished.code == 3
    assert finished.counts() == (3, 2, 0, 1, 0)
    assert finished.summary()["stages"]["x"]["abandoned"] == 1
    assert finished.seconds < 12
    assert finished.err.count("did not end 5 s after it was cancelled") == 1
    assert "Traceback" not in finished.err
    assert "Task was destroyed" not in finished.err


# 62: a thread that hangs


def test_row_62_a_hung_thread_is_left_behind_and_the_others_find_as_many_as_before() -> None:
    """Two threads, of which the first record takes one for good; those after its timeout go through two at a time."""
    let_go = threading.Event()
    both = threading.Barrier(2, timeout=10)

    def x(n: int) -> int:
        if n == 0:
            let_go.wait()
        else:
            both.wait()  # passes only where two are in it at once
        return n

    async def records() -> AsyncIterator[dict[str, int]]:
        yield {"n": 0}
        await asyncio.sleep(11)
        for n in range(1, 9):
            yield {"n": n}

    try:
        ended = run(one_stage(x, max_in_flight=2, timeout=10.0), records(), thread_seconds=0.6)
    finally:
        let_go.set()

    assert ended.run() == (9, 8, 0, 1, 0, 3)
    assert ended.stage("x") == (9, 8, 0, 1, 0)
    assert ended.errors() == {0: ("AttemptTimeout", "Timeout after 10 s", 1)}
    assert ended.seconds == 11.0


def test_row_62_it_is_told_and_more_of_them_than_workers_stop_the_run() -> None:
    let_go = threading.Event()

    def x(n: int) -> None:
        let_go.wait()

    try:
        ended = run(one_stage(x, max_in_flight=2, timeout=10.0), 50, thread_seconds=0.1)
    finally:
        let_go.set()

    assert ended.report.exit_code == 4
    assert ended.report.stopped == 'stage "x": more than 2 calls did not end after they were cancelled'
    assert ended.report.stages["x"].abandoned >= 3
    assert set(ended.errors().values()) == {("AttemptTimeout", "Timeout after 10 s", 1)}
    assert ended.heard.warnings == ['stage "x": a call did not end 5 s after it was cancelled and is left behind']


def test_row_62_a_generator_in_a_hung_thread_is_timed_out_as_any_other() -> None:
    let_go = threading.Event()

    def x(n: int) -> Iterator[int]:
        yield n
        if n == 0:
            let_go.wait()

    try:
        ended = run(one_stage(x, timeout=10.0), 3, thread_seconds=0.6)
    finally:
        let_go.set()

    assert ended.run() == (3, 2, 0, 1, 0, 3)
    assert ended.errors() == {0: ("AttemptTimeout", "Timeout after 10 s", 1)}
    assert sorted(record["x"] for record in ended.written) == [0, 1, 2]


HUNG_THREAD = """
import atexit, threading
from stageflow import Pipeline

pipeline = Pipeline("hangs")
atexit.register(lambda: print("atexit ran"))

@pipeline.stage(timeout=0.2, max_in_flight=2)
def x(n):
    if n == 0:
        threading.Event().wait()
    return n
"""


def test_row_62_the_process_ends_promptly_although_the_thread_lives(folder: Folder) -> None:
    folder.job(HUNG_THREAD, 5)
    finished = folder.run(within=20)
    assert finished.code == 3
    assert finished.seconds < 10
    assert [record["x"] for record in folder.lines("out.jsonl")] == [1, 2, 3, 4]
    assert [letter["error"]["message"] for letter in folder.lines("out.jsonl.dead.jsonl")] == ["Timeout after 0.2 s"]
    assert "atexit ran" not in finished.out


def test_row_62_only_a_hung_thread_costs_the_normal_exit(folder: Folder) -> None:
    folder.job(HUNG_THREAD, [{"n": 1}])
    finished = folder.run()
    assert finished.code == 0
    assert "atexit ran" in finished.out


# 63: the loop is blocked


BLOCKING = """
import pathlib, time
from stageflow import Pipeline

pipeline = Pipeline("blocks")

def wait(seconds):
    time.sleep(seconds)  # here

@pipeline.stage(max_in_flight=1)
async def x(n):
    pathlib.Path("began").touch()
    if n == 0:
        wait(1.8)
    if n == 1:
        wait(600)
    return n
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_63_the_stage_that_blocks_the_loop_is_named_with_its_line(folder: Folder, loop: str) -> None:
    folder.job(BLOCKING, [{"n": 0}, {"n": 2}])
    finished = folder.run("--loop", loop)
    assert finished.code == 0
    found = re.findall(r'warning: stage "x" blocked the event loop for (\d\.\d) s at job.py:(\d+)', finished.err)
    assert len(found) == 1
    assert 1.8 <= float(found[0][0]) < 3
    assert int(found[0][1]) == no_line(folder, "here")


def test_row_63_an_inline_stage_is_named_too(folder: Folder) -> None:
    text = BLOCKING.replace("async def", "def").replace("max_in_flight=1", 'run="inline"')
    folder.job(text, 1)
    finished = folder.run()
    assert 'stage "x" blocked the event loop for 1.' in finished.err or "event loop for 2." in finished.err
    assert f"s at job.py:{no_line(folder, 'here')}\n" in finished.err


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_63_ctrl_c_ends_it_meanwhile(folder: Folder, loop: str) -> None:
    """Blocked for ten minutes: the third one ends the process at once."""
    folder.job(BLOCKING, [{"n": 1}])
    process = folder.start("--loop", loop)
    until((folder.path / "began").exists)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        # Signals of one kind that come together are one.
        until(lambda: not pending(process.pid) or process.poll() is not None)
    assert folder.end(process, within=5).code == 130


def pending(pid: int) -> bool:
    """Whether a signal waits to be taken."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return any(int(value, 16) for value in re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", status))


def test_row_63_a_single_ctrl_c_stops_it_in_order_once_it_goes_on(folder: Folder) -> None:
    folder.job(BLOCKING, [{"n": 0}, *({"n": n} for n in range(2, 2000))])
    process = folder.start("--summary", "json", "--max-open-records", "4")
    until((folder.path / "began").exists)
    process.send_signal(signal.SIGINT)
    finished = folder.end(process)
    assert finished.code == 130
    read, written, dropped, dead, not_done = finished.counts()
    assert (dropped, dead, not_done) == (0, 0, 0)
    assert 1 <= written == read <= 4
    assert "stageflow: stopping: finishing" in finished.err
    assert "Traceback" not in finished.err


# 64, 65: results


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


TOO_DEEP = "nesting deeper than 254, or a value inside itself"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1, 2}, "set at $.a.b"),
        (b"x" * 5000, "bytes at $.a.b"),
        (Decimal("1.5"), "Decimal at $.a.b"),
        (float("nan"), "NaN at $.a.b"),
        (float("-inf"), "-Infinity at $.a.b"),
        (object(), "object at $.a.b"),
        ({1: 2}, "key of type int at $.a.b"),
        ("\ud800", "lone surrogate at $.a.b"),
        (circular(), TOO_DEEP),
        (nested(300), TOO_DEEP),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_row_64_a_result_that_json_has_no_form_for_is_a_dead_letter(tmp_path: Path, value: Any, why: str) -> None:
    calls = Counter[int]()

    async def x(n: int) -> Any:
        calls[n] += 1
        return {"a": {"b": value if n == 1 else n}}

    async def below(x: Any) -> None: ...

    pipeline = one_stage(x, retry=3)
    pipeline.add_stage("below", below)
    output = tmp_path / "out.jsonl"

    report = pipeline.run_sync([{"n": n} for n in range(3)], str(output))

    assert_balanced(report)
    assert (report.read, report.written, report.dead, report.not_done, report.exit_code) == (3, 2, 1, 0, 3)
    assert [json.loads(line)["n"] for line in output.read_text().splitlines()] == [0, 2]
    (line,) = (tmp_path / "out.jsonl.dead.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert letter["stage"] == "x"
    assert letter["error"] == {"type": "ResultError", "message": f"result of stage x is not JSON: {why}", "trace": ""}
    assert calls[1] == 1, "the call was paid for"
    if why != TOO_DEEP:
        kept = letter["results"]["x"]["a"]["b"]
        assert kept == ("\\ud800" if value == "\ud800" else {"1": 2} if value == {1: 2} else repr(value)[:2048])


def test_row_64_integers_of_any_size_are_written_as_they_are(tmp_path: Path) -> None:
    async def x(n: int) -> int:
        return 2**70

    output = tmp_path / "out.jsonl"
    report = one_stage(x).run_sync([{"n": 0}], str(output))
    assert (report.written, report.exit_code) == (1, 0)
    assert output.read_text() == '{"n":0,"x":1180591620717411303424}\n'


def test_row_64_a_stage_that_is_not_written_is_not_blamed(tmp_path: Path) -> None:
    async def inner(n: int) -> Any:
        return {n}

    async def x(inner: Any) -> Any:
        return [float("inf")]

    pipeline = Pipeline("blame")
    pipeline.add_stage("inner", inner, emit=False)
    pipeline.add_stage("x", x)
    dead: list[dict[str, Any]] = []
    pipeline.run_sync([{"n": 0}], str(tmp_path / "out.jsonl"), dead=dead)
    assert dead[0]["stage"] == "x"
    assert dead[0]["error"]["message"] == "result of stage x is not JSON: Infinity at $[0]"


def test_row_64_what_cannot_leave_its_process_is_not_tried_again() -> None:
    ended = run(one_stage(crashing_handlers.returns, run="process", max_in_flight=1, retry=3), [{"how": "unshowable"}])

    assert ended.run() == (1, 0, 0, 1, 0, 3)
    (kind, message, attempts) = ended.errors()[0]
    assert (kind, attempts) == ("ResultError", 1)
    assert message == "the result dict can't leave its process: never"


@pytest.mark.parametrize("seconds", [0, 1], ids=["at once", "later"])
def test_row_65_none_is_a_value_and_only_drop_drops(seconds: int) -> None:
    async def x(n: int) -> Any:
        await asyncio.sleep(seconds)
        return {0: None, 1: drop("not wanted"), 2: False, 3: [], 4: ""}[n]

    async def below(x: Any) -> Any:
        return x

    pipeline = one_stage(x)
    pipeline.add_stage("below", below)
    ended = run(pipeline, 5)

    assert ended.run() == (5, 4, 1, 0, 0, 0)
    assert ended.stage("x") == (5, 4, 1, 0, 0)
    assert ended.stage("below") == (4, 4, 0, 0, 0)
    assert [record["below"] for record in ended.written] == [None, False, [], ""]


# 66, 67: generators


@pytest.mark.parametrize("on_partial", ["keep", "drop"])
@pytest.mark.parametrize("kind", ["async", "thread", "inline"])
def test_row_66_a_generator_that_fails_later_is_one_dead_letter(kind: str, on_partial: Any) -> None:
    calls = Counter[int]()

    async def yields(n: int) -> AsyncIterator[str]:
        calls[n] += 1
        for child in "ab":
            yield child
        if n == 1:
            raise ValueError("no third")

    def plain(n: int) -> Iterator[str]:
        calls[n] += 1
        yield from "ab"
        if n == 1:
            raise ValueError("no third")

    async def below(x: str) -> str:
        await asyncio.sleep(1)
        return x.upper()

    pipeline = Pipeline("partial", on_partial=on_partial)
    pipeline.add_stage("x", yields if kind == "async" else plain, run=kind, retry=3)
    pipeline.add_stage("below", below)
    ended = run(pipeline, 3)

    assert ended.run() == (3, 2, 0, 1, 0, 3)
    assert ended.stage("x") == (3, 2, 0, 1, 0)
    assert ended.stage("below") == (6, 6, 0, 0, 0)
    assert ended.errors() == {1: ("ValueError", "no third", 1)}
    assert calls == {0: 1, 1: 1, 2: 1}
    children = sorted((record["n"], record["below"]) for record in ended.written)
    kept = [(1, "A"), (1, "B")] if on_partial == "keep" else []
    assert children == [(0, "A"), (0, "B"), *kept, (2, "A"), (2, "B")]


@pytest.mark.parametrize("kind", ["async", "thread"])
def test_row_66_a_generator_that_is_left_is_closed_in_the_same_tick(kind: str) -> None:
    """Its record is given up in another branch. Left to the garbage collection it would be closed later, or never."""
    order: list[str] = []
    given_up = threading.Event()

    async def yields(n: int) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(10)
            yield 2
            raise AssertionError("the record was given up")
        finally:
            order.append("closed")

    def plain(n: int) -> Iterator[int]:
        try:
            yield 1
            given_up.wait()
            yield 2
            raise AssertionError("the record was given up")
        finally:
            order.append("closed")

    async def fails(n: int) -> None:
        await asyncio.sleep(0 if kind == "thread" else 5)
        given_up.set()
        raise ValueError("given up")

    def hears(event: Event) -> None:
        if isinstance(event, RecordDead):
            order.append("dead")

    pipeline = one_stage(yields if kind == "async" else plain)
    pipeline.add_stage("fails", fails)
    gc.disable()
    try:
        ended = run(pipeline, 1, hears=hears)
    finally:
        gc.enable()

    assert ended.run() == (1, 0, 0, 1, 0, 3)
    assert order == ["closed", "dead"]
    assert ended.seconds == (0.0 if kind == "thread" else 10.0)


UNBOUNDED = """
import itertools, pathlib, resource
from stageflow import Pipeline

pipeline = Pipeline("unbounded")

def grown():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

@pipeline.resource
async def memory():
    before = grown()
    yield None
    pathlib.Path("grown").write_text(str(grown() - before))

@pipeline.stage(max_in_flight=1)
async def x(n, memory):
    if n == 1:
        for number in itertools.count():
            yield VALUE
    yield None

@pipeline.stage
async def below(x):
    return None
"""


@pytest.mark.parametrize("value", ["number", '{"text": "t" * (1 << 20), "number": [number]}'])
def test_row_67_an_unbounded_fan_out_is_a_dead_letter_before_it_fills_the_memory(folder: Folder, value: str) -> None:
    folder.job(UNBOUNDED.replace("VALUE", value), 3)
    finished = folder.run("--summary", "json", "--set", "x.emit=false")
    assert finished.code == 3
    assert finished.counts() == (3, 2, 0, 1, 0)
    (letter,) = folder.lines("out.jsonl.dead.jsonl")
    assert letter["error"] == {"type": "ResultError", "message": "fan-out over 64 MiB", "trace": ""}
    assert (letter["index"], letter["stage"], letter["attempts"]) == (1, "x", 1)
    assert float((folder.path / "grown").read_text()) < 320, "MiB"


# 68: batches


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda n: n[:-1], "63 results"),
        (lambda n: [*n, 1], "65 results"),
        (lambda n: None, "a NoneType"),
        (lambda n: {"a": 1}, "a dict"),
    ],
    ids=["short", "long", "none", "dict"],
)
def test_row_68_each_record_of_a_failed_batch_is_tried_alone(answer: Callable[[list[int]], Any], got: str) -> None:
    """Record 7 fails alone as well, and is the only one that dies of it."""
    sizes: list[int] = []

    async def x(n: list[int]) -> Any:
        sizes.append(len(n))
        return answer(n) if len(n) > 1 or n == [7] else n

    ended = run(one_stage(x, batch=Batch(64)), 128)

    assert ended.run() == (128, 127, 0, 1, 0, 3)
    assert ended.stage("x") == (128, 127, 0, 1, 0)
    assert sizes.count(1) == 128
    assert max(sizes) <= 64
    assert sum(sizes) == 2 * 128
    assert ended.report.stages["x"].retries == 128
    assert {record["x"] for record in ended.written} == set(range(128)) - {7}
    alone = {"63 results": "0 results", "65 results": "2 results"}.get(got, got)
    assert ended.errors() == {7: ("ResultError", f'stage "x" returned {alone} for a batch of 1', 2)}


# 69: shared values


@pytest.mark.parametrize("kind", ["async", "thread", "batch", "generator"])
def test_row_69_debug_names_the_stage_that_changes_what_it_shares(kind: str) -> None:
    async def made(n: int) -> dict[str, Any]:
        return {"tags": [n]}

    async def changes(made: Any) -> int:
        made["tags"].append("changed")
        return 1

    def changes_in_thread(made: Any) -> int:
        made["tags"].append("changed")
        return 1

    async def changes_all(made: list[Any]) -> list[int]:
        for each in made:
            each["tags"].append("changed")
        return [1] * len(made)

    async def changes_and_yields(made: Any) -> AsyncIterator[int]:
        made["tags"].append("changed")
        yield 1

    async def reads(made: Any) -> int:
        return len(made["tags"])

    handler = {"thread": changes_in_thread, "batch": changes_all, "generator": changes_and_yields}.get(kind, changes)
    pipeline = Pipeline("shares")
    pipeline.add_stage("made", made)
    pipeline.add_stage("x", handler, depends_on=["made"], **({"batch": Batch(2)} if kind == "batch" else {}))
    pipeline.add_stage("reads", reads)

    ended = run(pipeline, 6, debug=True)
    assert ended.run() == (6, 6, 0, 0, 0, 0)
    assert ended.stage("x") == (6, 6, 0, 0, 0)
    assert ended.heard.warnings == ['stage "x" changed the result of stage "made", which others share: copy it first']
    assert run(pipeline, 6).heard.warnings == []


def test_row_69_the_input_record_is_shared_too() -> None:
    async def x(tags: list[str]) -> None:
        tags.append("changed")

    ended = run(one_stage(x), [{"n": n, "tags": []} for n in range(3)], debug=True)
    assert ended.heard.warnings == ['stage "x" changed the input record, which others share: copy it first']


def test_row_69_the_command_line_and_the_readme_know_of_it(folder: Folder) -> None:
    folder.job(
        """
from stageflow import Pipeline

pipeline = Pipeline("shares")

@pipeline.stage
async def x(n):
    return [n]

@pipeline.stage
async def changes(x):
    x.append(1)
""",
        3,
    )
    finished = folder.run("--debug", "--progress", "off")
    assert finished.code == 0
    assert finished.err.count('stage "changes" changed the result of stage "x"') == 1
    assert "--debug" in (ROOT / "README.md").read_text()


# 70: worker processes


@pytest.mark.parametrize(("how", "said"), [("SIGSEGV", "signal 11"), ("SIGKILL", "signal 9"), ("exit", "exit code 3")])
def test_row_70_a_worker_that_dies_takes_one_record_with_it(how: str, said: str) -> None:
    """Two workers; the record is tried once more, alone in a new process, and the pool is whole afterwards."""
    records = [{"n": n, "how": how if n == 3 else ""} for n in range(12)]

    ended = run(one_stage(crashing_handlers.dies, run="process", max_in_flight=2), records)

    assert ended.run() == (12, 11, 0, 1, 0, 3)
    assert ended.stage("x") == (12, 11, 0, 1, 0)
    assert ended.report.stages["x"].retries == 1
    assert ended.errors() == {3: ("WorkerDied", f"worker died: {said}", 2)}
    processes = {record["x"] for record in ended.written}
    assert 1 <= len(processes) <= 4, "two at first, and one for each that died"


def test_row_70_one_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    records = [{"n": n, "mark": str(tmp_path / "died") if n == 1 else ""} for n in range(4)]

    ended = run(one_stage(crashing_handlers.dies_once, run="process", max_in_flight=1), records)

    assert ended.run() == (4, 4, 0, 0, 0, 0)
    assert ended.report.stages["x"].retries == 1


def test_row_70_five_deaths_in_ten_seconds_stop_the_run() -> None:
    """Nothing is wrong with the records then: the last one is not done, rather than dead."""
    records = [{"n": n, "how": "SIGSEGV"} for n in range(20)]

    ended = run(one_stage(crashing_handlers.dies, run="process", max_in_flight=1), records)

    assert ended.report.exit_code == 4
    assert ended.report.stopped == 'stage "x": 5 worker processes died within 10 s'
    assert ended.report.not_done >= 1
    assert set(ended.errors().values()) <= {("WorkerDied", "worker died: signal 11", 2)}
    assert len(ended.dead) <= 2


def test_row_70_deaths_far_apart_do_not() -> None:
    """One every four seconds: never five within ten."""
    pipeline = one_stage(
        crashing_handlers.dies, run="process", max_in_flight=1, retry=Retry(1), rate_limit=RateLimit(per_second=0.25)
    )
    records = [{"n": n, "how": "SIGSEGV"} for n in range(4)]

    ended = run(pipeline, records)

    assert ended.run() == (4, 0, 0, 4, 0, 3)
    assert set(ended.errors().values()) == {("WorkerDied", "worker died: signal 11", 2)}


# 71: stray tasks


@pytest.mark.parametrize("kind", ["async", "batch", "generator"])
def test_row_71_a_task_that_nobody_awaits_is_heard_when_it_fails(kind: str) -> None:
    async def stray(n: int) -> None:
        raise ValueError(f"stray {n}")

    def start(n: int) -> None:
        asyncio.get_running_loop().create_task(stray(n))

    async def x(n: int) -> int:
        start(n)
        await asyncio.sleep(1)
        return n

    async def batch(n: list[int]) -> list[int]:
        start(n[0])
        await asyncio.sleep(1)
        return n

    async def yields(n: int) -> AsyncIterator[int]:
        start(n)
        await asyncio.sleep(1)
        yield n

    handlers: dict[str, Any] = {"async": x, "batch": batch, "generator": yields}
    settings: dict[str, Any] = {"batch": Batch(1)} if kind == "batch" else {}
    ended = run(one_stage(handlers[kind], max_in_flight=1, **settings), 2)

    assert ended.run() == (2, 2, 0, 0, 0, 0)
    name = "test_row_71_a_task_that_nobody_awaits_is_heard_when_it_fails.<locals>.stray"
    assert ended.heard.warnings == [
        f'stage "x": its task {name} failed, and nobody asked for it: ValueError: stray {n}' for n in range(2)
    ]


STRAY = """
import asyncio
from stageflow import Pipeline

pipeline = Pipeline("stray")

async def fails():
    raise ValueError("unheard")

@pipeline.stage
async def x(n):
    asyncio.get_running_loop().create_task(fails())
    await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_71_on_stderr_it_is_a_warning(folder: Folder, loop: str) -> None:
    folder.job(STRAY)
    finished = folder.run("--loop", loop)
    assert finished.code == 0
    said = 'warning: stage "x": its task fails failed, and nobody asked for it: ValueError: unheard'
    assert finished.err.count(said) == 1
    assert "Traceback" not in finished.err


def test_row_71_a_task_that_is_cancelled_before_it_begins_is_none_of_these() -> None:
    async def part() -> None: ...

    async def x(n: int) -> int:
        asyncio.get_running_loop().create_task(part()).cancel()
        await asyncio.sleep(1)
        return n

    ended = run(one_stage(x), 1)
    assert ended.run() == (1, 1, 0, 0, 0, 0)
    assert ended.heard.warnings == []


# 72: standard output


PRINTING = """
import os, subprocess, sys
from stageflow import Pipeline

print("import")
pipeline = Pipeline("prints")

@pipeline.resource
async def opens():
    print("resource")
    yield None
    print("closed")

@pipeline.stage
async def x(n, opens):
    print("print")
    sys.stdout.write("write\\n")
    os.write(1, b"descriptor\\n")
    sys.__stdout__.write("original\\n")
    subprocess.run(["echo", "child"])
    return n

@pipeline.stage(run="process", max_in_flight=1)
def processes(x):
    print("process", flush=True)
    return x
"""


def test_row_72_what_a_job_prints_does_not_get_between_the_records(folder: Folder) -> None:
    folder.job(PRINTING, 5)
    finished = folder.run(output="-")
    assert finished.code == 0
    records = [json.loads(line) for line in finished.out.splitlines()]
    assert sorted(record["processes"] for record in records) == list(range(5))
    for said, times in {"print": 5, "write": 5, "descriptor": 5, "original": 5, "child": 5, "process": 5}.items():
        assert len(re.findall(rf"^{said}$", finished.err, re.MULTILINE)) == times
    for said in ("import", "resource", "closed"):
        assert re.search(rf"^{said}$", finished.err, re.MULTILINE)


# 73: setup and teardown


@pytest.mark.parametrize(
    "error", [ValueError("no model"), SystemExit(0), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_row_73_a_setup_that_fails_refuses_the_run_before_it_reads(error: BaseException) -> None:
    calls: list[int] = []
    closed: list[str] = []

    pipeline = Pipeline("setup")

    @pipeline.resource
    async def first() -> AsyncIterator[None]:
        yield
        closed.append("first")

    @pipeline.resource
    def second(first: None) -> Iterator[None]:
        raise error
        yield

    @pipeline.stage
    async def x(n: int, second: None) -> int:
        calls.append(n)
        return n

    with pytest.raises(DefinitionError) as raised:
        run(pipeline, 3)

    assert raised.value.exit_code == 2
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    assert raised.value.message == f'resource "second" could not be opened: {said}'
    assert calls == []
    assert closed == ["first"]


FRAGILE = """
import pathlib, sys
from stageflow import Pipeline

pipeline = Pipeline("fragile")

@pipeline.resource
async def model():
    SETUP
    yield None
    pathlib.Path("there").write_text(str(pathlib.Path("out.jsonl").exists()))
    TEARDOWN

@pipeline.stage
async def x(n, model):
    if n == 1:
        raise ValueError("no")
    return n
"""


@pytest.mark.parametrize("setup", ["raise ValueError('no model')", "sys.exit(0)"])
def test_row_73_it_is_exit_2_and_no_output_is_made(folder: Folder, setup: str) -> None:
    folder.job(FRAGILE.replace("SETUP", setup), 3)
    finished = folder.run()
    assert finished.code == 2
    assert 'stageflow: error: job.py:7: resource "model" could not be opened: ' in finished.err
    assert "Traceback" not in finished.err
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize("teardown", ["raise ValueError('lost it')", "sys.exit(0)"])
@pytest.mark.parametrize(("records", "code"), [([0, 2], 0), ([0, 1, 2], 3)])
def test_row_73_a_teardown_that_fails_is_a_warning(
    folder: Folder, teardown: str, records: list[int], code: int
) -> None:
    folder.job(FRAGILE.replace("SETUP", "pass").replace("TEARDOWN", teardown), [{"n": n} for n in records])
    finished = folder.run("--summary", "json")
    assert finished.code == code
    assert finished.counts() == (len(records), 2, 0, len(records) - 2, 0)
    said = {"r": "ValueError: lost it", "s": "SystemExit: 0"}[teardown[0]]
    assert f'warning: resource "model" could not be closed: {said}' in finished.err
    assert (folder.path / "there").read_text() == "True", "the output was whole before"
    assert [record["x"] for record in folder.lines("out.jsonl")] == [0, 2]


def test_row_73_what_lives_in_worker_processes(tmp_path: Path) -> None:
    """It is opened with the process, by its first call, and closed when the run ends."""
    pipeline = Pipeline("processes", params={"folder": str(tmp_path)})
    pipeline.resource(scope="process")(crashing_handlers.in_folder)
    pipeline.add_stage("x", crashing_handlers.takes_folder, run="process", max_in_flight=2)

    ended = run(pipeline, 6)

    assert ended.run() == (6, 6, 0, 0, 0, 0)
    names = sorted(path.name for path in tmp_path.iterdir())
    opened = {name.split()[1] for name in names if name.startswith("open")}
    closed = {name.split()[1] for name in names if name.startswith("closed")}
    assert opened == closed
    assert 1 <= len(opened) <= 2


@pytest.mark.parametrize(("how", "said"), [("raise", "LookupError: no model"), ("exit", "SystemExit: no model")])
def test_row_73_one_that_cannot_be_opened_there_refuses_the_run(how: str, said: str) -> None:
    pipeline = Pipeline("processes", params={"how": how})
    pipeline.resource(scope="process")(crashing_handlers.broken)
    pipeline.add_stage("x", crashing_handlers.takes_broken, run="process", max_in_flight=1)

    with pytest.raises(DefinitionError) as raised:
        run(pipeline, 4)

    assert raised.value.exit_code == 2
    assert raised.value.message == f'stage "x": its worker process could not be set up: {said}'
