"""``stageflow chaos``: the user's own job, killed again and again, and compared with itself undisturbed.

Both runs are ``stageflow run`` in child processes that write into a temporary folder; the children also note every call
of a handler. The first run is left alone, and tells how long a start takes and how long the work. The second one is
killed with SIGKILL: of its starts, some while they begin or recover, the others while they work; then it is let finish.
Two runs are equal where each record came to the same: written, dropped or dead, with as many lines and dead letters.
What a stage returns is compared where the user says that it is decided by its input.
"""

from __future__ import annotations

from stageflow.chaos.compare import differences
from stageflow.chaos.experiment import chaos
from stageflow.chaos.lives import Unequal

__all__ = ["Unequal", "chaos", "differences"]
