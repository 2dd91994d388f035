"""One run of ``stageflow run`` over all its starts: left alone, or killed at moments drawn at random."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from stageflow.cli_options import as_typed
from stageflow.errors import RunStopped, StageflowError

__all__ = ["Life", "Timing", "Unequal", "ended_by_signals", "kill", "leave_alone"]

_EARLY_SHARE: Final = 0.25
"""Share of the kills that come before the first call of a start: while it begins, or recovers."""

_SLOWER: Final = 10
_MARGIN: Final = 60.0
"""A start hangs if it takes longer than so many times the undisturbed run and so many seconds more."""

_POLL: Final = 0.002
"""Seconds between two looks for a first call: a small part of what a start takes."""

_COMPLETE: Final = (0, 3)
"""Exit codes of a run that has come to its end, with dead letters or without."""


class Unequal(StageflowError):
    """The run that was killed did not come to what the undisturbed one came to."""

    exit_code = 3


@dataclass
class Life:
    """One output, over all the starts it takes; each notes its calls in a file of its own."""

    folder: Path
    reference: str
    input: str
    given: Mapping[str, Any]
    starts: int = 0
    kills: int = 0
    seconds: float = 0.0
    logs: list[Path] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def said(self) -> Path:
        """What the newest start said."""
        return self.folder / f"stderr{self.starts}"

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """A start; its process does not outlive the block."""
        self.folder.mkdir(exist_ok=True)
        self.starts += 1
        self.logs.append(self.folder / f"calls{self.starts}")
        command = [sys.executable, "-m", "stageflow.chaos.child", str(self.logs[-1]), "run", self.reference, self.input]
        options = ["-o", str(self.output), "--order", "input", "--progress", "off", *_options(self.given)]
        with open(self.said, "wb") as said:
            process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_MARGIN)

    def calls(self) -> int:
        """How much was noted, over all starts, in bytes."""
        return sum(log.stat().st_size for log in self.logs if log.exists())

    def logged(self) -> bool:
        """Whether the newest start has made a call."""
        return self.logs[-1].exists() and self.logs[-1].stat().st_size > 0

    def failed(self, what: str) -> str:
        """How a start failed, with what it said last."""
        said = self.said.read_text(errors="replace").splitlines()
        lines = [line for line in said if line.startswith("stageflow: ")] or said or ["it said nothing"]
        return f"{what}: {lines[-1].removeprefix('stageflow: ').removeprefix('error: ')}"


def _options(given: Mapping[str, Any]) -> list[str]:
    """The options that a run has, too, as they were typed."""
    limit = ["--limit", str(given["limit"])] if given["limit"] is not None else []
    return [*as_typed(given), *limit, "--no-cache", "--loop", given["loop"]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Of the undisturbed run: seconds, seconds until its first call, and how much it noted."""

    seconds: float
    first_call: float
    calls: int


def leave_alone(life: Life) -> Timing:
    """Start once, and wait for the end, however long that takes.

    Raises:
        RunStopped: It did not come to its end.
    """
    began = time.monotonic()
    with life.started() as process:
        while process.poll() is None and not life.logged():
            time.sleep(_POLL)
        first = time.monotonic() - began
        process.wait()
        life.seconds = time.monotonic() - began
        if process.returncode not in _COMPLETE:
            raise RunStopped(life.failed(f"the undisturbed run ended with exit code {process.returncode}"))
    return Timing(life.seconds, first, life.calls())


def kill(life: Life, kills: int, draw: random.Random, undisturbed: Timing, tell: Callable[[str], None]) -> None:
    """Start, kill, and start again, until it is killed often enough and has finished.

    Raises:
        Unequal: A start failed, or neither ended nor died.
    """
    began = time.monotonic()
    most = _SLOWER * undisturbed.seconds + _MARGIN
    while True:
        with life.started() as process:
            if life.kills < kills and _outlasts(process, life, kills - life.kills, draw, undisturbed, most):
                process.kill()
                _see_it_die(process, life)
                life.kills += 1
                continue
            try:
                code = process.wait(most)
            except subprocess.TimeoutExpired:
                raise Unequal(f"start {life.starts} did not end within {most:,.0f} s") from None
        if code not in _COMPLETE:
            raise Unequal(
                life.failed(f"start {life.starts} (kills before it: {life.kills}) ended with exit code {code}")
            )
        break
    life.seconds = time.monotonic() - began
    if life.kills < kills:
        tell(f"stageflow: it was complete after {life.kills} of {kills} kills; more records make a longer run")


def _outlasts(
    process: subprocess.Popen[bytes], life: Life, left: int, draw: random.Random, undisturbed: Timing, most: float
) -> bool:
    """Wait for the moment at which a start is to be killed; False where it ended before.

    That is while it begins or recovers, or so long after its first call: what is left of the work is shared among the
    kills that are left.
    """
    early, share, begun = draw.random() < _EARLY_SHARE, draw.random(), time.monotonic()
    rest = max(0.0, 1.0 - life.calls() / max(1, undisturbed.calls))
    if early:
        moment = begun + (1 + share) / 2 * undisturbed.first_call
    else:
        while not life.logged() and process.poll() is None and time.monotonic() < begun + most:
            time.sleep(_POLL)
        moment = time.monotonic() + 2 * share * rest * (undisturbed.seconds - undisturbed.first_call) / (left + 1)
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, moment - time.monotonic()))
    return process.poll() is None


def _see_it_die(process: subprocess.Popen[bytes], life: Life) -> None:
    try:
        process.wait(_MARGIN)
    except subprocess.TimeoutExpired:
        raise Unequal(f"start {life.starts} did not die within {_MARGIN:.0f} s of a SIGKILL") from None


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal end this process through its ``finally`` blocks, as Ctrl-C does, so that no child is left behind."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, end))
        yield
