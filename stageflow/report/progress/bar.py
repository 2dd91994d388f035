"""The bar, drawn by tqdm, which is used here and nowhere else."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from stageflow.events import Event, RunStarted, Snapshot
from stageflow.report.progress.bar_lines import bar_format, busiest, stage_lines
from stageflow.report.progress.log import Messages, encodable
from stageflow.report.progress.rates import Rates
from stageflow.report.progress.sentences import total_of
from stageflow.report.text import printable, shows

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ProgressBar"]

_BAR_SECONDS = 0.1
_MOST_LINES = 8


class ProgressBar(Messages):
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
        self._rates = Rates()
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
        stages = stage_lines(busiest(snapshot.stages, min(_MOST_LINES, lines - 2)), self._rates, columns)
        while len(self._bars) > 1 + len(stages):  # the window became smaller
            self._bars.pop().close()
        while len(self._bars) < 1 + len(stages):
            self._bars.append(self._new_bar(stream, len(self._bars)))
        top = self._bars[0]
        top.bar_format = encodable(bar_format(self._pipeline, snapshot, self._rates.run(), columns), stream)
        top.n = snapshot.settled
        top.total = total_of(snapshot)
        for bar, text in zip(self._bars[1:], stages, strict=True):
            bar.desc = encodable(text, stream)
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
            ascii=not shows("█▏", getattr(stream, "encoding", None)),
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
