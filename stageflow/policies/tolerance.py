"""How many failures a run may have: while it runs, and when it is over."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from stageflow.errors import SettingError

__all__ = ["FailureRate", "Tolerance", "parse_rate"]

WINDOW: Final = 100
"""Records that the failure rate is taken over."""

_ROUNDING: Final = 1e-9


class FailureRate:
    """Trips when more than ``limit`` of the last ``window`` settled records failed.

    It says nothing before ``window`` records are settled: a run of fewer records ends by itself soon enough, with its
    dead letters to look at, and a few bad records at the head of a file don't make a rate.

    Args:
        limit: A share, 0 to 1; 1 never trips.
        window: Records it is taken over, >= 1.

    Raises:
        SettingError: A number is out of range.
    """

    __slots__ = ("_failed", "_last", "_limit", "_window")

    def __init__(self, limit: float, window: int = WINDOW) -> None:
        if not 0 <= limit <= 1:
            raise SettingError(f"the failure rate must be a share from 0 to 1, not {limit!r}")
        if window < 1:
            raise SettingError(f"the failure rate must be taken over at least one record, not {window!r}")
        self._limit = limit
        self._window = window
        self._last: deque[bool] = deque(maxlen=window)
        self._failed = 0

    def settled(self, failed: bool) -> bool:
        """A record is settled; whether by now too many have failed."""
        if len(self._last) == self._window:
            self._failed -= self._last[0]
        self._last.append(failed)
        self._failed += failed
        return len(self._last) == self._window and self._failed > self._limit * self._window + _ROUNDING

    def reason(self) -> str:
        """How things stand: ``61 of the last 100 records failed, more than 50%``."""
        return f"{self._failed} of the last {len(self._last)} records failed, more than {self._limit * 100:g}%"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How many dead letters a complete run may have and still end with exit code 0.

    Args:
        count: So many records; >= 0. Or
        percent: such a part of all records, 0 to 100.
    """

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """``5`` records or ``2.5%`` of them.

        Raises:
            SettingError: It is neither.
        """
        stripped = text.strip()
        if stripped.isascii() and stripped.isdecimal() and len(stripped) <= 18:
            return cls(count=int(stripped))
        percent = _percent(stripped)
        if percent is None:
            raise SettingError(
                f"failures allowed must be a number of records or a percentage, not {text!r}",
                hint="for instance 5 or 2.5%",
            )
        return cls(percent=percent)

    def allows(self, failed: int, total: int) -> bool:
        """Whether ``failed`` of ``total`` records are no more than that."""
        if self.count is not None:
            return failed <= self.count
        return failed * 100 <= (self.percent or 0.0) * total * (1 + _ROUNDING)


def parse_rate(text: str) -> float:
    """A share of records, ``50%`` or ``0.5``.

    Raises:
        SettingError: It is neither, or not from 0 to 100%.
    """
    stripped = text.strip()
    percent = _percent(stripped) if stripped.endswith("%") else _percent(stripped + "%", 1.0)
    if percent is None:
        raise SettingError(
            f"a failure rate must be a percentage or a share from 0 to 1, not {text!r}", hint="for instance 50% or 0.5"
        )
    return percent / 100 if stripped.endswith("%") else percent


def _percent(text: str, most: float = 100.0) -> float | None:
    """The number before a percent sign, 0 to ``most``."""
    number = text.removesuffix("%").rstrip()
    if number == text or not number.isascii() or "_" in number:
        return None
    try:
        value = float(number)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= most else None
