"""How a run goes in plain lines: the messages that are shown whatever the progress, and the log of now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from stageflow.events import Event, RecordDead, Resumed, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.report.progress.rates import Rates
from stageflow.report.progress.sentences import dead_line, state_line, stop_line
from stageflow.report.text import counted, printable

__all__ = ["Messages", "ProgressLog", "encodable"]

_LOG_SECONDS = 5.0
_NEVER_SECONDS = 3600.0  # for those with nothing to refresh; an infinite sleep is refused by some event loops


class Messages:
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
                self._say(stop_line(event))
            case RecordDead():
                self._letters += 1
                if self._letters == 1:
                    self._say(dead_line(event.letter, self._dead))
            case RunEnded():
                self.close()

    def refresh(self) -> None:
        """Nothing is shown of how it goes."""

    def close(self) -> None:
        """Nothing more is shown of how it goes; messages still are."""
        self._snapshot = None

    def _say(self, text: str) -> None:
        self._try(lambda stream: self._write(stream, encodable(f"stageflow: {printable(text)}", stream)))

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


class ProgressLog(Messages):
    """A plain line every few seconds, for where there is no terminal. It says what the run is waiting for.

    Args:
        stream: Where to write; ``None`` writes nothing.
        dead: Where the dead letters go, as users call it.
    """

    def __init__(self, stream: TextIO | None, *, dead: str | None = None) -> None:
        super().__init__(stream, dead)
        self.interval = _LOG_SECONDS
        self._rates = Rates()

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
            self._say(state_line(snapshot, self._rates.run(), reading=self._reading))


def encodable(text: str, stream: TextIO) -> str:
    """``text`` with a question mark for each character that the stream has not."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
