"""How items are gathered for one call."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stageflow.errors import SettingError

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """For ``batch=``: the handler is called with lists, one element per item, and returns a list of the same length.

    A batch is one call and takes one permit. It is made when ``size`` items are there, when the first of them has
    waited for ``within`` seconds, or at the end of the input. ``drop``, ``done`` and ``when`` are per element.

    Args:
        size: The most items of a call, >= 1.
        within: The longest the first item waits for others, in seconds, >= 0. 0.05: little against a call to a service.

    Raises:
        SettingError: A number is out of range.
    """

    size: int
    within: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise SettingError(f"the size of a batch must be a positive integer, not {self.size!r}")
        if not isinstance(self.within, (int, float)) or not math.isfinite(self.within) or self.within < 0:
            raise SettingError(f"within must be seconds, 0 or more, not {self.within!r}")
