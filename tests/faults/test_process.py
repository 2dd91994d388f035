"""Signals, kills and closed pipes: faults 5 to 14 and 23, by the numbers in the names of the tests.

Each is sent when what it is to meet is seen to have begun. After each that can be resumed, the same command ends with
what an undisturbed run writes. Kills at random are in ``durable``; the clock is in ``test_limits.py``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from accounts import until
from watched import Runs, Watched

# Even records are done at once; odd ones wait until the file `go` appears.
PATIENT = """
import asyncio, os
from pathlib import Path
from stageflow import Pipeline

pipeline = Pipeline("patient")

@pipeline.stage(max_in_flight=8)
async def wait(n):
    Path(f"begun{n}").touch()
    try:
        while n % 2 and not os.path.exists("go"):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        Path(f"cancelled{n}").touch()
        raise
    return n
"""
OPEN = ("--max-open-records", "8", "--progress", "log")
RECORDS = 40


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    made.job(PATIENT, RECORDS)
    yield made
    made.close()


def full(runs: Runs, *options: str, **given: object) -> Watched:
    """A run whose eight open records are odd ones, which wait."""
    running = runs.start(*OPEN, *options, **given)
    running.until(lambda: runs.begun() >= 16 and len(runs.committed()) == runs.begun() - 8)
    return running


def go_on(runs: Runs, *options: str) -> Watched:
    """The same command again, in a world where nothing waits: it ends as if nothing had happened."""
    (runs.path / "go").touch()
    again = runs.run(*OPEN, *options)
    assert again.process.returncode == 0, again.err
    assert runs.numbers("out.jsonl") == list(range(RECORDS))
    assert "Traceback" not in again.err
    return again


FINISHING = "stageflow: stopping: finishing 8 records in flight (20 s), press Ctrl-C again to cancel them\n"


def test_row_05_one_interrupt_finishes_what_is_in_flight(runs: Runs) -> None:
    running = full(runs)
    running.signal(signal.SIGINT)
    running.until_it_says(FINISHING)
    begun = runs.begun()
    (runs.path / "go").touch()
    assert running.ends() == 130
    assert sorted(runs.numbers()) == sorted(runs.committed()) == list(range(begun))
    told = f"stageflow: stopped: {begun} of ~{RECORDS} done; resume with the same command\n  hint: "
    assert running.err.endswith(told + runs.command(*OPEN) + "\n"), running.err
    assert "Traceback" not in running.err
    assert "without shutdown" not in go_on(runs).err


def test_row_06_a_second_interrupt_cancels_and_keeps_what_was_done(runs: Runs) -> None:
    running = full(runs)
    running.signal(signal.SIGINT)
    running.until_it_says(FINISHING)
    running.signal(signal.SIGINT)
    assert running.ends() == 130
    assert len([name for name in runs.names() if name.startswith("cancelled")]) == 8
    assert all(n % 2 == 0 for n in runs.numbers())
    assert len(runs.numbers()) == runs.begun() - 8
    assert "Traceback" not in running.err
    assert "without shutdown" not in go_on(runs).err


BLOCKED = """
import os, re, time
from pathlib import Path
from stageflow import Pipeline

pipeline = Pipeline("blocked")

@pipeline.stage(run="inline")
def block(n):
    Path(f"begun{n}").touch()
    if n == 1 and not os.path.exists("go"):
        {block}
    return n
"""


@pytest.mark.parametrize(
    "block", ["time.sleep(3600)", 're.match("(a+)+$", "a" * 60 + "b")', "while True: pass"], ids=["C", "regex", "loop"]
)
def test_row_07_a_third_interrupt_ends_a_process_whose_loop_is_blocked(runs: Runs, block: str) -> None:
    runs.job(BLOCKED.replace("{block}", block), RECORDS)
    running = runs.start(*OPEN)
    running.until((runs.path / "begun1").exists)
    # Signals that come at once are one, so each is sent until it is seen that three were enough.
    until(lambda: running.signal(signal.SIGINT) or running.process.poll() is not None)  # type: ignore[func-returns-value]
    assert running.process.returncode == 130
    assert "Traceback" not in running.err
    go_on(runs)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["TERM", "HUP"])
def test_row_08_a_request_to_end_is_met_within_the_grace(runs: Runs, number: signal.Signals, code: int) -> None:
    running = full(runs, "--grace", "1")
    running.signal(number)
    running.until_it_says("stopping: finishing 8 records in flight (1 s)")
    assert running.ends() == code  # by itself: the odd ones would wait for ever
    assert len(runs.numbers()) == runs.begun() - 8
    assert "resume with the same command" in running.err
    go_on(runs)


def test_row_08_a_hang_up_that_was_ignored_at_the_start_still_is(runs: Runs) -> None:
    running = full(runs, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None)
    running.signal(signal.SIGHUP)
    (runs.path / "go").touch()
    assert running.ends() == 0
    assert runs.numbers("out.jsonl") == list(range(RECORDS))


def test_row_09_a_resume_tells_of_a_run_that_was_killed(runs: Runs) -> None:
    """Whoever killed it: the kernel, short of memory, kills the same way."""
    running = full(runs, "--fsync", "interval=0.01")
    settled = len(runs.committed())
    running.until(lambda: b'"t":"s","o":%d' % (runs.path / "out.jsonl.partial").stat().st_size in ledger(runs))
    running.process.kill()
    assert running.ends() == -signal.SIGKILL
    told = go_on(runs, "--fsync", "interval=0.01").err
    assert f"stageflow: resuming: {settled} records done before\n" in told
    assert (
        f"stageflow: note: the previous run ended without shutdown at {settled} records; its peak memory was " in told
    )


def ledger(runs: Runs) -> bytes:
    return (runs.path / "out.jsonl.ledger").read_bytes()


def test_row_11_a_process_that_was_stopped_for_a_while_goes_on(runs: Runs) -> None:
    running = full(runs)
    running.signal(signal.SIGSTOP)
    state = Path(f"/proc/{running.process.pid}/stat")
    until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    (runs.path / "go").touch()
    running.signal(signal.SIGCONT)
    assert running.ends() == 0
    assert runs.numbers("out.jsonl") == list(range(RECORDS))


def test_row_13_standard_output_closed_early(runs: Runs) -> None:
    running = runs.start(*OPEN, output="-", stdout=subprocess.PIPE)
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == b'{"n":0,"wait":0}\n'
    running.process.stdout.close()
    (runs.path / "go").touch()
    assert running.ends() == 141
    first, last = running.err.splitlines()
    assert re.fullmatch(r"stageflow: error: stdout closed after \d+ records", first)
    assert last == "  hint: use -o FILE to be able to resume"
    assert not any(name.startswith("-") or "jsonl" in name for name in runs.names())


@pytest.mark.parametrize("progress", ["auto", "bar", "log"])
def test_row_14_standard_error_closed(runs: Runs, progress: str) -> None:
    (runs.path / "go").touch()
    done = runs.run("--progress", progress, preexec_fn=lambda: os.close(2))
    assert done.process.returncode == 0
    assert runs.numbers("out.jsonl") == list(range(RECORDS))
    assert b"stageflow: " not in (runs.path / "out.jsonl").read_bytes() + ledger(runs)


def test_row_14_no_control_codes_where_standard_error_is_no_terminal(runs: Runs) -> None:
    (runs.path / "go").touch()
    done = runs.run()
    assert done.process.returncode == 0
    assert not {"\r", "\x1b"} & set(done.err)


WORKERS = """
import os, time
from pathlib import Path
from stageflow import Pipeline

pipeline = Pipeline("workers")

@pipeline.stage(run="process", max_in_flight=2)
def wait(n):
    Path(f"begun{n}").touch()
    Path(f"worker{os.getpid()}").touch()
    while n >= 10 and not os.path.exists("go"):
        time.sleep(0.01)
    return n
"""


@pytest.fixture
def bereft(runs: Runs) -> Iterator[list[Path]]:
    """The two workers of a run that was killed while both were in a call that goes on until `go` appears."""
    runs.job(WORKERS, RECORDS)
    running = runs.start(*OPEN)
    running.until(lambda: len(runs.committed()) == 10 and runs.begun() == 12)
    workers = [int(name.removeprefix("worker")) for name in runs.names() if name.startswith("worker")]
    assert len(workers) == 2
    running.process.kill()
    running.ends()
    yield [Path(f"/proc/{pid}/exe") for pid in workers]
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_row_23_workers_of_a_killed_run_do_not_hold_its_lock(runs: Runs, bereft: list[Path]) -> None:
    again = runs.start(*OPEN)
    again.until_it_says("stageflow: resuming: 10 records done before\n")
    (runs.path / "go").touch()
    assert again.ends() == 0
    assert runs.numbers("out.jsonl") == list(range(RECORDS))


def test_row_23_workers_end_with_a_killed_parent(bereft: list[Path]) -> None:
    until(lambda: not any(worker.exists() for worker in bereft), within=3.0)
