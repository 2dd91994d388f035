"""Where lines run between two layers of boxes. Pure: columns go in, columns and rows come out.

Each vertex hands on through one port in the middle of its bottom; what enters a box has a port of its own for each
edge. Between two layers every bundle of edges (one vertex's) that is not straight has a row to itself or shares it
with others beside it, so a corner or a branch always belongs to one bundle, and where two bundles cross, the upright
one is drawn through: `─│─`. A cross `┼` is a branch. That makes the drawing unambiguous for every graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bundle", "TooCrowded", "corner", "entry_columns", "rows_for"]


class TooCrowded(Exception):
    """There is no drawing by these rules within the width."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The edges of one vertex across one gap between layers: the column they leave in, and those they arrive in."""

    start: int
    ends: tuple[int, ...]

    @property
    def straight(self) -> bool:
        return self.ends == (self.start,)

    @property
    def span(self) -> tuple[int, int]:
        return min(self.start, *self.ends), max(self.start, *self.ends)


# Columns


def entry_columns(starts: Sequence[int], middle: int, width: int, others: set[int]) -> list[int]:
    """The columns in which edges from the columns ``starts``, ascending, enter a vertex.

    Straight down where that can be, and two apart. Columns in which other bundles leave are left to them if there is
    room, so that fewer bundles depend on each other's rows.
    """
    more = len(starts) - 1
    reach = max(width // 2 - 3, min(width // 2, len(starts)))
    if not more and abs(starts[0] - middle) > reach:
        starts = [middle]
    first, last = middle - reach, middle + reach
    # Each is kept within bounds that leave the others their columns, so stepping two to the right never passes `last`.
    wanted = [min(max(start, first + 2 * place), last - 2 * (more - place)) for place, start in enumerate(starts)]
    columns = _apart(wanted, starts, others.union(starts))
    if columns[-1] > last:
        columns = _apart(wanted, starts, others)
    return columns if columns[-1] <= last else _apart(wanted, starts, set())


def _apart(wanted: Sequence[int], starts: Sequence[int], taken: set[int]) -> list[int]:
    """Columns at those wanted or to their right, two apart, none of those ``taken`` but the one it comes from."""
    columns: list[int] = []
    for want, start in zip(wanted, starts, strict=True):
        column = max(want, columns[-1] + 2) if columns else want
        while column in taken and column != start:
            column += 1
        columns.append(column)
    return columns


# Rows


def rows_for(bundles: Sequence[Bundle]) -> dict[Bundle, int]:
    """A row for each bundle that is not straight. Where one leaves in the column in which another arrives, it is above.

    Raises:
        TooCrowded: Some bundles would each have to be above the other.
    """
    waiting = [bundle for bundle in bundles if not bundle.straight]
    rows: dict[Bundle, int] = {}
    while waiting:
        ready = [
            bundle
            for bundle in waiting
            if not any(other.start in bundle.ends for other in waiting if other is not bundle)
        ]
        if not ready:
            raise TooCrowded
        bundle = min(ready, key=lambda bundle: bundle.span)
        waiting.remove(bundle)
        floor = max((row + 1 for other, row in rows.items() if other.start in bundle.ends), default=0)
        taken = {row for other, row in rows.items() if _overlap(bundle.span, other.span)}
        rows[bundle] = next(row for row in range(floor, floor + len(bundles)) if row not in taken)
    return rows


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] + 1 and other[0] <= one[1] + 1


# Corners

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = {
    _UP | _DOWN: "│",
    _LEFT | _RIGHT: "─",
    _UP | _RIGHT: "└",
    _UP | _LEFT: "┘",
    _DOWN | _RIGHT: "┌",
    _DOWN | _LEFT: "┐",
    _UP | _LEFT | _RIGHT: "┴",
    _DOWN | _LEFT | _RIGHT: "┬",
    _UP | _DOWN | _RIGHT: "├",
    _UP | _DOWN | _LEFT: "┤",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}


def corner(bundle: Bundle, column: int) -> str:
    """What stands in a bundle's row where its line turns or branches, in one of its columns."""
    arms = _UP * (column == bundle.start) | _DOWN * (column in bundle.ends)
    arms |= _LEFT * (column > bundle.span[0]) | _RIGHT * (column < bundle.span[1])
    return _LINES[arms]
