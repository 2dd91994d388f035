"""Values that JSON gives back exactly as they were: what can be kept in a file and be trusted to come back."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

__all__ = ["is_plain"]

_DEEPEST: Final = 200
"""Levels of nesting in a value that is trusted to come back from a file as it went there."""

_LARGEST_BITS: Final = 4096
"""Python neither reads nor writes integers of much more."""


def is_plain(value: Any, room: int = _DEEPEST) -> bool:
    """Whether the value is of JSON's own types alone, at every depth. A tuple is not: it would come back as a list."""
    kind = type(value)
    if kind is str:
        return _is_text(value)
    if value is None or kind is bool:
        return True
    if kind is int:
        return bool(value.bit_length() <= _LARGEST_BITS)
    if kind is float:
        return isfinite(value)
    if kind is not list and kind is not dict:
        return False
    if kind is dict and not all(type(key) is str and _is_text(key) for key in value):
        return False
    for each in value.values() if kind is dict else value:  # noqa: SIM110 - all() would be a frame more for each level
        if room == 0 or not is_plain(each, room - 1):
            return False
    return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True
