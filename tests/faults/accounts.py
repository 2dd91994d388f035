"""A run as its user sees it: the report, what was written and said, and when it ended. Its account must balance."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stageflow
from stageflow import Pipeline, RunReport
from stageflow.events import Event, RecordDead, StopRequested, Warned
from stageflow.testing import run_virtual

ROOT = Path(stageflow.__file__).parents[1]


def assert_balanced(report: RunReport) -> None:
    """Every record and every item of every stage has become exactly one thing."""
    assert report.read == report.written + report.dropped + report.dead + report.not_done
    for stage in report.stages.values():
        assert stage.received == stage.passed + stage.dropped + stage.dead + stage.cancelled, stage


@dataclass
class Heard:
    """What a listener was told."""

    also: Callable[[Event], None]
    warnings: list[str] = field(default_factory=list)
    stops: list[StopRequested] = field(default_factory=list)
    letters: int = 0

    def on_event(self, event: Event) -> None:
        self.also(event)
        if isinstance(event, Warned):
            self.warnings.append(event.message)
        elif isinstance(event, StopRequested):
            self.stops.append(event)
        elif isinstance(event, RecordDead):
            self.letters += 1


@dataclass
class Ended:
    """A run that has ended.

    Attributes:
        seconds: When, on the virtual clock.
        at: When each output record was written, by its field ``n``.
    """

    report: RunReport
    written: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    heard: Heard
    seconds: float
    at: dict[Any, float]

    def run(self) -> tuple[int, ...]:
        """``read, written, dropped, dead, not_done, exit_code``"""
        r = self.report
        return (r.read, r.written, r.dropped, r.dead, r.not_done, r.exit_code)

    def stage(self, name: str) -> tuple[int, ...]:
        """``received, passed, dropped, dead, cancelled``"""
        s = self.report.stages[name]
        return (s.received, s.passed, s.dropped, s.dead, s.cancelled)

    def errors(self) -> dict[int, tuple[str, str, int]]:
        """Of each dead letter, by its record's index: type, message, attempts. One letter per record."""
        found = {d["index"]: (d["error"]["type"], d["error"]["message"], d["attempts"]) for d in self.dead}
        assert len(found) == len(self.dead), "a record has two dead letters"
        return found


def run(
    pipeline: Pipeline,
    records: Any,
    *,
    seed: int | None = None,
    thread_seconds: float = 30.0,
    hears: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Ended:
    """Run a job on the virtual clock; its account must balance, and nothing may be left running.

    Args:
        records: The records, or how many: ``{"n": 0}``, ``{"n": 1}``...
        hears: Called with each event.
    """
    if isinstance(records, int):
        records = [{"n": n} for n in range(records)]

    async def main() -> Ended:
        loop = asyncio.get_running_loop()
        written: list[dict[str, Any]] = []
        at: dict[Any, float] = {}

        def write(record: dict[str, Any]) -> None:
            written.append(record)
            at[record.get("n")] = loop.time()

        dead: list[dict[str, Any]] = []
        heard = Heard(hears)
        report = await pipeline.run(records, write, dead=dead, listeners=[heard], **options)
        return Ended(report, written, dead, heard, loop.time(), at)

    ended = run_virtual(main(), seed=seed, thread_seconds=thread_seconds)
    assert_balanced(ended.report)
    assert ended.heard.letters == len(ended.dead)
    return ended


# Processes


@dataclass
class Finished:
    """A ``stageflow run`` that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The account that ``--summary json`` prints."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    def counts(self) -> tuple[int, ...]:
        """``read, written, dropped, dead, not_done``"""
        found = self.summary()
        for stage in found["stages"].values():
            assert stage["received"] == stage["passed"] + stage["dropped"] + stage["dead"] + stage["cancelled"], stage
        return tuple(found[name] for name in ("read", "written", "dropped", "dead", "not_done"))


class Folder:
    """A folder with a job and its input, in which ``stageflow run`` is started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: list[subprocess.Popen[str]] = []

    def job(self, text: str, records: int | Iterable[Mapping[str, Any]] = 1) -> None:
        if isinstance(records, int):
            records = [{"n": n} for n in range(records)]
        (self.path / "job.py").write_text(text)
        (self.path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def start(self, *options: str, output: str = "out.jsonl", **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stageflow", "run", "job.py", "in.jsonl", "-o", output, *options]
        process = subprocess.Popen(
            command,
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *options: str, output: str = "out.jsonl", within: float = 30.0, **environment: str) -> Finished:
        return self.end(self.start(*options, output=output, **environment), within=within)

    def end(self, process: subprocess.Popen[str], *, within: float = 30.0) -> Finished:
        """Wait for the end of a run; it is an error if that takes longer than ``within`` seconds."""
        began = time.monotonic()
        out, err = process.communicate(timeout=within)
        return Finished(process.returncode, out, err, time.monotonic() - began)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    def texts(self) -> str:
        """All that is in the folder but the job itself."""
        return "".join(path.read_text() for path in self.path.iterdir() if path.is_file() and path.name != "job.py")

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()


def until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
