"""A service by script on the virtual clock, a run against it, and the account that every run must keep."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stageflow import Pipeline, RunReport
from stageflow.events import Event, RunStarted, Snapshot, Warned
from stageflow.testing import run_virtual

__all__ = ["ApiError", "Outcome", "Service", "check_account", "most_in_any", "records", "run", "run_here", "silences"]


class ApiError(Exception):
    """What a client raises for an answer that is no success: with the status and the headers, as httpx has them."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None, code: str | None = None) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = dict(headers or {})
        self.body = {"error": {"code": code}} if code else None


@dataclass
class Service:
    """Counts its calls and answers them by script.

    Args:
        answer: Gets the number of the call, from 1, and the time at which it is answered; returns what to raise.
        seconds: How long a call takes; or a function of its number and the time at which it starts.
    """

    answer: Callable[[int, float], BaseException | None] = lambda number, now: None
    seconds: float | Callable[[int, float], float] = 1.0
    starts: list[float] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)
    in_progress: int = 0

    async def call(self) -> None:
        """One call."""
        clock = asyncio.get_running_loop().time
        self.starts.append(clock())
        number = len(self.starts)
        self.in_progress += 1
        try:
            await asyncio.sleep(self.seconds(number, clock()) if callable(self.seconds) else self.seconds)
            error = self.answer(number, clock())
        finally:
            self.in_progress -= 1
        if error is not None:
            self.failures.append(clock())
            raise error


@dataclass
class Outcome:
    """A run that has ended.

    Args:
        written, dead: The output records and the dead letters.
        events: All that listeners heard.
        ended: When, by the loop's clock.
    """

    report: RunReport
    written: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    events: list[Event]
    ended: float

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    @property
    def state(self) -> Snapshot:
        """As it was left."""
        return next(event.snapshot() for event in self.events if isinstance(event, RunStarted))


class _Ear:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


def records(count: int) -> list[dict[str, Any]]:
    return [{"i": i} for i in range(count)]


async def run_here(pipeline: Pipeline, source: Any, *, listeners: Sequence[Any] = (), **options: Any) -> Outcome:
    """Run on the loop that runs, and check the account."""
    ear = _Ear()
    written: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    report = await pipeline.run(source, written, dead=dead, listeners=[ear, *listeners], **options)
    outcome = Outcome(report, written, dead, ear.events, asyncio.get_running_loop().time())
    check_account(report, written=len(written), dead=len(dead))
    assert all(stage.in_flight == stage.waiting == stage.blocked == 0 for stage in outcome.state.stages)
    return outcome


def run(pipeline: Pipeline, source: Any, *, seed: int | None = None, **options: Any) -> Outcome:
    """Run on a virtual clock, under the schedule of the seed, and check the account."""
    return run_virtual(run_here(pipeline, source, **options), seed=seed, max_steps=50_000_000)


def check_account(report: RunReport, *, written: int, dead: int) -> None:
    """Every item and every record became one thing; without fan-outs each record is one line."""
    for stage in report.stages.values():
        assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled, stage
    assert report.read == report.written + report.dropped + report.dead + report.not_done, report
    assert (report.written, report.dead) == (written, dead)
    assert report.not_done == 0 or report.stopped is not None


def most_in_any(times: Iterable[float], seconds: float) -> int:
    """The most of these times that lie within any ``seconds``, both ends included."""
    ordered, first, most = sorted(times), 0, 0
    for last, time in enumerate(ordered):
        while time - ordered[first] > seconds + 1e-9:
            first += 1
        most = max(most, last - first + 1)
    return most


def silences(times: Iterable[float], seconds: float) -> list[tuple[float, float]]:
    """From when to when nothing happened for at least ``seconds``."""
    ordered = sorted(times)
    return [(a, b) for a, b in itertools.pairwise(ordered) if b - a >= seconds]
