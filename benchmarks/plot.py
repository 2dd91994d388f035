"""The picture of what :mod:`peers` measured: ``python benchmarks/plot.py results.json picture.svg picture.png``.

An SVG is drawn twice, for a light page and, with ``-dark`` in its name, for a dark one; both are transparent. A PNG is
drawn once, on white. This is all that needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["draw"]


@dataclass(frozen=True)
class Theme:
    """Colours of a page: of its text, of its lines, and of the bars by kind of contender."""

    text: str
    faint: str
    ground: str
    bars: Mapping[str, str]


LIGHT: Final = Theme("#1f2328", "#d1d9e0", "#ffffff", {"ours": "#0969da", "by hand": "#6e7781", "peer": "#afb8c1"})
DARK: Final = Theme("#f0f6fc", "#3d444d", "#0d1117", {"ours": "#4493f8", "by hand": "#9198a1", "peer": "#59636e"})

KINDS: Final = {"ours": "stageflow", "by hand": "written by hand", "peer": "other tools"}
IN_TURN: Final = "hollow: one call after another"

LEFT: Final = 0.012
HEADING_AT: Final = -0.31
"""Where text begins: on the page, and over a panel, whose names stand left of its bars."""

INCHES: Final = (9.0, 6.6)
"""At 72 points an inch a little less than a README is wide, so that its letters are as large as said or larger."""


def draw(told: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw what was told; return the files written."""
    if path.suffix == ".svg":
        dark = path.with_name(f"{path.stem}-dark{path.suffix}")
        _draw(told, path, LIGHT, transparent=True)
        _draw(told, dark, DARK, transparent=True)
        return [path, dark]
    _draw(told, path, LIGHT, transparent=False)
    return [path]


def _draw(told: Mapping[str, Any], path: Path, theme: Theme, *, transparent: bool) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # Letters stay letters, which can be searched and read aloud; the salt makes equal pictures equal files.
    style = {"font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "stageflow"}
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text)
    with pyplot.rc_context({**style, **colours}):
        figure, panels = pyplot.subplots(2, 2, figsize=INCHES)
        costs = [row["us/record"] for row in told["rows"] if row["share"] is None]
        limits = min(costs) / 2, max(costs) * 4.5  # the same for all, so that lengths compare across panels
        for axes, (work, heading) in zip(panels.flat, told["works"].items(), strict=True):
            rows = [row for row in told["rows"] if row["work"] == work]
            _panel(axes, heading, rows, told["contenders"], limits, theme)
        _surroundings(figure, told, theme)
        figure.tight_layout(rect=(0, 0.085, 1, 0.92), w_pad=2.0, h_pad=1.6)
        date = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, transparent=transparent, facecolor=theme.ground, metadata=date)
        pyplot.close(figure)


def _panel(
    axes: Any,
    heading: str,
    rows: Sequence[Mapping[str, Any]],
    contenders: Mapping[str, Any],
    limits: tuple[float, float],
    theme: Theme,
) -> None:
    """One kind of work: a bar for each contender, the best on top, with its figure beside it."""
    shares = rows[0]["share"] is not None
    best_first = sorted(rows, key=lambda row: -row["share"] if shares else row["us/record"])
    values = [row["share"] if shares else row["us/record"] for row in best_first]
    for place, (row, value) in enumerate(zip(best_first, values, strict=True)):
        contender = contenders[row["contender"]]
        colour = theme.bars[contender["kind"]]
        hollow = contender["in turn"] and row["work"] in ("no-op", "file to file")
        axes.barh(place, value, height=0.68, facecolor="none" if hollow else colour, edgecolor=colour, linewidth=1)
        weight = "bold" if contender["kind"] == "ours" else "normal"
        label = f"{value:.0%}" if shares else _microseconds(value)
        end = max(value, 1.0) if shares else value  # clear of the line that is the bound
        axes.annotate(label, (end, place), (4, 0), textcoords="offset points", va="center", weight=weight)
    axes.set_yticks(range(len(rows)), [row["contender"] for row in best_first])
    for tick, row in zip(axes.get_yticklabels(), best_first, strict=True):
        tick.set_weight("bold" if contenders[row["contender"]]["kind"] == "ours" else "normal")
    axes.invert_yaxis()
    axes.set_title(heading, loc="left", x=HEADING_AT, fontsize=9.5, weight="bold", color=theme.text)
    if shares:
        axes.set_xlim(0, 1.15)
        axes.axvline(1, color=theme.text, linewidth=0.8, linestyle=(0, (4, 3)))
    else:
        axes.set_xscale("log")
        axes.set_xlim(*limits)
    _quiet(axes, theme)


def _quiet(axes: Any, theme: Theme) -> None:
    """Leave the bars and their figures: no frame, no ticks; a log scale without numbers reads as lengths only."""
    axes.tick_params(axis="both", length=0, which="both")
    axes.set_xticks([], minor=False)
    axes.set_xticks([], minor=True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme.faint)


def _surroundings(figure: Any, told: Mapping[str, Any], theme: Theme) -> None:
    """What the picture is of, what the colours mean, and what it was measured with."""
    from matplotlib.patches import Patch

    figure.text(LEFT, 0.972, "Three stages, 16, 64 and 8 calls in progress", fontsize=12, weight="bold", va="center")
    kinds = [Patch(color=theme.bars[kind], label=label) for kind, label in KINDS.items()]
    hollow = Patch(facecolor="none", edgecolor=theme.text, label=IN_TURN)
    figure.legend(
        handles=[*kinds, hollow], loc="center left", bbox_to_anchor=(0, 0.938), ncols=4, frameon=False, fontsize=8.5,
        handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
    versions = ", ".join(f"{name} {each['version']}" for name, each in told["contenders"].items() if each["version"])
    rounds = " and ".join(sorted({str(number) for number in told["rounds"].values()}))
    measured = f"{told['machine']}; {told['python']}, {told['loop']}; {told['date']}; medians of {rounds} rounds"
    for height, line in ((0.058, measured), (0.036, versions), (0.014, "python benchmarks/peers.py --plot peers.svg")):
        figure.text(LEFT, height, line, fontsize=7.5, va="center", alpha=0.8)


def _microseconds(value: float) -> str:
    return f"{value:.1f} µs" if value < 100 else f"{value:.0f} µs"


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        print("usage: python benchmarks/plot.py results.json PICTURE...", file=sys.stderr)
        return 2
    told = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    for picture in argv[1:]:
        for path in draw(told, Path(picture)):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
