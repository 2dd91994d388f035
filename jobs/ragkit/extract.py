"""The extractive generator: it quotes, it does not write.

An answer is one or two sentences taken word for word from the retrieved passages, each cited by its exact place. So it
cannot invent anything, and it cannot say what no passage says: where nothing fits well enough, the answer is
``insufficient evidence``, with no citation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

from ragkit import sentences
from ragkit.index import Hit, Index
from ragkit.question import Kind, Question
from ragkit.words import terms

INSUFFICIENT = "insufficient evidence"
# Set by hand. A sentence is worth the share of the question it covers (0 to 1), and:
CONTEXT = 0.35  # x what only the sentence before it or the passage's name covers: "it" and "this" refer back
FITS_KIND = 0.25
RANK = 0.25  # / position of its passage
ADDS = 0.1  # it says at least two things the question does not
MENTIONS = 0.3  # it names something that was asked for by name
FLOOR = 0.35  # share of the question that the best sentence, with its context, must cover
SECOND = 0.9  # of the best score, for a second sentence to be worth adding
SAME = 0.7  # share of terms from which two sentences say the same

_DATE = re.compile(r"\b(?:1[5-9]|20)\d\d\b|\bversion \d|\b(?:when|after|before|until|while|once|if)\b", re.I)
_PROPER = re.compile(r"\w\s+[A-Z][a-z]+")
_DEFINES = re.compile(r"\b(?:is|are|means?|represents?|denotes?|refers?|used (?:to|for|by))\b", re.I)
_FITS: dict[Kind, re.Pattern[str]] = {
    "when": _DATE,
    "how-many": re.compile(r"\d|\bnumber of\b|\bsize\b", re.I),
    "who": _PROPER,
    "where": _PROPER,
    "definition": _DEFINES,
}
_NO_PROSE = re.compile(r"^(?:>>>|\.\.\. |\$ )|\*\*\*|===|---|::=|\+--|\|")


class Citation(TypedDict):
    """Where a quote stands: characters ``start`` to ``end`` of passage ``doc``."""

    doc: str
    start: int
    end: int
    quote: str


class Answer(TypedDict):
    """An answer and the places it rests on."""

    answer: str
    citations: list[Citation]


class _Sentence(NamedTuple):
    score: float
    covered: float
    order: int
    terms: frozenset[str]
    citation: Citation


def extract(query: str, hits: Sequence[Hit], index: Index, *, most: int = 2, mentions: Sequence[str] = ()) -> Answer:
    """Answer a question with sentences of the passages.

    Args:
        query: The question.
        hits: Passages, best first; their order counts.
        index: Where the word weights come from.
        most: Sentences in the answer; >= 1.
        mentions: Names or literal strings that make a sentence more welcome where it, or its passage's id, has them.

    Returns:
        The sentences, best first, or ``insufficient evidence``; the same for the same arguments.
    """
    question = index.question(query)
    ranked = sorted(_sentences(question, hits, mentions), key=lambda each: (-each.score, each.order))
    if not ranked or ranked[0].covered < FLOOR:
        return Answer(answer=INSUFFICIENT, citations=[])
    chosen: list[_Sentence] = []
    for each in ranked:
        if each.score >= SECOND * ranked[0].score and not any(_alike(each, other) for other in chosen):
            chosen.append(each)
        if len(chosen) == most:
            break
    citations = [each.citation for each in chosen]
    return Answer(answer=" ".join(flat(citation["quote"]) for citation in citations), citations=citations)


def flat(text: str) -> str:
    """Put a text on one line."""
    return " ".join(text.split())


def _sentences(question: Question, hits: Sequence[Hit], mentions: Sequence[str]) -> Iterator[_Sentence]:
    order = 0
    for position, hit in enumerate(hits, 1):
        name = frozenset(terms(hit["id"]))
        before: frozenset[str] = frozenset()
        for number, (start, end) in enumerate(sentences.spans(hit["text"])):
            quote = hit["text"][start:end]
            here = frozenset(terms(quote))
            if _is_prose(quote):
                direct = question.coverage(here)
                covered = direct + CONTEXT * (question.coverage(here | before | name) - direct)
                extra = sum(not question.asks_for(term) for term in here) >= 2
                named = any(mention in quote or mention in hit["id"] for mention in mentions)
                fits = _fits(question.kind, quote, first=number == 0)
                score = covered + FITS_KIND * fits + RANK / position + ADDS * extra + MENTIONS * named
                citation = Citation(doc=hit["id"], start=start, end=end, quote=quote)
                yield _Sentence(score, covered, order, here, citation)
            order += 1
            before = here


def _is_prose(quote: str) -> bool:
    return len(quote) <= 500 and len(quote.split()) >= 3 and not _NO_PROSE.search(quote)


def _fits(kind: Kind, quote: str, *, first: bool) -> bool:
    pattern = _FITS.get(kind)
    # The first sentence of a docstring says what the thing does: the answer to "how do I" and "which".
    return bool(pattern.search(quote)) if pattern else first


def _alike(one: _Sentence, other: _Sentence) -> bool:
    return len(one.terms & other.terms) > SAME * min(len(one.terms), len(other.terms))
