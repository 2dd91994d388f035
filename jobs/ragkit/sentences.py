"""Sentences of a passage as exact spans: what the generator quotes and what the ranking reads first."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A full stop ends a sentence before white space and a new start, but not after these.
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|al|fig|no|approx|resp|incl)|\b[A-Z])\.$", re.I)
_END = re.compile(r"[.!?][\"')\]]*(?=\s+[\"'(\[`*A-Z0-9<>_])|\n[ \t]*\n|[:]\n(?=[ \t]*\n)")
_LIST_ITEM = re.compile(r"\n(?=[ \t]*(?:[-*+]|\d+[.)])[ \t])")


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each sentence, list item or paragraph, in order, without white space around it."""
    start = 0
    for end in [*_ends(text), len(text)]:
        piece = text[start:end]
        if stripped := piece.strip():
            left = start + piece.index(stripped[0])
            yield left, left + len(stripped)
        start = end


def first(text: str) -> str:
    """Return the first sentence: by convention the summary of what is documented."""
    start, end = next(spans(text), (0, 0))
    return text[start:end]


def _ends(text: str) -> list[int]:
    marks = [match.end() for match in _END.finditer(text) if not _ABBREVIATION.search(text[: match.end()][-12:])]
    return sorted({*marks, *(match.end() for match in _LIST_ITEM.finditer(text))})
