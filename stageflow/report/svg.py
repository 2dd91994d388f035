"""What every SVG from here has in common: how it begins, its words, how wide those are, and the colours.

Each is self-contained: nothing is loaded from elsewhere, and the fonts are those that the reader's system has. Words
are escaped and places are pixels.
"""

from __future__ import annotations

from html import escape

from stageflow.report.text import cells

__all__ = ["AMBER", "BLUE", "GREEN", "INK", "ROSE", "TEAL", "VIOLET", "opening", "text_width", "words"]

# For lines: each is readable on white and on the dark card of a curve.
BLUE, AMBER, GREEN, ROSE, VIOLET, TEAL = "#4c78c8", "#c98a1b", "#3f9b5f", "#c2557a", "#7a5cc8", "#1f8f9e"
INK = "#1a2233"  # for words on a light ground

_FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
_CHARACTER = {11: 6.3, 12: 6.4, 14: 8.2}
"""A generous mean width of a character by the size of the font; 14 px is for names, which are semi-bold."""


def opening(width: float, height: float, title: str, words: str) -> list[str]:
    """The first lines: the root, with attributes for all ``words`` in it, and what a reader of the screen is told."""
    name = escape(title)
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{name}" font-family="{_FONTS}" {words}>',
        f"<title>{name}</title>",
    ]


def words(x: float, y: float, text: str, how: str) -> str:
    """One line of text; ``how`` is its attributes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'


def text_width(text: str, size: int) -> float:
    """The pixels that ``text`` takes at a font size of 11, 12 or 14, rather too many than too few."""
    return cells(text) * _CHARACTER[size]
