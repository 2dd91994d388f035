"""The table of the stages: what became of their items, and what they did with their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stageflow.report.costs import cost_columns
from stageflow.report.stats import StageReport
from stageflow.report.text import cells, clip, count, duration, pad, percent, printable

__all__ = ["tables"]

_GAP = "  "


def tables(stages: Sequence[StageReport], width: int) -> list[str]:
    """One table if it fits into ``width`` columns, else the items and the times apart, each in as many as it takes.

    A kind of outcome that no stage had gets no column.
    """
    names = _Column("stage", [clip(printable(stage.name), max(8, width // 3)) for stage in stages], right=False)
    items, times = _item_columns(stages), _time_columns(stages)
    pieces = _pieces(names, items + times, width)
    if len(pieces) > 1:
        pieces = [*_pieces(names, items, width), *_pieces(names, times, width)]
    return [_side_by_side([names, *piece]) for piece in pieces]


class _Column(NamedTuple):
    """A title, of several lines where it has newlines, and a value for each stage."""

    title: str
    values: list[str]
    right: bool = True

    @property
    def lines(self) -> list[str]:
        return [*self.title.split("\n"), *self.values]

    @property
    def width(self) -> int:
        return max(map(cells, self.lines))

    def drawn(self, height: int) -> list[str]:
        """The lines, all of one width, below as many empty ones as make up the height."""
        lines = [""] * (height - len(self.lines)) + self.lines
        return [pad(line, self.width, right=self.right) for line in lines]


def _item_columns(stages: Sequence[StageReport]) -> list[_Column]:
    always = {"received", "passed", "dead"}
    kinds: dict[str, list[int]] = {
        "received": [stage.received for stage in stages],
        "cached": [stage.cached or 0 for stage in stages],
        "passed": [stage.passed for stage in stages],
        "degraded": [stage.degraded for stage in stages],
        "skipped": [stage.skipped for stage in stages],
        "dropped": [stage.dropped for stage in stages],
        "dead": [stage.dead for stage in stages],
        "cancelled": [stage.cancelled for stage in stages],
        "retries": [stage.retries for stage in stages],
        "hedged": [stage.hedged for stage in stages],
        "hedges\nwon": [stage.hedges_won for stage in stages],
    }
    columns = [_Column(kind, list(map(count, had))) for kind, had in kinds.items() if kind in always or any(had)]
    return [*columns, *(_Column(title, values) for title, values in cost_columns(stages))]


def _time_columns(stages: Sequence[StageReport]) -> list[_Column]:
    def column(title: str, told: Callable[[StageReport], str]) -> _Column:
        return _Column(title, list(map(told, stages)))

    waiting = column("waiting", lambda stage: percent(stage.waiting))
    return [
        column("p50", lambda stage: _seconds(stage.p50)),
        column("p95", lambda stage: _seconds(stage.p95)),
        column("busy", lambda stage: percent(stage.busy)),
        *([waiting] if any(stage.waiting >= 0.005 for stage in stages) else []),
        column("starved", lambda stage: percent(stage.starved)),
        column("blocked", lambda stage: percent(stage.blocked)),
        column("peak in\nflight", lambda stage: f"{count(stage.peak_in_flight)}/{count(stage.max_in_flight)}"),
        column("peak\nqueue", lambda stage: f"{count(stage.peak_depth)}/{count(stage.queue_size)}"),
    ]


def _seconds(measured: float | None) -> str:
    return "-" if measured is None else duration(measured)


def _pieces(names: _Column, columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in as many runs as it takes for each to fit into ``width`` beside the names."""
    pieces: list[list[_Column]] = []
    room = 0
    for column in columns:
        need = len(_GAP) + column.width
        if not pieces or need > room:
            pieces.append([])
            room = width - names.width
        pieces[-1].append(column)
        room -= need
    return pieces


def _side_by_side(columns: Sequence[_Column]) -> str:
    height = max(len(column.lines) for column in columns)
    rows = zip(*(column.drawn(height) for column in columns), strict=True)
    return "\n".join(_GAP.join(row).rstrip() for row in rows)
