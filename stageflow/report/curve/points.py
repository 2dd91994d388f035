"""The points of a sweep, and where on the curve through them more in flight stops paying. Pure.

Where more in flight stops paying
---------------------------------

By Little's law a call takes N / X seconds on average where N are in flight and X end per second. Kleinrock calls
throughput over that time the power of a system: X / (N / X) = X² / N. As long as throughput grows in proportion to what
is in flight, so does power; once it is flat, power falls as what is in flight grows, since calls only wait longer. The
knee is the setting with the most power. Between two settings power grows where throughput grows by more than the root
of the ratio of what is in flight: 1.41x for twice as many.

It is a rule about load. It says nothing of ``queue_size``, which holds back memory and not calls, so a curve over that
has no knee.

Source: L. Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer communications",
ICC 1979. J. Little, "A proof for the queuing formula L = λW", 1961.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stageflow.report.text import printable

__all__ = ["Curve", "Point", "Series", "knee", "knee_text", "rate_text"]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting.

    Args:
        value: What the setting was; >= 1.
        rates: Records per second of each repeat; at least one.
        name: The whole setting as the table calls it.
    """

    value: int
    rates: tuple[float, ...]
    name: str

    @property
    def median(self) -> float:
        """Records per second, in the middle of the repeats."""
        return statistics.median(self.rates)

    @property
    def power(self) -> float:
        """Throughput over the mean time of a call, but for a constant factor."""
        return self.median**2 / self.value


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one curve, by ascending value; ``name`` is the other settings where several are swept."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn.

    Args:
        title: The name of the job.
        stage: The stage whose setting runs along the axis.
        setting: ``"max_in_flight"`` or ``"queue_size"``.
        series: At least one.
    """

    title: str
    stage: str
    setting: str
    series: tuple[Series, ...]

    @property
    def points(self) -> list[Point]:
        """All of them."""
        return [point for series in self.series for point in series.points]

    def knee(self, series: Series) -> Point | None:
        """See :func:`knee`; there is none over ``queue_size``."""
        return knee(series.points) if self.setting == "max_in_flight" else None


def knee(points: Sequence[Point]) -> Point | None:
    """The point of most power, the first of several; ``None`` where that is the last, or nothing ran."""
    best = max(points, key=lambda point: point.power)
    return best if best.power and best is not points[-1] else None


def knee_text(curve: Curve) -> str:
    """A sentence for each series: where more in flight stops paying. The first one names the rule."""
    compared = [series for series in curve.series if len(series.points) > 1 and any(p.median for p in series.points)]
    told = compared if curve.setting == "max_in_flight" else []
    rules = [" (the most throughput squared per call in flight, Kleinrock 1979)", *[""] * len(told)]
    return "\n".join(_sentence(curve, series, rule) for series, rule in zip(told, rules, strict=False))


def _sentence(curve: Curve, series: Series, rule: str) -> str:
    points, stage, best = series.points, printable(curve.stage), curve.knee(series)
    where = f"{printable(series.name)}: " if series.name else ""
    if best is None:
        last = points[-1].value
        paid, values = _gain(points[-2], points[-1]), f"{last},{2 * last},{4 * last}"
        return f"{where}No knee{rule} up to {stage}={last}: {paid}, so more may pay; try --sweep {stage}={values}."
    at = points.index(best)
    after = points[at + 1]
    within = ", which is within the spread of the repeats" if max(best.rates) >= min(after.rates) else ""
    there = "at or below" if at == 0 else "at"
    return f"{where}The knee is {there} {stage}={best.value}{rule}: {_gain(best, after)}{within}."


def _gain(less: Point, more: Point) -> str:
    """What the step from one point to the next one paid."""
    return f"{more.value} in flight made {more.median / max(less.median, 1e-9):.2f}x the throughput of {less.value}"


def rate_text(rate: float) -> str:
    """Records per second in three digits or more, without a unit."""
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:.3g}"
