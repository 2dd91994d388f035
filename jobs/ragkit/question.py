"""A question, read once: its words with their weights, and the kind of answer it wants."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from ragkit.thesaurus import synonyms
from ragkit.words import question_words, stem

SYNONYM = 0.6  # what a synonym counts for, of the word that was asked for

Kind = Literal["how-to", "how-many", "when", "who", "where", "which", "definition", "other"]

_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("how-many", re.compile(r"\bhow (?:many|much|long|big|large|wide|often|deep)\b", re.I)),
    ("how-to", re.compile(r"\bhow (?:do|does|can|could|should|would|to|is|are)\b|\bway to\b", re.I)),
    ("when", re.compile(r"\bwhen\b|\bsince (?:when|which|what)\b", re.I)),
    ("who", re.compile(r"\bwho(?:se|m)?\b", re.I)),
    ("where", re.compile(r"\bwhere\b", re.I)),
    ("which", re.compile(r"\bwhich\b|\bwhat (?:function|method|class|module|type|exception)\b", re.I)),
    ("definition", re.compile(r"\bwhat(?:'s| is| are| does| do)\b|\bmean(?:s|ing)?\b|\bexplain\b", re.I)),
)


@dataclass(frozen=True, slots=True)
class Word:
    """One content word of a question.

    Args:
        stem: Its stem.
        weight: Its IDF in the corpus.
        synonyms: Stems that may stand for it.
    """

    stem: str
    weight: float
    synonyms: frozenset[str]

    def credit(self, where: AbstractSet[str]) -> float:
        """Return the weight if the word is among the stems, part of it for a synonym, else 0."""
        if self.stem in where:
            return self.weight
        return SYNONYM * self.weight if not self.synonyms.isdisjoint(where) else 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question as its content words. ``text`` is what was asked, ``kind`` the sort of answer that fits."""

    text: str
    plain: tuple[str, ...]
    words: tuple[Word, ...]
    kind: Kind

    @classmethod
    def read(cls, text: str, idf: Callable[[str], float]) -> Question:
        """Read a question; ``idf`` gives the weight of a stem."""
        plain = tuple(question_words(text))
        weighed = (Word(stem(word), idf(stem(word)), frozenset(map(stem, synonyms(word)))) for word in plain)
        return cls(text, plain, tuple(weighed), kind_of(text))

    def coverage(self, where: AbstractSet[str]) -> float:
        """Return the IDF-weighted share of the question that a set of stems covers, from 0 to 1."""
        total = sum(word.weight for word in self.words)
        return sum(word.credit(where) for word in self.words) / total if total else 0.0

    def asks_for(self, term: str) -> bool:
        """Tell whether a stem is one of the question's words or a synonym of one."""
        return any(term == word.stem or term in word.synonyms for word in self.words)


def kind_of(text: str) -> Kind:
    """Classify a question by the words it asks with; the first pattern that fits decides."""
    return next((kind for kind, pattern in _KINDS if pattern.search(text)), "other")
