"""The validator: does an answer stand on what it cites?

Shared words alone prove nothing: "returns 5" and "returns 7" share almost all of theirs. So an answer must also
cite exact places, and every number and every name in it must occur in the cited evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from ragkit.entities import names, numbers
from ragkit.extract import INSUFFICIENT, Citation
from ragkit.index import Hit, Index
from ragkit.words import STOPWORDS, stem, terms

MIN_COVERAGE = 0.6  # unrelated passages of this corpus stay below it, quotes and close paraphrases above

_SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+|[-*]\s+)[\"'(]*([A-Z]\w*)")
_WORD = re.compile(r"\w+")


class Verdict(TypedDict):
    """``grounded`` if there is no problem; ``coverage`` is the share of the answer's word weight in the evidence."""

    grounded: bool
    coverage: float
    problems: list[str]


def validate(answer: object, hits: Sequence[Hit], index: Index) -> Verdict:
    """Check an answer against the passages it was given.

    Args:
        answer: What a generator returned; anything, since it may come from a model.
        hits: The passages the generator saw; a citation of any other is a problem.
        index: Where the word weights come from.
    """
    problems = list(_schema(answer))
    if problems or not isinstance(answer, Mapping):
        return Verdict(grounded=False, coverage=0.0, problems=problems)
    text: str = answer["answer"]
    citations: list[Citation] = answer["citations"]
    if text == INSUFFICIENT and not citations:
        return Verdict(grounded=False, coverage=0.0, problems=[INSUFFICIENT])
    texts = {hit["id"]: hit["text"] for hit in hits}
    problems += [problem for citation in citations for problem in _span(citation, texts)]
    cited = (texts.get(each["doc"], "")[each["start"] : each["end"]] for each in citations)
    evidence = "\n".join([*(each["doc"] for each in citations), *cited])
    coverage = _coverage(text, evidence, index)
    if coverage < MIN_COVERAGE:
        problems.append(f"only {coverage:.2f} of the answer's word weight is in the evidence, {MIN_COVERAGE} is needed")
    problems += _unsupported(text, evidence)
    return Verdict(grounded=not problems, coverage=round(coverage, 4), problems=problems)


def _schema(answer: object) -> Iterator[str]:
    if not isinstance(answer, Mapping) or not {"answer", "citations"} <= set(answer):
        yield "the answer is no mapping with answer and citations"
        return
    if not isinstance(answer["answer"], str) or not answer["answer"].strip():
        yield "the answer is empty or no text"
    citations = answer["citations"]
    if not isinstance(citations, list) or not all(_is_citation(each) for each in citations):
        yield "citations are not a list of {doc, start, end, quote}"
    elif not citations and answer["answer"] != INSUFFICIENT:
        yield "the answer cites nothing"


def _is_citation(each: object) -> bool:
    return (
        isinstance(each, Mapping)
        and isinstance(each.get("doc"), str)
        and isinstance(each.get("quote"), str)
        and all(type(each.get(key)) is int for key in ("start", "end"))
    )


def _span(citation: Citation, texts: Mapping[str, str]) -> Iterator[str]:
    doc, start, end = citation["doc"], citation["start"], citation["end"]
    if doc not in texts:
        yield f"{doc} is cited but was not retrieved"
    elif not 0 <= start < end <= len(texts[doc]):
        yield f"characters {start} to {end} are not in {doc}"
    elif citation["quote"] != texts[doc][start:end]:
        yield f"the quote is not what stands at {start} to {end} of {doc}"


def _coverage(text: str, evidence: str, index: Index) -> float:
    said, known = set(terms(text)), set(terms(evidence))
    return index.weight(said & known) / (index.weight(said) or 1.0)


def _unsupported(text: str, evidence: str) -> Iterator[str]:
    figures = set(numbers(evidence))
    yield from (f"the number {each} is not in the evidence" for each in numbers(text) if each not in figures)
    written = evidence.casefold()
    known = set(_WORD.findall(written))
    stems = set(terms(evidence))
    starts = set(_SENTENCE_START.findall(text))
    for name in names(text):
        parts = [part.casefold() for part in _WORD.findall(name)]
        # At the start of a sentence any word has a capital; an ordinary one is known by its stem.
        ordinary = STOPWORDS.issuperset(parts) or (name in starts and stem(parts[0]) in stems)
        # A dotted name must be there as a whole: its parts may come from two other names.
        if not ordinary and not (name.casefold() in written and known.issuperset(parts)):
            yield f"the name {name} is not in the evidence"
