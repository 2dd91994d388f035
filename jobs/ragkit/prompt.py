"""What a language model is asked, and what its answer rests on: the same for each model that writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ragkit.extract import INSUFFICIENT, Answer, Citation, flat
from ragkit.index import Hit

PASSAGES: Final = 3
PASSAGE_CHARS: Final = 600
OPTIONS: Final[dict[str, Any]] = {"temperature": 0, "stop": ["```"]}
"""Sent with each question. Code is no answer here: nothing in it could be checked against the passages."""

_SYSTEM: Final = (
    "Answer the question in one or two plain sentences without code, using only the passages."
    f" If they do not answer it, say: {INSUFFICIENT}."
)


def messages(query: str, shown: Sequence[Citation]) -> list[dict[str, str]]:
    """A question with the passages it is to be answered from, as OpenAI's API has messages."""
    passages = "\n\n".join(f"{each['doc']}: {flat(each['quote'])}" for each in shown)
    asked = f"Passages:\n{passages}\n\nQuestion: {query}"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def shown(hits: Sequence[Hit]) -> list[Citation]:
    """The part of the passages that a model gets to see, best first. All of it is cited: a model does not say which."""
    return [_citation(hit) for hit in hits[:PASSAGES]]


def answer_of(text: str, shown: list[Citation]) -> Answer:
    """What a model wrote as an answer; one that says nothing, or that there is nothing to say, cites nothing."""
    text = flat(text)
    if not text or INSUFFICIENT in text.lower():
        return Answer(answer=INSUFFICIENT, citations=[])
    return Answer(answer=text, citations=shown)


def _citation(hit: Hit) -> Citation:
    end = min(len(hit["text"]), PASSAGE_CHARS)
    return Citation(doc=hit["id"], start=0, end=end, quote=hit["text"][:end])
