"""The curve as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log, log10

from stageflow.report.curve.points import Curve, Point, Series, rate_text
from stageflow.report.layout import spread
from stageflow.report.svg import AMBER, BLUE, GREEN, INK, ROSE, TEAL, VIOLET, opening, text_width, words
from stageflow.report.text import clip, printable

__all__ = ["svg"]

_COLOURS = (BLUE, AMBER, GREEN, ROSE, VIOLET, TEAL)
_PLOT_WIDTH, _PLOT_HEIGHT, _LABEL_HEIGHT = 560.0, 280.0, 15.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 74.0, 66.0, 30.0, 58.0
_STEPS = 16
_SIZE = 12
# On a card of its own: it is readable whatever page is around it, also where only one of the two follows the reader.
_STYLE = (
    f".card{{fill:#ffffff;stroke:#d5dae3}}.ink{{fill:{INK}}}"
    ".soft{fill:#5b6678}.grid{stroke:#e6e9ef}.axis{stroke:#8a94a6}"
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
        right = _RIGHT + max(text_width(_label(series), _SIZE) for series in curve.series)
        self.plot = max(_PLOT_HEIGHT, _LABEL_HEIGHT * (len(curve.series) + 1))
        self.width, self.height = _LEFT + _PLOT_WIDTH + right, _TOP + self.plot + _BOTTOM

    def x(self, value: float) -> float:
        first, last = self.values[0], self.values[-1]
        share = log(value / first) / log(last / first) if last > first else 0.5
        return _LEFT + 24 + share * (_PLOT_WIDTH - 48)

    def y(self, rate: float) -> float:
        return _TOP + self.plot * (1 - rate / self.ticks[-1])

    def draw(self) -> str:
        title = f"{printable(self.curve.title)}: records per second over {self._axis()}"
        return "\n".join(
            [
                *opening(self.width, self.height, title, f'font-size="{_SIZE}"'),
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
        yield words(20, 28, title, 'class="ink" font-size="15" font-weight="600"')
        yield words(20, 47, f"Records per second: {what}{ring}", 'class="soft"')

    def _axes(self) -> Iterator[str]:
        bottom, right = _TOP + self.plot, _LEFT + _PLOT_WIDTH
        for tick in self.ticks:
            y, kind = self.y(tick), "axis" if tick == 0 else "grid"
            yield f'<path class="{kind}" d="M{_LEFT:.1f} {y:.1f}H{right:.1f}"/>'
            yield words(_LEFT - 10, y + 4, rate_text(tick) if tick else "0", 'class="soft" text-anchor="end"')
        reached = -1e9
        for value in self.values:
            x, label = self.x(value), f"{value:,}"
            yield f'<path class="axis" d="M{x:.1f} {bottom:.1f}v5"/>'
            if x - reached >= text_width(label, _SIZE) + 8:  # or it would stand in the one before
                yield words(x, bottom + 20, label, 'class="soft" text-anchor="middle"')
                reached = x
        yield words(_LEFT + _PLOT_WIDTH / 2, bottom + 43, clip(self._axis(), 60), 'class="ink" text-anchor="middle"')

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
                yield words(x + 8, y + 24, f"knee: {best.value:,}", 'class="ink" font-weight="600"')

    def _point(self, point: Point, colour: str) -> Iterator[str]:
        x, low, high = self.x(point.value), self.y(min(point.rates)), self.y(max(point.rates))
        if low - high >= 1:
            ends = f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
            yield f'<path stroke-width="1.3" d="M{x:.1f} {low:.1f}V{high:.1f}{ends}"/>'
        spread_of = f"{rate_text(min(point.rates))} to {rate_text(max(point.rates))}"
        told = escape(printable(f"{point.name}: {rate_text(point.median)} records/s ({spread_of})"))
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
            yield words(self.x(end) - 10, _TOP + 13, "in proportion", 'class="soft" text-anchor="end"')

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
            yield words(x, y + 4, _label(series), f'fill="{_COLOURS[place % len(_COLOURS)]}"')


def _label(series: Series) -> str:
    return clip(printable(series.name), 30)


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to what is at least ``most``, four to eight of them."""
    if most < 1e-6:
        return [0.0, 1.0]
    magnitude = 10.0 ** floor(log10(most / 4))
    step = max(factor * magnitude for factor in (1.0, 2.0, 2.5, 5.0) if factor * magnitude <= most / 4)
    return [step * place for place in range(ceil(most / step - 1e-9) + 1)]
