"""Signals to a real process: each is sent when what it is to meet is seen to have begun."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Running
from workbench import Folder

# Even records are done at once; odd ones wait until the file `go` appears, or for ever.
JOB = """
import asyncio, os, time
from pathlib import Path
from stageflow import Pipeline

pipeline = Pipeline("waits")

def begun(x):
    Path(f"begun{x}").touch()

@pipeline.stage(max_in_flight=8)
async def patient(x):
    begun(x)
    while x % 2 and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return x

threads = Pipeline("threads")

@threads.stage(max_in_flight=8)
def hangs(x):
    begun(x)
    while x % 2:
        time.sleep(3600)
    return x

blocks = Pipeline("blocks")

@blocks.stage(run="inline")
def stands(x):
    begun(x)
    while x % 2:
        time.sleep(3600)
    return x

opening = Pipeline("opening")

@opening.resource
async def client():
    begun("the resource")
    await asyncio.sleep(3600)

@opening.stage
async def never(x, client): ...

processes = Pipeline("processes")

@processes.stage(run="process", max_in_flight=4)
def away(x):
    begun(x)
    while x % 2:
        time.sleep(3600)
    return x
"""
RECORDS = 200
"""More than are open at a time, so that a run that goes on reading would be seen."""


@pytest.fixture
def waits(folder: Folder, start: Callable[..., Running]) -> Callable[..., Running]:
    """Start a pipeline of the job; comes back when its first records have begun and the even ones are written."""
    folder.write("waits.py", JOB)
    folder.write("many.jsonl", "".join(f'{{"x": {number}}}\n' for number in range(RECORDS)))

    def begin(pipeline: str = "pipeline", *arguments: str, written: int = 4, **options: object) -> Running:
        command = ["run", f"waits.py:{pipeline}", "many.jsonl", "-o", "out.jsonl", "--progress", "log"]
        running = start(*command, "--max-open-records", "8", *arguments, **options)
        partial = folder.path / "out.jsonl.partial"
        if written:
            running.until(lambda: partial.exists() and len(partial.read_bytes().splitlines()) >= written)
        return running

    return begin


def written(name: str = "out.jsonl.partial") -> list[int]:
    return [json.loads(line)["x"] for line in Path(name).read_text().splitlines()]


def begun() -> int:
    return sum(name.startswith("begun") for name in os.listdir())


def test_one_interrupt_finishes_what_is_in_flight(folder: Folder, waits: Callable[..., Running]) -> None:
    running = waits()
    running.until(lambda: begun() >= 16)  # eight odd ones hold all open records
    running.signal(signal.SIGINT)
    running.until_it_says(
        "stageflow: stopping: finishing 8 records in flight (20 s), press Ctrl-C again to cancel them\n"
    )
    folder.write("go", "")
    assert running.ends() == 130
    assert sorted(written()) == list(range(begun()))
    assert running.err.endswith(
        f"stageflow: stopped: {begun()} of ~{RECORDS} done; resume with the same command\n"
        "  hint: stageflow run waits.py:pipeline many.jsonl -o out.jsonl --progress log --max-open-records 8\n"
    )
    assert "Traceback" not in running.err
    assert not os.path.exists("out.jsonl")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_second_signal_cancels_and_keeps_what_was_done(
    waits: Callable[..., Running], number: signal.Signals, code: int
) -> None:
    running = waits()
    running.until(lambda: begun() >= 16)
    running.signal(number)
    running.until_it_says("stopping: finishing 8 records in flight")
    sent = time.monotonic()
    running.signal(number)
    assert running.ends() == code
    assert time.monotonic() - sent < 2.0
    assert all(x % 2 == 0 for x in written())
    assert len(written()) == begun() - 8
    assert f"stopped: {len(written())} of ~{RECORDS} done; resume with the same command\n" in running.err
    assert "Traceback" not in running.err


def test_the_grace_period_ends_by_itself(waits: Callable[..., Running]) -> None:
    running = waits("pipeline", "--grace", "0.2")
    running.until(lambda: begun() >= 16)
    running.signal(signal.SIGTERM)
    assert running.ends() == 143
    assert all(x % 2 == 0 for x in written())


@pytest.mark.parametrize("pipeline", ["threads", "processes"])
def test_a_hung_thread_does_not_keep_the_process(waits: Callable[..., Running], pipeline: str) -> None:
    running = waits(pipeline, written=2)
    running.signal(signal.SIGINT)
    running.until_it_says("stopping: finishing")
    sent = time.monotonic()
    running.signal(signal.SIGINT)
    assert running.ends() == 130
    assert time.monotonic() - sent < 2.0
    assert all(x % 2 == 0 for x in written())
    assert "Traceback" not in running.err


def test_a_third_interrupt_ends_a_process_whose_loop_is_blocked(waits: Callable[..., Running]) -> None:
    running = waits("blocks", written=0)
    running.until(lambda: os.path.exists("begun1"))
    # Signals that come at once are one, so each is sent until it is seen that the third one was enough.
    deadline = time.monotonic() + 10
    while running.process.poll() is None and time.monotonic() < deadline:
        running.signal(signal.SIGINT)
        time.sleep(0.01)
    assert running.ends() == 130
    assert "Traceback" not in running.err


def test_interrupts_while_resources_are_opened(waits: Callable[..., Running]) -> None:
    running = waits("opening", written=0)
    running.until(lambda: os.path.exists("begunthe resource"))
    running.signal(signal.SIGINT)
    running.until_it_says("stopping")
    running.signal(signal.SIGINT)
    assert running.ends(2.0) == 130


def ignore_hang_up() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_hang_up_that_was_ignored_at_the_start_still_is(folder: Folder, waits: Callable[..., Running]) -> None:
    running = waits(preexec_fn=ignore_hang_up)
    running.signal(signal.SIGHUP)
    folder.write("go", "")
    assert running.ends() == 0
    assert written("out.jsonl") == list(range(RECORDS))


def test_the_same_command_goes_on_with_an_interrupted_run(folder: Folder, waits: Callable[..., Running]) -> None:
    running = waits()
    running.signal(signal.SIGINT)
    running.until_it_says("stopping: finishing")
    running.signal(signal.SIGINT)
    assert running.ends() == 130
    before = written()
    folder.write("go", "")
    for name in [name for name in os.listdir() if name.startswith("begun")]:
        os.unlink(name)
    command = ["run", "waits.py:pipeline", "many.jsonl", "-o", "out.jsonl", "--progress", "off"]
    told = folder.stageflow(*command)
    assert told.code == 0
    assert told.error[0] == f"stageflow: resuming: {len(before)} records done before"
    assert f"{RECORDS} read = {RECORDS} written" in told.err
    assert f"{len(before)} of them in earlier runs" in told.err
    assert written("out.jsonl") == list(range(RECORDS))
    assert begun() == RECORDS - len(before), "what was done is not done again"
    told = folder.stageflow(*command)
    assert (told.code, told.error) == (
        0,
        [f"stageflow: already complete: {RECORDS} inputs, {RECORDS} results, 0 dead letters"],
    )


def test_a_partial_output_without_its_ledger_is_not_written_over(folder: Folder) -> None:
    folder.write("out.jsonl.partial", "precious\n")
    told = folder.stageflow("run", "job.py", "good.jsonl", "-o", "out.jsonl")
    assert (told.code, len(told.error)) == (2, 2)
    assert "out.jsonl.partial exists and was not written by stageflow, or its ledger is gone" in told.error[0]
    assert folder.read("out.jsonl.partial") == "precious\n"


def test_an_interrupt_while_the_input_is_waited_for(folder: Folder, start: Callable[..., Running]) -> None:
    reading, writing = os.pipe()
    running = start("run", "job.py", "-", "-o", "out.jsonl", "--progress", "log", stdin=reading)
    os.close(reading)
    os.write(writing, b'{"x": 1}\n')
    partial = folder.path / "out.jsonl.partial"
    running.until(lambda: partial.exists() and partial.stat().st_size > 0)
    running.signal(signal.SIGINT)
    assert running.ends(2.0) == 130
    os.close(writing)
    assert written() == [1]
    assert "Traceback" not in running.err
