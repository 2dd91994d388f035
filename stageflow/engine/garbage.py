"""The garbage collector while a run is on.

Items in flight are many, live for as long as their calls, and are no garbage. By Python's defaults the collector looks
at the young objects after every 700 made, so that at 20,000 in flight it goes through nearly all there are, over and
over: a fifth of a run's CPU time. Looking less often saves that, and leaves no more garbage than ten thousand objects,
or than are alive while all workers are busy.
"""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["quieten", "restore"]

_YOUNG: Final = 10_000
_PER_CALL: Final = 8
"""Objects of those that the collector looks at which a call in progress is made of, about."""

_runs: list[tuple[int, int, int]] = []
"""For each run that is on, the thresholds before the first of them."""


def quieten(workers: int = 0) -> None:
    """A run with so many workers begins. A collector that is off, or more quiet already, is left as it is."""
    before = gc.get_threshold()
    _runs.append(_runs[0] if _runs else before)
    young = max(_YOUNG, _PER_CALL * workers)
    if 0 < before[0] < young:
        gc.set_threshold(young, *before[1:])


def restore() -> None:
    """A run has ended; with the last one, all is as it was before the first."""
    before = _runs.pop()
    if not _runs:
        gc.set_threshold(*before)
