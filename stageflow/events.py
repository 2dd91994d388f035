"""What happened, for those who listen. The engine emits; progress bars, logs and counters are listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Event",
    "RecordDead",
    "Resumed",
    "RunEnded",
    "RunStarted",
    "Snapshot",
    "StageSnapshot",
    "StopRequested",
    "Warned",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSnapshot:
    """One stage at one moment. Counts are items; ``blocked`` are workers that wait for room downstream, ``waiting`` are
    items before their next attempt or permit. ``paused``: seconds that its service still wants to be left alone."""

    name: str
    max_in_flight: int
    queue_size: int
    in_flight: int
    queued: int
    blocked: int
    passed: int
    dead: int
    waiting: int = 0
    paused: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The run at one moment: input records read, settled by kind, still open; and each stage in execution order."""

    seconds: float
    read: int
    written: int
    dropped: int
    dead: int
    open: int
    total: int | None
    stages: tuple[StageSnapshot, ...]

    @property
    def settled(self) -> int:
        """Input records whose outcome is final."""
        return self.written + self.dropped + self.dead


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that happened in a run."""


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """What earlier runs left is taken up, or there is something to know of the ends of this one.

    ``epoch`` counts the runs from 1, ``done`` records had settled before, and ``notes`` are for the user, a line each.
    """

    epoch: int
    done: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The first record is about to be read. ``snapshot()`` tells how it goes, at any time."""

    pipeline: str
    snapshot: Callable[[], Snapshot]


@dataclass(frozen=True, slots=True)
class RecordDead(Event):
    """A record became a dead letter; ``letter`` is the line that is written."""

    letter: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the user should know, once."""

    message: str


@dataclass(frozen=True, slots=True)
class StopRequested(Event):
    """No more is read; the ``open`` records are finished for at most ``grace`` seconds, or were cancelled at once."""

    reason: str
    open: int
    grace: float
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """Everything is closed. The report follows on its own way."""
