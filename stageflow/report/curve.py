"""Throughput over a setting, as ``stageflow bench --sweep`` measured it: bars, one sentence, and an SVG.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log, log10

from stageflow.report.layout import spread
from stageflow.report.text import cells, clip, pad, printable

__all__ = ["Curve", "Point", "Series", "bars", "knee", "knee_text", "svg"]


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


# Bars


def bars(curve: Curve, *, width: int = 100, encoding: str | None = "utf-8", names: int = 0) -> str:
    """A bar for each point, up to the slowest repeat in full and to the fastest in half; the number is the median.

    Args:
        width: Columns there are.
        encoding: Of where it goes; ASCII is drawn where that has no blocks.
        names: Columns of the names at least, so that they align with a table above.
    """
    full, half, arrow = ("█", "▒", "←") if _has_blocks(encoding) else ("#", "-", "<-")
    names = min(max([names, *(cells(point.name) for point in curve.points)]), max(12, width // 2))
    numbers = max(len(_number(point.median)) for point in curve.points)
    room = max(10, width - names - numbers - 4 - len(f" {arrow} knee"))
    most = max(max(point.rates) for point in curve.points) or 1.0
    lines = [f"{'':<{names}}  {full} slowest {half} fastest, number: median records/s"]
    for series in curve.series:
        best = curve.knee(series)
        for point in series.points:
            slowest, fastest = (round(rate / most * room) for rate in (min(point.rates), max(point.rates)))
            bar = full * slowest + half * (fastest - slowest)
            mark = f" {arrow} knee" if point is best else ""
            number = f"{_number(point.median):>{numbers}}"
            lines.append(f"{pad(clip(printable(point.name), names), names)}  {pad(bar, room)}  {number}{mark}")
        lines.append("")
    return "\n".join(lines[:-1])


def _has_blocks(encoding: str | None) -> bool:
    try:
        "█▒←".encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:.3g}"


# SVG

_COLOURS = ("#4c78c8", "#c98a1b", "#3f9b5f", "#c2557a", "#7a5cc8", "#1f8f9e")  # readable on the light and dark card
_PLOT_WIDTH, _PLOT_HEIGHT, _LABEL_HEIGHT = 560.0, 280.0, 15.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 74.0, 66.0, 30.0, 58.0
_STEPS = 16
_CHAR = 6.4  # a generous mean width at 12 px
# On a card of its own: it is readable whatever page is around it, also where only one of the two follows the reader.
_STYLE = (
    ".card{fill:#ffffff;stroke:#d5dae3}.ink{fill:#1a2233}.soft{fill:#5b6678}.grid{stroke:#e6e9ef}.axis{stroke:#8a94a6}"
    "@media(prefers-color-scheme:dark){.card{fill:#151a23;stroke:#2c3442}.ink{fill:#e8ecf3}.soft{fill:#9aa5b8}"
    ".grid{stroke:#252d3a}.axis{stroke:#6b7688}}"
)


def svg(curve: Curve) -> str:
    """The curve as a self-contained SVG: medians joined by lines, a whisker from the slowest to the fastest repeat.

    The values stand along the axis by their logarithm, since a sweep doubles them; a dashed line shows a throughput in
    proportion to what is in flight. A ring marks the knee.

    Returns:
        Lines, the last without a newline.
    """
    return _Drawing(curve).draw()


class _Drawing:
    """Places are pixels."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        self.values = sorted({point.value for point in curve.points})
        self.ticks = _ticks(max(max(point.rates) for point in curve.points))
        longest = max(cells(_label(series)) for series in curve.series)
        right = _RIGHT + (longest * _CHAR if longest else 0.0)
        self.plot = max(_PLOT_HEIGHT, _LABEL_HEIGHT * (len(curve.series) + 1))
        self.width, self.height = _LEFT + _PLOT_WIDTH + right, _TOP + self.plot + _BOTTOM

    def x(self, value: float) -> float:
        first, last = self.values[0], self.values[-1]
        share = log(value / first) / log(last / first) if last > first else 0.5
        return _LEFT + 24 + share * (_PLOT_WIDTH - 48)

    def y(self, rate: float) -> float:
        return _TOP + self.plot * (1 - rate / self.ticks[-1])

    def draw(self) -> str:
        name = escape(f"{printable(self.curve.title)}: records per second over {self._axis()}")
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{self.height:.0f}" '
                f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{name}" '
                'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12">',
                f"<title>{name}</title>",
                f"<style>{_STYLE}</style>",
                f'<rect class="card" x="0.5" y="0.5" width="{self.width - 1:.0f}" height="{self.height - 1:.0f}" '
                'rx="9"/>',
                *self._head(),
                *self._axes(),
                *(line for place, series in enumerate(self.curve.series) for line in self._series(place, series)),
                *self._names(),
                "</svg>",
            ]
        )

    def _axis(self) -> str:
        return f"{self.curve.setting} of {printable(self.curve.stage)}"

    def _head(self) -> Iterator[str]:
        repeats = max(len(point.rates) for point in self.curve.points)
        what = "one run each" if repeats == 1 else f"median of {repeats} runs, whiskers from the slowest to the fastest"
        ring = "; a ring at the knee" if any(map(self.curve.knee, self.curve.series)) else ""
        title = clip(printable(self.curve.title), 60)
        yield _words(20, 28, title, 'class="ink" font-size="15" font-weight="600"')
        yield _words(20, 47, f"Records per second: {what}{ring}", 'class="soft"')

    def _axes(self) -> Iterator[str]:
        bottom, right = _TOP + self.plot, _LEFT + _PLOT_WIDTH
        for tick in self.ticks:
            y, kind = self.y(tick), "axis" if tick == 0 else "grid"
            yield f'<path class="{kind}" d="M{_LEFT:.1f} {y:.1f}H{right:.1f}"/>'
            yield _words(_LEFT - 10, y + 4, _number(tick) if tick else "0", 'class="soft" text-anchor="end"')
        reached = -1e9
        for value in self.values:
            x, label = self.x(value), f"{value:,}"
            yield f'<path class="axis" d="M{x:.1f} {bottom:.1f}v5"/>'
            if x - reached >= len(label) * _CHAR + 8:  # or it would stand in the one before
                yield _words(x, bottom + 20, label, 'class="soft" text-anchor="middle"')
                reached = x
        yield _words(_LEFT + _PLOT_WIDTH / 2, bottom + 43, clip(self._axis(), 60), 'class="ink" text-anchor="middle"')

    def _series(self, place: int, series: Series) -> Iterator[str]:
        colour, dash = _COLOURS[place % len(_COLOURS)], ' stroke-dasharray="7 4"' * (place // len(_COLOURS) % 2)
        points, best = series.points, self.curve.knee(series)
        if self.curve.setting == "max_in_flight" and len(self.curve.series) == 1:
            yield from self._proportion(points)
        name = escape(_label(series) or self._axis())
        yield f'<g stroke="{colour}" fill="none" stroke-width="2"><title>{name}</title>'
        path = self._path([(point.value, point.median) for point in points])
        yield f'<path stroke-linejoin="round" d="{path}"{dash}/>'
        yield from (line for point in points for line in self._point(point, colour))
        yield "</g>"
        if best is not None:
            x, y = self.x(best.value), self.y(best.median)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            if len(self.curve.series) == 1:
                yield _words(x + 8, y + 24, f"knee: {best.value:,}", 'class="ink" font-weight="600"')

    def _point(self, point: Point, colour: str) -> Iterator[str]:
        x, low, high = self.x(point.value), self.y(min(point.rates)), self.y(max(point.rates))
        if low - high >= 1:
            ends = f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
            yield f'<path stroke-width="1.3" d="M{x:.1f} {low:.1f}V{high:.1f}{ends}"/>'
        spread_of = f"{_number(min(point.rates))} to {_number(max(point.rates))}"
        told = escape(printable(f"{point.name}: {_number(point.median)} records/s ({spread_of})"))
        centre = f'cx="{x:.1f}" cy="{self.y(point.median):.1f}"'
        yield f'<circle {centre} r="3.6" fill="{colour}"><title>{told}</title></circle>'

    def _path(self, places: Sequence[tuple[float, float]]) -> str:
        """Through values and rates, in steps: what is straight over the values is bent over their logarithm."""
        steps = [places[0]]
        for (value, rate), (next_value, next_rate) in pairwise(places):
            shares = [step / _STEPS for step in range(1, _STEPS + 1)]
            steps += [(value + share * (next_value - value), rate + share * (next_rate - rate)) for share in shares]
        return "M" + "L".join(f"{self.x(value):.1f} {self.y(rate):.1f}" for value, rate in steps)

    def _proportion(self, points: Sequence[Point]) -> Iterator[str]:
        """What the first point comes to in proportion, up to the top of the plot."""
        first, last = points[0], points[-1]
        if first is last or not first.median:
            return
        end = min(last.value, first.value * self.ticks[-1] / first.median)
        path = self._path([(first.value, first.median), (end, first.median * end / first.value)])
        yield f'<path class="axis" fill="none" stroke-dasharray="3 4" d="{path}"/>'
        if end < last.value:
            yield _words(self.x(end) - 10, _TOP + 13, "in proportion", 'class="soft" text-anchor="end"')

    def _names(self) -> Iterator[str]:
        """The other settings of each series, where it ends."""
        named = sorted(
            ((self.y(series.points[-1].median), place, series) for place, series in enumerate(self.curve.series)),
            key=lambda found: found[:2],
        )
        if len(named) < 2:
            return
        places = spread([y for y, _, _ in named], [1.0] * len(named), [_LABEL_HEIGHT] * (len(named) - 1))
        for row, (y, (_, place, series)) in enumerate(zip(places, named, strict=True)):
            y = max(y, _TOP + _LABEL_HEIGHT * row)  # and so that those below have room, too
            y = min(y, _TOP + self.plot - _LABEL_HEIGHT * (len(named) - 1 - row))
            x = self.x(series.points[-1].value) + 12
            yield _words(x, y + 4, _label(series), f'fill="{_COLOURS[place % len(_COLOURS)]}"')


def _label(series: Series) -> str:
    return clip(printable(series.name), 30)


def _words(x: float, y: float, text: str, how: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to what is at least ``most``, four to eight of them."""
    if most < 1e-6:
        return [0.0, 1.0]
    magnitude = 10.0 ** floor(log10(most / 4))
    step = max(factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0) if factor * magnitude <= most / 4)
    return [step * place for place in range(ceil(most / step - 1e-9) + 1)]
