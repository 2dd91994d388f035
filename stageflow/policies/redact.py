"""Secrets taken out of error texts before they are kept or shown.

Masked are the values of environment variables that look like secrets, wherever they occur; what follows the names of
headers that carry credentials, in the forms that header lines, dicts and JSON have; the user and password in a URL; and
the values of a URL's query whose names end in key, token, secret, sig, signature or password. What is not sure to be
harmless is masked too: a line too short is better than a key in a file that is mailed around.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Final

__all__ = ["MASK", "SECRET_NAME", "redact", "secrets_of"]

MASK: Final = "***"
"""Shorter than any secret, so that none can be part of it."""

SECRET_NAME: Final = re.compile(r"KEY(?!WORD)|TOKEN(?!S)|SECRET|PASSWORD", re.IGNORECASE)
"""In the name of a job's parameter whose value is a secret. ``max_tokens`` and ``keyword`` are none."""

_LIMIT: Final = 65_536
_MARGIN: Final = 16_384
"""The longest header that servers take, or more: what stands so far from a cut was recognised as what it is."""
_SHORTEST: Final = 8
_SECRET_VARIABLE: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)

_HEADERS: Final = ("authorization", "cookie", "api-key", "api_key", "apikey")
"""``Proxy-Authorization``, ``Set-Cookie`` and ``X-API-Key`` end so."""


def _quoted(quote: str) -> str:
    """A header's name and its value in quotes: ``'api-key': 'x'``, ``(b"cookie", b"x")``, ``authorization="x"``."""
    before = r"(?:authorization|cookie|api[-_]?key)\\{0,4}[\"']?\s{0,8}[:,=]\s{0,8}[\[(]{0,2}b?\\{0,4}"
    return rf"({before}{quote})(?:\\[^\n]|[^{quote}\\\n])*+"


# Each pattern keeps its first group and is tried only on texts that have one of its words. All repetitions are bounded
# or possessive: no text takes more than linear time.
_PATTERNS: Final = tuple(
    (words, re.compile(pattern, re.IGNORECASE))
    for words, pattern in (
        (_HEADERS, _quoted('"')),
        (_HEADERS, _quoted("'")),
        # Header lines: one word after a scheme that takes one, else all there is.
        (
            _HEADERS[:2],
            r"((?:authorization|cookie)\s{0,8}+[:=]\s{0,8}+(?![\[(]{0,2}b?\\{0,4}[\"']))"
            r"(?:(?:bearer|basic|token)[ \t]{1,8}+[^\s\"',;]++|[^\r\n]*+)",
        ),
        (_HEADERS[2:], r"(api[-_]?key\s{0,8}+[:=]\s{0,8}+(?![\[(]{0,2}b?\\{0,4}[\"']))[^\s\"',;&)\]}]++"),
        (("bearer",), r"(bearer[ \t]{1,8}+)[\w.~+/=-]{16,}+"),
        (("://",), r"(://)[^\s/?#\"'<>\\]{1,1024}(?=@)"),
        (("=",), r"([?&;][\w.%\[\]-]{0,64}?(?:key|token|secret|sig|signature|password)=)[^&\s\"'<>#\\;]++"),
    )
)


def secrets_of(environment: Mapping[str, str]) -> frozenset[str]:
    """The values of the variables whose names have KEY, TOKEN, SECRET or PASSWORD in them, in any case.

    Returns:
        Those of at least 8 characters, as they are and as a URL, JSON or ``repr`` spells them. Shorter ones would mask
        ordinary words.
    """
    found: set[str] = set()
    for name, given in environment.items():
        value = given.strip()
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name):
            quoted = urllib.parse.quote(value, safe="", errors="replace")
            found |= {value, quoted, json.dumps(value)[1:-1], repr(value)[1:-1]}
    return frozenset(found)


def redact(text: str, secrets: Collection[str], *, limit: int = _LIMIT, tail: bool = False) -> str:
    """A text without its secrets.

    A longer text is cut first, so that one of any size takes a bounded time, and in such a way that no piece of a
    secret is left at the cut. Cut the text to the size you keep afterwards, not before.

    Args:
        secrets: What to mask wherever it occurs, as from :func:`secrets_of`.
        limit: The most characters to return, >= 0.
        tail: Of a longer text, keep the end; else the beginning.
    """
    margin = max(_MARGIN, *map(len, secrets), 0)
    size = limit + margin
    if len(text) <= size:
        text = _masked(text, secrets)
    else:
        text = _without_edge(_masked(text[-size:] if tail else text[:size], secrets), margin, tail)
    if len(text) <= limit:
        return text
    return text[len(text) - limit :] if tail else text[:limit]


def _masked(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one may hold another
        if secret and secret in text:
            text = text.replace(secret, MASK)
    for words, pattern in _PATTERNS:
        lowered = text.lower()
        if any(word in lowered for word in words):
            text = pattern.sub(rf"\1{MASK}", text)
    return text


def _without_edge(text: str, margin: int, tail: bool) -> str:
    """A cut text without the part next to the cut, where half a secret may stand that nothing recognised."""
    if tail:
        return text[margin:]
    return text if text.endswith(MASK) else text[: max(0, len(text) - margin)]
