"""What the benchmarks share: timing in turns, ratios, tables, the JSON line, and the pipelines written by hand.

The rules of a comparison:

* Everybody solves the same task in the same process, and every answer is checked: in a run before anything is timed,
  where runs are short enough to have one more, and after each timed run, outside the time.
* Contenders run in turns, and each second round runs backwards, so that a machine that slows down slows all of them.
* The result is a ratio: the median over the rounds of one contender's figure over another's in the same round. So what
  happened to the machine between two rounds cancels out.
* What an engine costs is told in CPU time of the process; what a stage that sleeps attains, in wall time.

``--quick`` has fewer records and rounds, for CI: there a bound on a ratio is missed only below :data:`SLACK` of it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

__all__ = [
    "SLACK",
    "Bound",
    "Goal",
    "Report",
    "Settings",
    "Step",
    "WrongAnswer",
    "argument_parser",
    "bare_loop",
    "bar",
    "event_per_step",
    "hand_tuned",
    "hand_written",
    "in_turns",
    "parse",
    "cpu",
    "ratio",
    "record",
    "run_script",
    "settings_of",
    "timed",
    "write_records",
]

T = TypeVar("T")
Item = dict[str, Any]
Work = Callable[[Item], Awaitable[None]]
Mode = Literal["full", "quick", "tiny"]

SLACK: Final = 0.85
"""The part of a bound that is enough in a quick run: its few short rounds are at the mercy of the neighbours."""


class WrongAnswer(Exception):
    """A contender did not solve its task, so how fast it was means nothing."""


# What a script is told


@dataclass(frozen=True, slots=True)
class Settings:
    """How a script was called.

    Args:
        mode: ``"tiny"`` is for the tests: it checks the answers, and no bound.
        loop: ``"asyncio"`` or ``"uvloop"``.
    """

    mode: Mode
    loop: str

    def size(self, full: T, quick: T, tiny: T) -> T:
        """What belongs to the mode."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.mode]

    def new_loop(self) -> asyncio.AbstractEventLoop:
        if self.loop == "uvloop":
            import uvloop

            return uvloop.new_event_loop()
        return asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on a new loop of the kind asked for."""
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(work)


def parse(document: str | None, argv: Sequence[str] | None = None) -> Settings:
    """Read the arguments that all scripts have; ``document`` is the script's docstring."""
    return settings_of(argument_parser(document).parse_args(argv))


def argument_parser(document: str | None) -> argparse.ArgumentParser:
    """For a script that adds arguments of its own."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", dest="mode", action="store_const", const="quick", help="seconds rather than minutes")
    mode.add_argument("--tiny", dest="mode", action="store_const", const="tiny", help=argparse.SUPPRESS)
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    )
    return parser


def settings_of(given: argparse.Namespace) -> Settings:
    return Settings(given.mode or "full", given.loop)


# Measuring


def timed(run: Callable[[], T], check: Callable[[T], None], clock: Callable[[], float]) -> float:
    """Seconds of ``clock`` that ``run`` takes, after the garbage of others was collected; its answer is checked."""
    gc.collect()
    start = clock()
    answer = run()
    seconds = clock() - start
    check(answer)
    return seconds


def in_turns(contenders: Mapping[str, Callable[[], T]], *, rounds: int, warm_up: bool = True) -> dict[str, list[T]]:
    """Let each contender run once per round; return what they returned, by name and in the order of the rounds.

    Args:
        contenders: By name what measures itself, and checks its answer.
        rounds: At least five for a figure to be quoted.
        warm_up: Run each once before, for its check alone: nothing wrong is ever timed.
    """
    if warm_up:
        for run in contenders.values():
            run()
    figures: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in reversed(list(contenders)) if number % 2 else contenders:
            figures[name].append(contenders[name]())
    return figures


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# Telling


@dataclass(frozen=True, slots=True)
class Bound:
    """A promise: ``value`` is at least ``limit``, or at most where ``at_most``."""

    what: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{'met' if self.met else 'MISSED'}: {self.what} {self.value:.2f} {sign} {self.limit:.2f}"

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": round(self.value, 4), "limit": self.limit, "met": self.met}


@dataclass(frozen=True, slots=True)
class Goal(Bound):
    """Where ``value`` is to get to. Until it is there, that is said and is no failure; then it becomes a bound."""

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"goal {'reached' if self.met else 'not reached'}: {self.what} {self.value:.2f} {sign} {self.limit:.2f}"


@dataclass(slots=True)
class Report:
    """Collects rows and bounds; :meth:`finish` prints them.

    Args:
        name: The script's.
        columns: By heading how a value is shown, as a format specification.
    """

    name: str
    settings: Settings
    columns: Mapping[str, str]
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def row(self, **values: Any) -> None:
        """Add a row; a heading's blanks are underscores, and what is not among the columns is for the JSON line."""
        self.rows.append({name.replace("_", " "): value for name, value in values.items()})

    def at_least(self, what: str, value: float, limit: float) -> None:
        """Promise that ``value`` is ``limit`` or more; in a quick run, :data:`SLACK` of it."""
        self._promise(Bound(what, value, limit * self.settings.size(1.0, SLACK, 1.0)))

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Promise that ``value`` is ``limit`` or less, in a quick run too."""
        self._promise(Bound(what, value, limit, at_most=True))

    def goal(self, what: str, value: float, limit: float, *, at_most: bool = False) -> None:
        """Tell whether ``value`` is where it is to get to; neither answer changes the exit code."""
        if self.settings.mode != "tiny":
            self.goals.append(Goal(what, value, limit, at_most))

    def _promise(self, bound: Bound) -> None:
        if self.settings.mode != "tiny":
            self.bounds.append(bound)

    def finish(self, note: str = "") -> int:
        """Print the table, bounds, goals and the JSON line; return the exit code: 1 where a bound was missed."""
        print(f"\n{self.name} ({self.settings.mode}, {self.settings.loop})" + (f": {note}" if note else ""))
        print(_table(self.columns, self.rows))
        for bound in (*self.bounds, *self.goals):
            print(bound)
        print(json.dumps(self._document()))
        return int(not all(bound.met for bound in self.bounds))

    def _document(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "mode": self.settings.mode,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "loop": self.settings.loop,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "rows": [
                {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
                for row in self.rows
            ],
            "bounds": [bound.as_json() for bound in self.bounds],
            "goals": [goal.as_json() for goal in self.goals],
        }


def bar(share: float, width: int = 30) -> str:
    """A bar of text for a share from 0 to 1."""
    return "#" * round(min(max(share, 0.0), 1.0) * width)


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [format(row[name], form) if row.get(name) is not None else "" for name, form in columns.items()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    # Text stands on the left, numbers on the right.
    sides = ["<" if not form else ">" for form in columns.values()]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in [list(columns), *cells]
    )


# Input


_NOTES: Final = "what an editor said about the question and what the last reader answered to it; " * 3


def record(n: int) -> Item:
    """A record of about 320 bytes as JSON."""
    return {"id": f"record-{n:08}", "query": f"what is the answer to {n}?", "notes": _NOTES, "n": n}


def write_records(path: str | os.PathLike[str], records: int) -> None:
    """Write a file of JSON lines, one :func:`record` each."""
    with open(path, "w", encoding="ascii") as file:
        file.writelines(json.dumps(record(n)) + "\n" for n in range(records))


# The same pipelines, written by hand


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a pipeline written by hand: ``work`` fills in what it has to say in an item."""

    work: Work
    workers: int


_STOP: Final[Any] = object()


async def hand_written(
    source: Iterable[Item], steps: Sequence[Step], queue_size: int, take: Callable[[Item], object]
) -> None:
    """A pipeline of worker pools over ``asyncio.Queue(maxsize)`` with sentinels, as an expert writes it in a script.

    No retries, no dead letters, no account, no report: the first error ends it.
    """
    queues: list[asyncio.Queue[Item]] = [asyncio.Queue(queue_size) for _ in steps]

    async def worker(work: Work, inbox: asyncio.Queue[Item], outbox: asyncio.Queue[Item]) -> None:
        while (item := await inbox.get()) is not _STOP:
            await work(item)
            await outbox.put(item)

    async def last_worker(work: Work, inbox: asyncio.Queue[Item]) -> None:
        while (item := await inbox.get()) is not _STOP:
            await work(item)
            take(item)

    async def pool(number: int) -> None:
        step, inbox = steps[number], queues[number]
        after = number + 1
        async with asyncio.TaskGroup() as workers:
            for _ in range(step.workers):
                if after < len(steps):
                    workers.create_task(worker(step.work, inbox, queues[after]))
                else:
                    workers.create_task(last_worker(step.work, inbox))
        if after < len(steps):
            await stop(after)

    async def stop(number: int) -> None:
        for _ in range(steps[number].workers):
            await queues[number].put(_STOP)

    async with asyncio.TaskGroup() as pools:
        for number in range(len(steps)):
            pools.create_task(pool(number))
        for item in source:
            await queues[0].put(item)
        await stop(0)


async def hand_tuned(
    source: Iterable[Item], steps: Sequence[Step], queue_size: int, take: Callable[[Item], object]
) -> None:
    """As :func:`hand_written`, but nobody awaits a queue that has an item, or room, at once."""
    queues: list[asyncio.Queue[Item]] = [asyncio.Queue(queue_size) for _ in steps]

    async def worker(work: Work, inbox: asyncio.Queue[Item], outbox: asyncio.Queue[Item]) -> None:
        while True:
            item = await inbox.get() if inbox.empty() else inbox.get_nowait()
            if item is _STOP:
                return
            await work(item)
            if outbox.full():
                await outbox.put(item)
            else:
                outbox.put_nowait(item)

    async def last_worker(work: Work, inbox: asyncio.Queue[Item]) -> None:
        while True:
            item = await inbox.get() if inbox.empty() else inbox.get_nowait()
            if item is _STOP:
                return
            await work(item)
            take(item)

    async def pool(number: int) -> None:
        step, inbox = steps[number], queues[number]
        after = number + 1
        async with asyncio.TaskGroup() as workers:
            for _ in range(step.workers):
                if after < len(steps):
                    workers.create_task(worker(step.work, inbox, queues[after]))
                else:
                    workers.create_task(last_worker(step.work, inbox))
        if after < len(steps):
            await stop(after)

    async def stop(number: int) -> None:
        for _ in range(steps[number].workers):
            await queues[number].put(_STOP)

    async with asyncio.TaskGroup() as pools:
        for number in range(len(steps)):
            pools.create_task(pool(number))
        first = queues[0]
        for item in source:
            if first.full():
                await first.put(item)
            else:
                first.put_nowait(item)
        await stop(0)


async def event_per_step(
    source: Iterable[Item],
    steps: Mapping[str, tuple[Work, Sequence[str]]],
    in_flight: int,
    take: Callable[[Item], object],
) -> None:
    """The engine of many an article: a task and an ``asyncio.Event`` per step and record, gathered under a semaphore.

    Args:
        steps: By name, what does the step's work and the names of the steps that it waits for.
        in_flight: Records in progress at once. All of the source is turned into tasks first.
    """
    gate = asyncio.Semaphore(in_flight)

    async def one(item: Item) -> None:
        async with gate:
            finished = {name: asyncio.Event() for name in steps}

            async def step(name: str, work: Work, needs: Sequence[str]) -> None:
                for need in needs:
                    await finished[need].wait()
                await work(item)
                finished[name].set()

            await asyncio.gather(*(step(name, work, needs) for name, (work, needs) in steps.items()))
            take(item)

    await asyncio.gather(*(one(item) for item in source))


async def bare_loop(source: Iterable[Item], works: Sequence[Work], take: Callable[[Item], object]) -> None:
    """One record after another, one ``await`` after another: the limit for anything written in Python."""
    for item in source:
        for work in works:
            await work(item)
        take(item)


def run_script(main: Callable[[], int]) -> None:
    """Exit with what ``main`` returns; with 1 and one line where an answer was wrong."""
    try:
        code = main()
    except WrongAnswer as error:
        print(f"wrong answer: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def cpu(run: Callable[[], T], check: Callable[[T], None]) -> Callable[[], float]:
    """A contender for :func:`in_turns` that is measured in CPU time of the process."""
    return lambda: timed(run, check, time.process_time)
