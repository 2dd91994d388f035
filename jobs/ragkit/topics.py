"""Which part of the library a question is about: a centroid classifier trained from the corpus' own labels.

The label of a passage is its top-level module; the language reference is ``language``. Training takes a fraction of a
second, so it happens when the index is opened and nothing is stored.

Source: J. J. Rocchio, "Relevance feedback in information retrieval", 1971, as a nearest-centroid classifier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import TypedDict

from ragkit.index import Hit, Index, open_index
from ragkit.publicnames import is_private
from ragkit.question import Kind

SHRINK = 0.7  # of a centroid's length is divided out: all of it (1.0) would let tiny modules win on one rare word
BOOST = 0.25  # about a third of the usual gap between the first and the tenth hit


class Topic(TypedDict):
    """``topics`` are labels, the most likely first; ``kind`` is the sort of answer the question wants."""

    topics: list[str]
    kind: Kind


class Topics:
    """Nearest centroid over IDF-weighted stems.

    Args:
        index: The passages to learn from, and the word weights.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for name, stems in index.stems():
            if is_private(name):
                continue
            weights = {term: index.idf(term) for term in stems}
            length = sqrt(sum(weight * weight for weight in weights.values())) or 1.0
            centroid = sums[label(name)]
            for term, weight in weights.items():
                centroid[term] += weight / length
        self.labels = sorted(sums)
        self._postings: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for name in self.labels:
            norm = sum(value * value for value in sums[name].values()) ** (SHRINK / 2) or 1.0
            for term, value in sums[name].items():
                self._postings[term].append((name, value / norm))

    def classify(self, query: str, most: int = 3) -> Topic:
        """Return the likeliest topics of a question, at most ``most``; none if it shares no word with any."""
        question = self._index.question(query)
        scores: dict[str, float] = defaultdict(float)
        for word in question.words:
            for name, value in self._postings.get(word.stem, ()):
                scores[name] += word.weight * value
        best = sorted(scores, key=lambda name: (-scores[name], name))
        return Topic(topics=best[:most], kind=question.kind)


@lru_cache
def open_topics(retriever: str = "auto") -> Topics:
    """Return the classifier for the running interpreter's documentation; made once in a process."""
    return Topics(open_index(retriever))


def label(name: str) -> str:
    """Return the topic of a passage id."""
    return "language" if name.startswith("topic:") else name.partition("#")[0].partition(".")[0]


def prefer(hits: Sequence[Hit], topics: Sequence[str]) -> list[Hit]:
    """Return the hits with those of the likely topics moved up, the likeliest most; equal scores keep their order."""
    boosts = {name: BOOST / (1 + position) for position, name in enumerate(topics)}
    scores = [hit["score"] + boosts.get(label(hit["id"]), 0.0) for hit in hits]
    raised = [Hit(id=hit["id"], text=hit["text"], score=score) for hit, score in zip(hits, scores, strict=True)]
    return sorted(raised, key=lambda hit: -hit["score"])
