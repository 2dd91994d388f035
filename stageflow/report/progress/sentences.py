"""What is worth a line of its own: how far a run is, its first dead letter, a request to stop. Pure."""

from __future__ import annotations

from typing import Any

from stageflow.events import Snapshot, StopRequested
from stageflow.report.progress.waiting import waiting_for
from stageflow.report.text import clip, count, counted, duration, printable, rate

__all__ = ["dead_line", "percent_done", "roughly", "state_line", "stop_line", "total_of"]

_MOST_MESSAGE = 300


def state_line(snapshot: Snapshot, per_second: float, *, reading: bool) -> str:
    """How far, how fast, and what keeps it from going faster."""
    dead = f", {count(snapshot.dead)} dead" if snapshot.dead else ""
    return f"{_done(snapshot)}, {rate(per_second)}{dead}; waiting for {waiting_for(snapshot, reading=reading)}"


def _done(snapshot: Snapshot) -> str:
    total = total_of(snapshot)
    if total is None:
        return f"{count(snapshot.settled)} done"
    return f"{count(snapshot.settled)} of ~{count(total)} done ({percent_done(snapshot, total)} %)"


def total_of(snapshot: Snapshot) -> int | None:
    """How many records the input has, as far as one knows: an estimate may turn out too low while it is read."""
    return None if snapshot.total is None else max(snapshot.total, snapshot.read)


def percent_done(snapshot: Snapshot, total: int) -> int:
    """Rounded down: 100 % is said when it is."""
    return 100 * snapshot.settled // max(1, total)


def dead_line(letter: dict[str, Any], dead: str | None) -> str:
    """Which record failed where and why, and where to look, which is ``dead`` as users call it."""
    error = letter.get("error") or {"type": "an unknown error"}
    line = letter.get("line")
    record = f"record {letter.get('index')}" + ("" if line is None else f" (line {line})")
    if "shard" in letter:
        record = f"line {line} of shard {letter['shard']} ({letter.get('path')})"
    stage = letter.get("stage")
    what = "could not be read" if stage is None else f"failed at {stage}"
    why = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
    see = f"; see {dead}" if dead else ""
    return f"{record} {what}: {clip(printable(why), _MOST_MESSAGE)}{see}"


def stop_line(event: StopRequested) -> str:
    """What becomes of the records in flight, and for how long one will have to wait for them."""
    records = f"{counted(event.open, 'record')} in flight"
    if event.cancelled:
        return f"stopping: {records} cancelled"
    if not event.open:
        return "stopping: nothing is in flight"
    how = f"finishing {records} ({roughly(round(event.grace))})"
    if event.reason.endswith("SIGINT"):
        return f"stopping: {how}, press Ctrl-C again to cancel them"
    return f"stopping: {how}: {printable(event.reason)}"


def roughly(seconds: int) -> str:
    """A time to come, without the digits an estimate doesn't have."""
    return f"{seconds} s" if seconds < 100 else duration(seconds)
