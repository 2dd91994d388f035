"""Search over passages in two steps: an engine proposes by BM25, then the proposals are ranked.

The ranking knows what BM25 does not: how much of the question a passage covers, whether its first sentence or its name
does, and whether the name is one a user would write (public, few dots, not a dunder).
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypedDict

from ragkit import corpus, sentences
from ragkit.corpus import Passage
from ragkit.engines import ENGINES, Engine
from ragkit.publicnames import is_private
from ragkit.question import Question
from ragkit.words import stem, terms, words

CANDIDATES = 100
# Rounded from coordinate descents on the two halves of jobs/queries.jsonl: recall on those questions is not held out.
BM25, COVERED, HEADLINE, NAMED = 0.7, 1.4, 0.5, 0.35
PRIVATE, DUNDER, TOPIC, LATER_PIECE, PER_DOT = 1.4, 0.5, 0.5, 0.8, 0.15

_opening = threading.Lock()  # with lru_cache alone, two threads could both build it


class Hit(TypedDict):
    """One retrieved passage; ``score`` orders the hits of one search and means nothing across searches."""

    id: str
    text: str
    score: float


class _Entry(NamedTuple):
    """What the ranking needs to know of a passage."""

    everything: frozenset[str]
    headline: frozenset[str]
    name: frozenset[str]  # the last part of the qualified name
    penalty: float


class Index:
    """Search over passages, and the term statistics the other parts share. Safe to use from many threads.

    Args:
        passages: What is searched.
        retriever: ``"tantivy"``, ``"sqlite"``, or ``"auto"``: tantivy where it is installed.

    Raises:
        ValueError: The retriever is unknown, or its package is missing.
    """

    def __init__(self, passages: Sequence[Passage], retriever: str = "auto") -> None:
        name = next(iter(ENGINES)) if retriever == "auto" else retriever
        if name not in ENGINES:
            hint = "pip install tantivy" if name == "tantivy" else f"choose one of auto, {', '.join(ENGINES)}"
            raise ValueError(f"retriever {retriever!r} is not available: {hint}")
        self.retriever = name
        self.passages = passages
        self.text = {passage.id: passage.text for passage in passages}
        bodies = [frozenset(terms(passage.text)) for passage in passages]
        self._frequency = Counter(term for body in bodies for term in body)
        titles = [title_words(passage.id, self._frequency) for passage in passages]
        self._entries = [self._entry(*each) for each in zip(passages, bodies, titles, strict=True)]
        rows = ((" ".join(title), passage.text) for title, passage in zip(titles, passages, strict=True))
        self._engine: Engine = ENGINES[name](rows)

    def search(self, query: str, limit: int = 5) -> list[Hit]:
        """Return the best passages for a question, best first; none if it has no word to look for."""
        question = self.question(query)
        if not question.plain:
            return []
        found = self._engine.search(question.plain, max(limit, CANDIDATES))
        top = max((score for _, score in found), default=0.0) or 1.0
        ranked = sorted((-_rank(self._entries[number], score / top, question), number) for number, score in found)
        best = [(self.passages[number], -score) for score, number in ranked[:limit]]
        return [Hit(id=passage.id, text=passage.text, score=round(score, 4)) for passage, score in best]

    def question(self, query: str) -> Question:
        """Read a question with this corpus' word weights."""
        return Question.read(query, self.idf)

    def stems(self) -> Iterable[tuple[str, frozenset[str]]]:
        """Yield the id of each passage and the distinct stems of its name and text, in corpus order."""
        return ((passage.id, entry.everything) for passage, entry in zip(self.passages, self._entries, strict=True))

    def idf(self, term: str) -> float:
        """Return how telling a stem is: near 0 for one in every passage, about 9 for one in none."""
        return math.log(1 + len(self.passages) / (1 + self._frequency[term]))

    def weight(self, some: Iterable[str]) -> float:
        """Return the summed IDF of stems."""
        return sum(map(self.idf, some))

    def close(self) -> None:
        """Close the engine; the index is not searched afterwards."""
        self._engine.close()

    def _entry(self, passage: Passage, body: frozenset[str], title: Sequence[str]) -> _Entry:
        name = frozenset(map(stem, title))
        path = passage.id.partition("#")[0].split(".")
        return _Entry(
            everything=body | name,
            headline=name.union(terms(sentences.first(passage.text))),
            name=frozenset(map(stem, title_words(path[-1], self._frequency))),
            penalty=_penalty(passage.id, path),
        )


def _rank(entry: _Entry, bm25: float, question: Question) -> float:
    covered = question.coverage(entry.everything)
    headline = question.coverage(entry.headline)
    named = sum(map(question.asks_for, entry.name)) / len(entry.name)
    return BM25 * bm25 + COVERED * covered + HEADLINE * headline + NAMED * named - entry.penalty


def _penalty(name: str, path: Sequence[str]) -> float:
    if name.startswith("topic:"):
        return TOPIC + PER_DOT
    dunder = path[-1].startswith("__")
    return PRIVATE * is_private(name) + DUNDER * dunder + LATER_PIECE * ("#" in name) + PER_DOT * len(path)


def open_index(retriever: str = "auto") -> Index:
    """Return the index over the running interpreter's documentation; made once in a process, in about two seconds.

    It is shared by all who ask for it, in any thread, and so nobody closes it.
    """
    with _opening:
        return _open(retriever)


@lru_cache
def _open(retriever: str) -> Index:
    return Index(_passages(), retriever)


@lru_cache(maxsize=1)
def _passages() -> Sequence[Passage]:
    return tuple(corpus.build())


def title_words(name: str, known: Mapping[str, int]) -> list[str]:
    """Return the words of a qualified name; ``copytree`` also gives copy and tree, two words the corpus knows."""
    title = words(name.replace("topic:", "").partition("#")[0])
    return list(dict.fromkeys([*title, *(half for word in title for half in _halves(word, known))])) or [name]


def _halves(word: str, known: Mapping[str, int], common: int = 8) -> tuple[str, ...]:
    def weight(cut: int) -> int:
        return min(known.get(stem(word[:cut]), 0), known.get(stem(word[cut:]), 0))

    best = max(range(3, len(word) - 2), key=weight, default=0)
    return (word[:best], word[best:]) if best and weight(best) >= common else ()
