"""Names and figures in a text: names the corpus documents, dotted names, versions, numbers, quoted strings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypedDict

from ragkit.publicnames import is_private

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:0[xob][0-9a-fA-F_]+|\d[\d_,]*(?:\.\d+)*(?:[eE][-+]?\d+)?)(?!\w)")
VERSION = re.compile(r"\b(?:[Vv]ersion\s+|[Pp]ython\s+|v)(\d+(?:\.\d+)*)\b|\b(\d+\.\d+\.\d+)\b")
DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
QUOTED = re.compile(r"``?([^`\n]{1,80})``?|\"([^\"\n]{1,80})\"|(?<!\w)'([^'\n]{1,80})'(?!\w)")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# A word that is written as a name wherever it stands: snake_case, CamelCase, ALL_CAPS, letters with digits.
_SHAPED = re.compile(r"\w*[a-z]\w*[A-Z]\w*|\w*[A-Za-z]\w*_\w*|_\w+|[A-Z]{2,}\w*|[A-Za-z]+\d+\w*")
_CAPITALISED = re.compile(r"(?<![\w.])[A-Z][a-z]+\b")


class Entities(TypedDict):
    """What a text names, each list in order of appearance without repeats."""

    names: list[str]  # qualified names of the corpus
    dotted: list[str]
    versions: list[str]
    numbers: list[str]
    quoted: list[str]


class Gazetteer:
    """All names the corpus documents, found in running text by looking identifiers up.

    A name is found by its full dotted form or by its last two parts (``Queue.put``). The last part alone counts only
    where it is shaped like a name or quoted, because ``open`` and ``list`` are also English.

    Args:
        ids: Passage ids, the qualified names.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._names: dict[str, list[str]] = {}
        for name in sorted(ids, key=_plainness):
            if not name.startswith("topic:") and "#" not in name:
                parts = name.split(".")
                for key in dict.fromkeys((name, ".".join(parts[-2:]), parts[-1])):
                    self._names.setdefault(key, []).append(name)

    def find(self, text: str, most: int = 8) -> Entities:
        """Return the entities of a text; ``most`` bounds the names one ambiguous word may stand for."""
        quoted = ["".join(groups) for groups in QUOTED.findall(text)]
        dotted = DOTTED.findall(text)
        bare = [word for word in _IDENTIFIER.findall(text) if _SHAPED.fullmatch(word)]
        literal = [word for piece in quoted for word in _IDENTIFIER.findall(piece)]
        names = [name for key in (*dotted, *bare, *literal) for name in self._names.get(key, ())[:most]]
        return Entities(
            names=_unique(names),
            dotted=_unique(dotted),
            versions=_unique("".join(groups) for groups in VERSION.findall(text)),
            numbers=numbers(text),
            quoted=_unique(quoted),
        )


def _plainness(name: str) -> tuple[bool, bool, int]:
    return is_private(name), not name.startswith("builtins."), name.count(".")


def numbers(text: str) -> list[str]:
    """Return the numbers of a text without signs and digit grouping: ``1,000`` and ``1_000`` are ``1000``."""
    found = (number.lstrip("+-").replace(",", "").replace("_", "").rstrip(".") for number in NUMBER.findall(text))
    return _unique(found)


def names(text: str) -> list[str]:
    """Return the words of a text that are written as names: dotted, shaped like identifiers, or capitalised."""
    shaped = (word for word in _IDENTIFIER.findall(text) if _SHAPED.fullmatch(word))
    return _unique([*DOTTED.findall(text), *shaped, *_CAPITALISED.findall(text)])


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
