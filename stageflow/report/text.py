"""Text for people: what may reach a terminal, how wide it is there, and numbers in units one can read."""

from __future__ import annotations

import re
from unicodedata import category, combining, east_asian_width

__all__ = ["cells", "clip", "count", "counted", "duration", "pad", "percent", "printable", "rate", "shows"]

# A string sequence (window title, clipboard, hyperlink) that never ends is left in, but loses its ESC like any other
# that is not matched here: its text is harmless then, and may be all there is.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_SPACES = frozenset("\t\n\v\f\r\x85\u2028\u2029")
_JOINERS = frozenset("\u200c\u200d")  # several scripts need them; the other format characters only disguise


def printable(text: str) -> str:
    """``text`` on one line, without control characters, escape sequences or invisible direction marks.

    For whatever comes from records, error messages, or names out of a job file: a terminal obeys what it is sent.
    """
    if text.isprintable():
        return text
    return "".join(_safe(char) for char in _ESCAPES.sub("", text))


def _safe(char: str) -> str:
    if char in _SPACES:
        return " "
    return "" if category(char) in {"Cc", "Cf", "Cs"} and char not in _JOINERS else char


def cells(text: str) -> int:
    """How many columns of a terminal printable ``text`` takes: two for each East Asian wide character."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(char) for char in text)


def _cells_of(char: str) -> int:
    if combining(char) or char in _JOINERS:
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def clip(text: str, width: int) -> str:
    """``text`` if it fits into ``width`` columns, else its beginning and an ellipsis."""
    if cells(text) <= width:
        return text
    kept, room = [], width - 1
    for char in text:
        room -= _cells_of(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…" if width > 0 else ""


def shows(text: str, encoding: str | None) -> bool:
    """Whether a stream of this encoding, UTF-8 where it names none, has all of these characters."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def pad(text: str, width: int, *, right: bool = False) -> str:
    """``text`` filled with spaces to ``width`` columns; ``right`` aligns it to the right."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def count(number: int) -> str:
    """``1234567`` as ``1,234,567``."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """``0.98`` as ``98 %``."""
    return f"{share:.0%}".replace("%", " %")


def duration(seconds: float) -> str:
    """In the unit that fits: ``12 µs``, ``0.8 ms``, ``1.24 s``, ``12 min 05 s``, ``3 h 07 min``, ``2 d 4 h``."""
    # The limits are where rounding would otherwise show the next unit's number, as in 1000 ms.
    if seconds < 0.0001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.00995 else f"{seconds * 1e3:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def rate(per_second: float) -> str:
    """A rate in the unit that fits: ``1,234/s``, ``9.7/s``, ``12/min``, ``3.1/h``."""
    for number, unit in ((per_second, "s"), (per_second * 60, "min"), (per_second * 3600, "h")):
        if number >= 0.95:
            return f"{number:.1f}/{unit}" if number < 9.95 else f"{number:,.0f}/{unit}"
    return "0/s"
