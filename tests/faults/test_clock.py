"""Clocks that jump: a process that stood still for minutes, and a wall clock that is set while a run goes.

Faults 11 and 12, by the numbers in the names of the tests.
"""

from __future__ import annotations

import ast
import asyncio
import email.utils
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from accounts import Folder, until
from service import ApiError, Outcome, Service, most_in_any, records, run_here

import stageflow
from stageflow import Pipeline, RateLimit, Retry
from stageflow.testing import run_virtual

STILL = 120.0
"""Seconds for which the process stands still: it was stopped and continued, or the lid of the laptop was closed."""


def stand_still(loop: asyncio.AbstractEventLoop, seconds: float = STILL) -> None:
    """Let time pass in which nothing runs."""
    loop._now += seconds  # type: ignore[attr-defined]


def run(pipeline: Pipeline, count: int, *, still_at: float | None = None, seed: int | None = None) -> Outcome:
    """Run over so many records, in a process that stands still from ``still_at`` on."""

    async def main() -> Outcome:
        loop = asyncio.get_running_loop()
        if still_at is not None:
            loop.call_at(still_at, stand_still, loop)
        return await run_here(pipeline, records(count))

    return run_virtual(main(), seed=seed, max_steps=50_000_000)


# 11: the process stands still


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_row_11_calls_that_are_over_their_time_when_it_goes_on_are_made_again(seed: int | None) -> None:
    # Those that are in progress then would take longer than the process stands still.
    service, pipeline = Service(seconds=lambda number, now: 1000.0 if 10.0 <= now <= 10.5 else 1.0), Pipeline("still")

    @pipeline.stage(max_in_flight=8, timeout=30, retry=Retry(2, base=4.0))
    async def ask(i: int) -> int:
        await service.call()
        return i

    outcome = run(pipeline, 200, still_at=10.5, seed=seed)
    print(f"seed {seed}: {len(service.starts)} calls, ended at {outcome.ended}")
    assert sorted(record["ask"] for record in outcome.written) == list(range(200))
    assert (outcome.report.exit_code, outcome.report.stages["ask"].retries) == (0, 8)
    assert len(service.starts) == 208, "only those eight that were in progress"
    assert outcome.ended < 10.5 + STILL + 200 / 8 + 10


def test_row_11_calls_that_have_time_left_go_on_as_if_nothing_had_been() -> None:
    service, pipeline = Service(seconds=1.0), Pipeline("still")

    @pipeline.stage(max_in_flight=8, timeout=600, retry=2)
    async def ask(i: int) -> int:
        await service.call()
        return i

    outcome = run(pipeline, 200, still_at=10.5)
    assert (outcome.report.exit_code, outcome.report.stages["ask"].retries, len(service.starts)) == (0, 0, 200)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_row_11_calls_that_expired_together_do_not_come_back_together(seed: int | None) -> None:
    service, pipeline = Service(seconds=lambda number, now: 1000.0 if now < 1.0 else 5.0), Pipeline("still")

    @pipeline.stage(max_in_flight=64, timeout=30, retry=Retry(2, base=20.0))
    async def ask(i: int) -> int:
        await service.call()
        return i

    outcome = run(pipeline, 64, still_at=1.0, seed=seed)
    again = [start for start in service.starts if start > STILL]
    print(f"seed {seed}: {sorted(again)}")
    assert (outcome.report.exit_code, len(again)) == (0, 64)
    assert 1.0 + STILL <= min(again) <= max(again) <= 1.0 + STILL + 20.0
    assert most_in_any(again, 1.0) <= 16, "of 64 over twenty seconds"


@pytest.mark.parametrize("timeout", [30.0, 600.0])
@pytest.mark.parametrize(
    ("limit", "rate", "burst"),
    [
        (RateLimit(per_second=5), 5.0, 5),
        (RateLimit(per_second=2, burst=20), 2.0, 20),
        (RateLimit(per_minute=30), 0.5, 1),
    ],
    ids=repr,
)
def test_row_11_a_limit_saves_up_no_more_than_its_burst(
    limit: RateLimit, rate: float, burst: float, timeout: float
) -> None:
    service, pipeline = Service(seconds=3.0), Pipeline("still")

    @pipeline.stage(max_in_flight=32, timeout=timeout, rate_limit=limit, retry=Retry(3, base=1.0))
    async def ask(i: int) -> int:
        await service.call()
        return i

    outcome = run(pipeline, 100, still_at=7.25)
    assert outcome.report.exit_code == 0
    assert sorted(record["ask"] for record in outcome.written) == list(range(100))
    for window in (0.0, 0.5, 1.0, 5.0, 30.0):
        assert most_in_any(service.starts, window) <= rate * window + burst + 1e-6


def test_row_11_the_call_that_waited_for_its_permit_is_one_of_the_burst() -> None:
    service, pipeline = Service(seconds=3.0), Pipeline("still")

    @pipeline.stage(max_in_flight=32, rate_limit=RateLimit(per_second=5))
    async def ask(i: int) -> int:
        await service.call()
        return i

    run(pipeline, 100, still_at=7.25)
    assert most_in_any(service.starts, 0.0) <= 5


STOPPED = """
import asyncio, time
from stageflow import Pipeline, RateLimit, Retry

pipeline = Pipeline("stopped")

@pipeline.stage(max_in_flight=8, timeout=1.0, rate_limit=RateLimit(per_second=20, burst=2), retry=Retry(3, base=0.5))
async def x(n):
    with open("starts.txt", "a") as starts:
        print(n, time.monotonic(), file=starts)
    await asyncio.sleep(0.3)
    return n
"""


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_row_11_a_process_that_is_stopped_and_continued(folder: Folder, loop: str) -> None:
    folder.job(STOPPED, 100)
    process = folder.start("--loop", loop, "--summary", "json")
    log = folder.path / "starts.txt"

    def starts() -> list[tuple[int, float]]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(n), float(at)) for n, at in (line.split() for line in lines)]

    until(lambda: len(starts()) >= 30)
    process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: time.monotonic() > stopped + 5.0)
    process.send_signal(signal.SIGCONT)
    done = folder.end(process)
    assert done.code == 0, done.err
    assert done.counts() == (100, 100, 0, 0, 0)
    assert sorted(line["x"] for line in folder.lines("out.jsonl")) == list(range(100))
    assert done.summary()["stages"]["x"]["retries"] >= 1, "what was in progress was over its time"
    after = [at for _, at in starts() if at > stopped + 4.0]
    for window in (0.1, 0.25, 0.5, 1.0):
        # One more than the limit says: a line of the log is written a little after the call has begun.
        assert most_in_any(after, window) <= 20 * window + 2 + 1


# 12: the wall clock is set


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is an hour off, in one direction or the other, whenever it is read."""
    real, draw = time.time, random.Random(12)
    monkeypatch.setattr(time, "time", lambda: real() + draw.choice([-3600.0, 0.0, 3600.0]))


def busy(service: Service) -> Pipeline:
    """A job with a timeout, retries, a limit, and a batch that waits for more."""
    pipeline = Pipeline("busy")

    @pipeline.stage(max_in_flight=8, timeout=2.0, retry=Retry(3, base=0.0, cap=0.0))
    async def ask(i: int) -> int:
        await service.call()
        return i

    @pipeline.stage(rate_limit=RateLimit(per_second=4), batch=stageflow.Batch(3, within=0.5))
    async def gather(ask: list[int]) -> list[int]:
        return ask

    return pipeline


def scenario() -> tuple[list[float], float, list[Any]]:
    """When calls began, when the run ended, and what it wrote."""
    slow = Service(
        lambda number, now: ApiError(503) if number % 7 == 0 else None,
        seconds=lambda number, now: 5.0 if number % 11 == 0 else 0.3,
    )
    outcome = run(busy(slow), 60)
    assert outcome.report.exit_code == 0
    return slow.starts, outcome.ended, outcome.written


def test_row_12_a_run_takes_the_same_course_whatever_the_wall_clock_does(request: pytest.FixtureRequest) -> None:
    undisturbed = scenario()
    request.getfixturevalue("jumping")
    assert scenario() == undisturbed


def stamp(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


@pytest.mark.usefixtures("jumping")
@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "30"}, {"Date": stamp(1.7e9), "Retry-After": stamp(1.7e9 + 30)}],
    ids=["seconds", "a date"],
)
def test_row_12_a_pause_that_a_service_asks_for_is_by_its_own_clock(headers: dict[str, str]) -> None:
    service, pipeline = Service(lambda number, now: ApiError(429, headers) if number == 1 else None), Pipeline("asked")

    @pipeline.stage(max_in_flight=1, retry=3)
    async def ask(i: int) -> int:
        await service.call()
        return i

    outcome = run(pipeline, 3)
    assert outcome.report.exit_code == 0
    assert service.starts[0] == 0.0
    assert 31.0 <= service.starts[1] <= 34.0


WALL_CLOCKS = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "asctime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def wall_clocks(text: str) -> list[int]:
    """The lines on which a wall clock is read for anything but a date that a service sent."""
    tree = ast.parse(text)
    dates = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "wall_clock"]
    allowed = {id(inner) for date in dates for inner in ast.walk(date)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for alias in node.names if alias.name in WALL_CLOCKS["time"]]
        if isinstance(node, ast.Attribute) and id(node) not in allowed:
            owner = ast.unparse(node.value).rpartition(".")[2]
            found += [node.lineno] if node.attr in WALL_CLOCKS.get(owner, ()) else []
    return found


TIMED = sorted(
    path.relative_to(Path(stageflow.__file__).parent).as_posix()
    for part in ("engine/*.py", "policies/*.py", "channel.py")
    for path in Path(stageflow.__file__).parent.glob(part)
)


@pytest.mark.parametrize("module", TIMED)
def test_row_12_what_waits_and_what_decides_reads_no_wall_clock(module: str) -> None:
    assert wall_clocks((Path(stageflow.__file__).parent / module).read_text()) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import time\nx = time.time()\n", [2]),
        ("import time\nclock = time.time\n", [2]),
        ("from time import time\n", [1]),
        ("import datetime\n\nat = datetime.datetime.now(datetime.UTC)\n", [3]),
        ("from datetime import datetime\nat = datetime.utcnow()\n", [2]),
        ("import time\nretry_after(error, wall_clock=time.time())\nx = time.monotonic()\n", []),
        ("import time\nretry_after(error, wall_clock=0.0, seconds=time.time())\n", [2]),
    ],
)
def test_row_12_a_wall_clock_would_be_found(text: str, lines: list[int]) -> None:
    assert wall_clocks(text) == lines
