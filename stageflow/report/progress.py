"""How a run goes, while it goes: a bar with a line per stage on a terminal, a line now and then elsewhere.

All of these are listeners: ``RunStarted`` hands them a function that tells the state, and whoever runs them calls
``refresh()`` every ``interval`` seconds. Whatever is wrong with the stream they write to (closed, full, too narrow,
unable to show a character) costs the display and never the run.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from stageflow.events import (
    Event,
    RecordDead,
    Resumed,
    RunEnded,
    RunStarted,
    Snapshot,
    StageSnapshot,
    StopRequested,
    Warned,
)
from stageflow.report.text import cells, clip, count, counted, duration, pad, printable, rate

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "ProgressBar", "ProgressLog", "make_progress", "waiting_for"]

_BAR_SECONDS = 0.1
_LOG_SECONDS = 5.0
_NEVER_SECONDS = 3600.0  # for those with nothing to refresh; an infinite sleep is refused by some event loops
_RATE_SECONDS = 15.0
_MOST_LINES = 8
_MOST_MESSAGE = 300


class Progress(Protocol):
    """What shows a run.

    Attributes:
        interval: Seconds between two calls of ``refresh``.
    """

    interval: float

    def on_event(self, event: Event) -> None: ...

    def refresh(self) -> None:
        """Show the state of now."""
        ...

    def close(self) -> None:
        """Leave the stream clean; again is fine. ``RunEnded`` does it, too."""
        ...


def make_progress(
    kind: Literal["auto", "bar", "log", "off"], stream: TextIO | None, *, dead: str | None = None
) -> Progress:
    """The listener for ``--progress``.

    Args:
        kind: ``"auto"`` is the bar on a terminal and the log elsewhere. ``"off"`` still tells of warnings, of the
            first dead letter and of requests to stop.
        stream: Where to write, as a rule stderr; ``None`` where the process has none.
        dead: Where the dead letters go, as users call it.
    """
    if kind == "off":
        return _Messages(stream, dead)
    if kind == "bar" or (kind == "auto" and _is_terminal(stream)):
        try:
            return ProgressBar(stream, dead=dead)
        except Exception:  # noqa: BLE001 - tqdm reads TQDM_* from the environment and fails in many ways
            return ProgressLog(stream, dead=dead)
    return ProgressLog(stream, dead=dead)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (OSError, ValueError):
        return False


# What a run waits for


def waiting_for(snapshot: Snapshot, *, reading: bool = True) -> str:
    """What keeps the run from going faster at this moment, as ``generate (64/64 in flight, 64 queued)``.

    It is a stage that its service asked to pause, else the stage with the most to do for its size, in flight and
    queued, among those not blocked themselves. When stages are only blocked it is the output. When all have workers to
    spare, it is a stage most of whose items wait for their next attempt, the input while that is read, and else
    whatever is still in flight.

    Args:
        snapshot: The state.
        reading: Whether there may be more input; after a request to stop there is none.
    """
    stages = snapshot.stages
    paused = max(stages, key=lambda stage: stage.paused, default=None)
    if paused is not None and paused.paused > 0:
        return f"{printable(paused.name)} (paused for {duration(paused.paused)}: its service asked for it)"
    pressed = [stage for stage in stages if _pressed(stage) and not _held_back(stage)]
    if pressed:
        return _stage_state(max(pressed, key=_load))
    blocked = [stage for stage in stages if stage.blocked]
    if blocked:
        return f"the output ({printable(blocked[-1].name)}: {count(blocked[-1].blocked)} blocked)"
    running = max(stages, key=lambda stage: stage.in_flight, default=None)
    in_flight = sum(stage.in_flight for stage in stages)
    waiting = max(stages, key=lambda stage: stage.waiting, default=None)
    if waiting is not None and waiting.waiting > in_flight:
        return f"{printable(waiting.name)} ({count(waiting.waiting)} items before their next attempt or permit)"
    outside = snapshot.open - in_flight - sum(stage.waiting for stage in stages)
    if outside > in_flight:
        return f"the output ({count(outside)} open records are in no stage)"
    more = reading and (snapshot.total is None or snapshot.read < snapshot.total)
    if running is None or not running.in_flight:
        return "the input" if more else "the end"
    if not more:
        return _stage_state(running)
    # Without a total nobody knows whether the input is slow or at its end.
    return "the input" if snapshot.total is not None else f"the input or {_stage_state(running)}"


def _pressed(stage: StageSnapshot) -> bool:
    return stage.queued > 0 or stage.in_flight >= stage.max_in_flight


def _held_back(stage: StageSnapshot) -> bool:
    return stage.blocked > stage.in_flight


def _load(stage: StageSnapshot) -> float:
    return stage.in_flight / max(1, stage.max_in_flight) + stage.queued / max(1, stage.queue_size)


def _stage_state(stage: StageSnapshot) -> str:
    queued = f", {count(stage.queued)} queued" if stage.queued else ""
    waiting = f", {count(stage.waiting)} waiting" if stage.waiting else ""
    return f"{printable(stage.name)} ({count(stage.in_flight)}/{count(stage.max_in_flight)} in flight{queued}{waiting})"


class _Rates:
    """Records per second over the last seconds, from the states seen; for the run and for each stage."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, dict[str, int]]] = deque()

    def add(self, snapshot: Snapshot) -> None:
        passed = {stage.name: stage.passed + stage.dead for stage in snapshot.stages}
        self._seen.append((snapshot.seconds, snapshot.settled, passed))
        while len(self._seen) > 2 and self._seen[1][0] <= snapshot.seconds - _RATE_SECONDS:
            self._seen.popleft()

    def run(self) -> float:
        return self._per_second(lambda seen: seen[1])

    def stage(self, name: str) -> float:
        return self._per_second(lambda seen: seen[2].get(name, 0))

    def _per_second(self, number: Callable[[tuple[float, int, dict[str, int]]], int]) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (number(last) - number(first)) / max(last[0] - first[0], 1e-9)


# Lines


def _done(snapshot: Snapshot) -> str:
    if snapshot.total is None:
        return f"{count(snapshot.settled)} done"
    total = max(snapshot.total, snapshot.read)
    # Rounded down: 100 % is said when it is.
    return f"{count(snapshot.settled)} of ~{count(total)} done ({100 * snapshot.settled // max(1, total)} %)"


def _log_line(snapshot: Snapshot, per_second: float, *, reading: bool) -> str:
    dead = f", {count(snapshot.dead)} dead" if snapshot.dead else ""
    return f"{_done(snapshot)}, {rate(per_second)}{dead}; waiting for {waiting_for(snapshot, reading=reading)}"


def _dead_line(letter: dict[str, Any], dead: str | None) -> str:
    error = letter.get("error") or {"type": "an unknown error"}
    line = letter.get("line")
    record = f"record {letter.get('index')}" + ("" if line is None else f" (line {line})")
    stage = letter.get("stage")
    what = "could not be read" if stage is None else f"failed at {stage}"
    why = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
    see = f"; see {dead}" if dead else ""
    return f"{record} {what}: {clip(printable(why), _MOST_MESSAGE)}{see}"


def _stop_line(event: StopRequested) -> str:
    records = f"{counted(event.open, 'record')} in flight"
    if event.cancelled:
        return f"stopping: {records} cancelled"
    if not event.open:
        return "stopping: nothing is in flight"
    how = f"finishing {records} ({_whole(round(event.grace))})"
    if event.reason.endswith("SIGINT"):
        return f"stopping: {how}, press Ctrl-C again to cancel them"
    return f"stopping: {how}: {printable(event.reason)}"


class _Messages:
    """The lines that are shown whatever the progress: warnings, requests to stop, and the first dead letter."""

    interval = _NEVER_SECONDS

    def __init__(self, stream: TextIO | None, dead: str | None) -> None:
        self._stream = stream
        self._dead = dead
        self._letters = 0
        self._reading = True
        self._snapshot: Callable[[], Snapshot] | None = None

    def on_event(self, event: Event) -> None:
        """Take in what happened; the first dead letter is told, later ones are counted by the state."""
        match event:
            case RunStarted():
                self._snapshot = event.snapshot
            case Warned():
                self._say(f"warning: {event.message}")
            case Resumed():
                if event.epoch > 1:
                    self._say(f"resuming: {counted(event.done, 'record')} done before")
                for note in event.notes:
                    self._say(f"note: {note}")
            case StopRequested():
                self._reading = False
                self._say(_stop_line(event))
            case RecordDead():
                self._letters += 1
                if self._letters == 1:
                    self._say(_dead_line(event.letter, self._dead))
            case RunEnded():
                self.close()

    def refresh(self) -> None:
        """Nothing is shown of how it goes."""

    def close(self) -> None:
        """Nothing more is shown of how it goes; messages still are."""
        self._snapshot = None

    def _say(self, text: str) -> None:
        self._try(lambda stream: self._write(stream, _encodable(f"stageflow: {printable(text)}", stream)))

    def _write(self, stream: TextIO, line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    def _try(self, write: Callable[[TextIO], None]) -> None:
        """Write, and give the stream up for good when it fails: a run outlives its terminal."""
        if self._stream is None:
            return
        try:
            write(self._stream)
        except (OSError, ValueError):
            self._stream = None


class ProgressLog(_Messages):
    """A plain line every few seconds, for where there is no terminal. It says what the run is waiting for.

    Args:
        stream: Where to write; ``None`` writes nothing.
        dead: Where the dead letters go, as users call it.
    """

    def __init__(self, stream: TextIO | None, *, dead: str | None = None) -> None:
        super().__init__(stream, dead)
        self.interval = _LOG_SECONDS
        self._rates = _Rates()

    def on_event(self, event: Event) -> None:
        """Take in what happened."""
        super().on_event(event)
        if isinstance(event, RunStarted):
            self._rates.add(event.snapshot())

    def refresh(self) -> None:
        """Write a line."""
        if self._snapshot is not None:
            snapshot = self._snapshot()
            self._rates.add(snapshot)
            self._say(_log_line(snapshot, self._rates.run(), reading=self._reading))


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


# The bar


class ProgressBar(_Messages):
    """A tqdm bar for the records done, and under it a line for each stage, the eight busiest where there are more.

    At the end it leaves nothing behind. tqdm is imported when a bar is made, not before.

    Args:
        stream: Where to draw; ``None`` draws nothing.
        dead: Where the dead letters go, as users call it.

    Raises:
        Exception: Whatever tqdm raises where it can't be imported, or where a ``TQDM_`` variable in the environment
            makes no sense to it.
    """

    def __init__(self, stream: TextIO | None, *, dead: str | None = None) -> None:
        super().__init__(stream, dead)
        self.interval = _BAR_SECONDS
        self._tqdm = _tqdm_class()
        self._rates = _Rates()
        self._bars: list[tqdm[Any]] = []
        self._pipeline = ""
        self._new_bar(io.StringIO(), 0).close()  # fails here, if ever, where there is still the log to turn to

    def on_event(self, event: Event) -> None:
        """Take in what happened; the bar appears as the run starts."""
        super().on_event(event)
        if isinstance(event, RunStarted):
            self._pipeline = printable(event.pipeline)
            self.refresh()

    def refresh(self) -> None:
        """Draw the state of now."""
        if self._snapshot is not None:
            snapshot = self._snapshot()
            self._rates.add(snapshot)
            self._try(lambda stream: self._draw(stream, snapshot))

    def close(self) -> None:
        """Take the bar off the terminal; again is fine."""
        super().close()
        self._try(lambda _: self._erase())
        self._bars = []

    def _draw(self, stream: TextIO, snapshot: Snapshot) -> None:
        columns, lines = _terminal_size(stream)
        stages = _stage_lines(_busiest(snapshot.stages, min(_MOST_LINES, lines - 2)), self._rates, columns)
        while len(self._bars) > 1 + len(stages):  # the window became smaller
            self._bars.pop().close()
        while len(self._bars) < 1 + len(stages):
            self._bars.append(self._new_bar(stream, len(self._bars)))
        top = self._bars[0]
        top.bar_format = _encodable(_bar_format(self._pipeline, snapshot, self._rates.run(), columns), stream)
        top.n = snapshot.settled
        top.total = None if snapshot.total is None else max(snapshot.total, snapshot.read)
        for bar, text in zip(self._bars[1:], stages, strict=True):
            bar.desc = _encodable(text, stream)
        for bar in self._bars:
            bar.ncols = columns
            bar.refresh()
        self._home(stream)

    def _new_bar(self, stream: TextIO, position: int) -> tqdm[Any]:
        # Every argument, because tqdm takes the defaults of those that are not given from TQDM_* variables.
        return self._tqdm(
            iterable=None,
            desc="",
            total=None,
            leave=False,
            file=stream,
            ncols=80,
            mininterval=0.0,
            maxinterval=0.0,
            miniters=1,
            ascii=not _shows_blocks(stream),
            disable=False,
            unit="",
            unit_scale=False,
            dynamic_ncols=False,
            smoothing=0.0,
            bar_format="{desc}",
            initial=0,
            position=position,
            postfix=None,
            unit_divisor=1000,
            write_bytes=False,
            lock_args=None,
            nrows=_MOST_LINES + 3,
            colour=None,
            delay=0.0,
            gui=False,
        )

    def _erase(self) -> None:
        for bar in reversed(self._bars):  # upwards, so that the cursor ends where the bar began
            bar.close()

    def _write(self, stream: TextIO, line: str) -> None:
        if self._bars:
            self._tqdm.write(line, file=stream)
            self._home(stream)
        else:
            super()._write(stream, line)

    def _home(self, stream: TextIO) -> None:
        # The terminal writes ^C where the cursor is. At the end of a line it would wrap and shift all that follows.
        stream.write("\r")
        stream.flush()

    def _try(self, write: Callable[[TextIO], None]) -> None:
        super()._try(write)
        if self._stream is None:
            for bar in self._bars:
                bar.disable = True  # or each would try to close itself when it is collected
            self._bars = []


def _tqdm_class() -> type[tqdm[Any]]:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # it is generic in its stubs only
        # No thread that watches the bars, and a lock for threads alone: tqdm's own is shared with child processes, and
        # making it may start a helper process.
        monitor_interval = 0
        _lock = threading.RLock()

    return Bar


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines to draw in: one column less than there are, because the last one makes some terminals wrap."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return 79, 24
    return (columns or 80) - 1, lines or 24


def _shows_blocks(stream: TextIO) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        "█▏".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bar_format(pipeline: str, snapshot: Snapshot, per_second: float, columns: int) -> str:
    """The first line as a template for tqdm, with as much beside the bar as leaves it ten columns."""
    settled, total = snapshot.settled, snapshot.total
    dead = f"  {count(snapshot.dead)} dead" if snapshot.dead else ""
    if total is None:
        return _braces(clip(f"{pipeline}: {count(settled)} done  {rate(per_second)}{dead}", columns))
    total = max(total, snapshot.read)
    head = f" {100 * settled // max(1, total):3} % |"
    left = f"  {_whole(round((total - settled) / per_second))} left" if per_second > 0 else ""
    done = f"| {count(settled)}/~{count(total)}"
    speed = f"  {rate(per_second)}"
    for name, tail in (
        (pipeline, done + speed + left + dead),
        ("", done + speed + left + dead),
        ("", done + speed + dead),
        ("", done + dead),
    ):
        if columns - cells(name + head + tail) >= 10:
            return _braces(name + head) + "{bar}" + _braces(tail)
    words = head.strip(" |") + done[1:]
    fitting = (words + tail for tail in (speed + dead, dead) if cells(words + tail) <= columns)
    return _braces(clip(next(fitting, words), columns))


def _whole(seconds: int) -> str:
    """What is left, without the digits an estimate doesn't have."""
    return f"{seconds} s" if seconds < 100 else duration(seconds)


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _busiest(stages: Sequence[StageSnapshot], most: int) -> list[StageSnapshot]:
    """At most so many stages, those with the most work, in execution order."""
    ranked = sorted(range(len(stages)), key=lambda place: -_load(stages[place]) - stages[place].blocked)
    return [stages[place] for place in sorted(ranked[: max(0, most)])]


def _stage_lines(stages: Sequence[StageSnapshot], rates: _Rates, columns: int) -> list[str]:
    """One line for each stage: aligned and in words where there is room, else short."""
    names = [printable(stage.name) for stage in stages]
    widest = min(24, max(map(cells, names), default=0))
    for words in ((" in flight", " queued", " blocked", " failed", ""), ("", "q", "b", "f", "")):
        numbers = [_aligned(column, word) for column, word in zip(_numbers(stages, rates), words, strict=True)]
        tails = ["".join(f"  {cell}" for cell in row) for row in zip(*numbers, strict=True)]
        room = columns - 2 - max(map(len, tails), default=0)
        if room >= widest:
            break
    width = max(6, min(widest, room))
    return [clip(f"  {pad(clip(name, width), width)}{tail}", columns) for name, tail in zip(names, tails, strict=True)]


def _numbers(stages: Sequence[StageSnapshot], rates: _Rates) -> list[list[str]]:
    return [
        [f"{count(stage.in_flight)}/{count(stage.max_in_flight)}" for stage in stages],
        [count(stage.queued) for stage in stages],
        [count(stage.blocked) for stage in stages],
        [count(stage.dead) for stage in stages],
        [rate(rates.stage(stage.name)) for stage in stages],
    ]


def _aligned(column: Sequence[str], word: str) -> list[str]:
    width = max(map(len, column), default=0)
    return [cell.rjust(width) + word for cell in column]
