"""The curve as bars of text."""

from __future__ import annotations

from stageflow.report.curve.points import Curve, rate_text
from stageflow.report.text import cells, clip, pad, printable, shows

__all__ = ["bars"]


def bars(curve: Curve, *, width: int = 100, encoding: str | None = "utf-8", names: int = 0) -> str:
    """A bar for each point, up to the slowest repeat in full and to the fastest in half; the number is the median.

    Args:
        width: Columns there are.
        encoding: Of where it goes; ASCII is drawn where that has no blocks.
        names: Columns of the names at least, so that they align with a table above.
    """
    full, half, arrow = ("█", "▒", "←") if shows("█▒←", encoding) else ("#", "-", "<-")
    names = min(max([names, *(cells(point.name) for point in curve.points)]), max(12, width // 2))
    numbers = max(len(rate_text(point.median)) for point in curve.points)
    room = max(10, width - names - numbers - 4 - len(f" {arrow} knee"))
    most = max(max(point.rates) for point in curve.points) or 1.0
    lines = [f"{'':<{names}}  {full} slowest {half} fastest, number: median records/s"]
    for series in curve.series:
        best = curve.knee(series)
        for point in series.points:
            slowest, fastest = (round(rate / most * room) for rate in (min(point.rates), max(point.rates)))
            bar = full * slowest + half * (fastest - slowest)
            mark = f" {arrow} knee" if point is best else ""
            number = f"{rate_text(point.median):>{numbers}}"
            lines.append(f"{pad(clip(printable(point.name), names), names)}  {pad(bar, room)}  {number}{mark}")
        lines.append("")
    return "\n".join(lines[:-1])
