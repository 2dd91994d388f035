"""How a run goes, while it goes: a bar with a line per stage on a terminal, a line now and then elsewhere.

All of these are listeners: ``RunStarted`` hands them a function that tells the state, and whoever runs them calls
``refresh()`` every ``interval`` seconds. Whatever is wrong with the stream they write to (closed, full, too narrow,
unable to show a character) costs the display and never the run.
"""

from __future__ import annotations

import os
from typing import Literal, Protocol, TextIO

from stageflow.events import Event
from stageflow.report.progress.bar import ProgressBar
from stageflow.report.progress.log import Messages, ProgressLog
from stageflow.report.progress.waiting import waiting_for

__all__ = ["Progress", "ProgressBar", "ProgressLog", "make_progress", "waiting_for"]


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
        return Messages(stream, dead)
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
