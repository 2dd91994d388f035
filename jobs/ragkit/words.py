"""Words of a text: lower case, identifiers split, stopwords dropped, stemmed.

Every part that compares texts goes through :func:`terms`, so that a question, a passage and an answer are cut alike.
PyStemmer does the stemming where it is installed; without it a short list of English endings does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

try:
    import Stemmer  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, and without stubs
except ImportError:
    Stemmer = None

_STOPWORDS = """
a an and any are as at be by can could do does each else for from give have here how i if in into is it its me my
of on one or out python should so some that the their them then there these they this to use used using want was
way what when where which who why will with without would you your
"""
STOPWORDS = frozenset(_STOPWORDS.split())

_RUN = re.compile(r"[A-Za-z0-9]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# What is written as code or named as syntax is meant literally: `with`, "the for loop", "an if expression".
_LITERAL = re.compile(
    r"[`'\"]\s*(\w+)\s*[`'\"]|\b(\w+)[- ](?:statement|keyword|loop|clause|operator|expression)s?\b", re.I
)
# Longest first; what is left must keep at least three letters.
_ENDINGS = (
    ("ization", "iz"), ("ations", "at"), ("ation", "at"), ("ating", "at"), ("ated", "at"), ("ates", "at"),
    ("ators", "at"), ("ator", "at"), ("ings", ""), ("ing", ""), ("ies", "i"), ("ied", "i"), ("edly", ""), ("ed", ""),
    ("ly", ""), ("ers", ""), ("er", ""), ("es", ""), ("s", ""), ("ate", "at"), ("e", ""), ("y", "i"),
)  # fmt: skip


def suffix_stem(word: str) -> str:
    """Cut one common English ending off a lower-case word; coarser than Snowball, but needs no package."""
    if word.endswith("ss") or not word.isalpha():
        return word
    for ending, put in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word[: -len(ending)] + put
            doubled = len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz"
            return stem[:-1] if doubled else stem
    return word


def _make_stemmer() -> Callable[[str], str]:
    if Stemmer is None:
        return suffix_stem
    snowball = Stemmer.Stemmer("english")
    snowball.maxCacheSize = 0  # its own cache is not locked; ours below is
    return lambda word: str(snowball.stemWord(word))


_stem_word = _make_stemmer()


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the stem of one lower-case word."""
    return _stem_word(word)


@lru_cache(maxsize=65_536)
def parts(run: str) -> tuple[str, ...]:
    """Split one identifier part: ``OrderedDict`` gives ordereddict, ordered and dict; ``join`` gives join alone."""
    whole = run.lower()
    pieces = _CAMEL.findall(run)
    return (whole,) if len(pieces) < 2 else (whole, *(piece.lower() for piece in pieces))


def words(text: str) -> list[str]:
    """Return the lower-case words of a text in order; identifiers also give the words they are made of."""
    return [part for run in _RUN.findall(text) for part in parts(run)]


def terms(text: str) -> list[str]:
    """Return the stems of a text's words without stopwords, in order, with repeats."""
    return [stem(word) for word in words(text) if word not in STOPWORDS]


def question_words(question: str) -> list[str]:
    """Return the distinct content words of a question, unstemmed, in order.

    A stopword stays where it is quoted or named as syntax: "what does `with` do" asks about ``with``.
    """
    literal = {(quoted or named).lower() for quoted, named in _LITERAL.findall(question)}
    kept = [word for word in words(question) if word not in STOPWORDS or (word in literal and len(word) > 1)]
    return list(dict.fromkeys(kept))
