"""What one line holds: whether orjson's reading of it can be taken, and in the user's words why it can't.

orjson is strict, with two exceptions that are made good here: it reads integers beyond 64 bits as floats, and accepts
what is nested too deeply to be written again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from math import isinf
from typing import Any

import orjson

from stageflow.errors import RecordError
from stageflow.item import BadRecord

__all__ = ["BOM", "MAX_NESTING", "MAYBE_DEEP_BYTES", "examined", "has_long_digits", "repeated_key", "why_not_json"]

BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8. JSON has none; some editors put one at the start of a file."""

MAX_NESTING = 200
"""Deepest nesting accepted, the record itself being level 1. orjson writes 254; a result may add levels of its own."""

MAYBE_DEEP_BYTES = 2 * MAX_NESTING
"""A line this short holds too few brackets, opening and closing ones, to be nested deeper."""

_UNNAMED = "..."  # the name of a key that can't be told
_TOO_DEEP = f"nesting deeper than {MAX_NESTING}"

_DIGIT_TO_ZERO = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
# 2**63 has 19 digits. In a run of 19 every sixth byte hits at least three times in a row.
_LONG_RUN = b"0" * 19
_SAMPLE_STEP, _SAMPLED_RUN = 6, b"0" * 3
_LONGEST_FINITE = 308  # digits of an integer that orjson can still take for a float
# What precedes an integer in JSON, then 19 or more digits that are no part of a fraction or of a float.
_LONG_INTEGER = re.compile(rb"(?<=[:,\[\s-])[0-9]{19,}(?![0-9.eE])")
_NUMBER = re.compile(r"-?(?:NaN|Infinity|[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)")
_NUMBER_SHOWN = 40
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[][{}]")


def has_long_digits(text: bytes) -> bool:
    """Whether there may be an integer in ``text`` that 64 bits can't hold. Cheap: it is asked of every block."""
    if _SAMPLED_RUN not in text[::_SAMPLE_STEP].translate(_DIGIT_TO_ZERO):
        return False
    return _LONG_RUN in text.translate(_DIGIT_TO_ZERO)


def examined(line: bytes, record: Any, index: int, *, long_digits: bool) -> Any:
    """What orjson made of ``line``, made exact where orjson rounded; or why it can't be taken."""
    if type(record) is not dict:
        return BadRecord(RecordError("record must be an object", line=index + 1), line)
    if len(line) > MAYBE_DEEP_BYTES and _holds_brackets(line) and _is_deep(record):
        return BadRecord(RecordError(_TOO_DEEP, line=index + 1), line)
    if long_digits and _LONG_INTEGER.search(line):
        return _exactly(line, index)
    return record


def _holds_brackets(line: bytes) -> bool:
    """Whether there are enough of them to nest too deeply. A search for a second one takes a fifth of counting them."""
    if line.find(b"{", 1) < 0 and line.find(b"[", 1) < 0:
        return False
    return line.count(b"[") + line.count(b"{") > MAX_NESTING


def _exactly(line: bytes, index: int) -> Any:
    # Deep may be the value of a key that comes again, which is not in what orjson made of the line.
    if len(line) > MAYBE_DEEP_BYTES and _depth_of_text(line) > MAX_NESTING:
        return BadRecord(RecordError(_TOO_DEEP, line=index + 1), line)
    # orjson has said that the line is JSON, so what the standard library takes beyond JSON is not in it.
    return json.loads(line)


def _depth_of_text(line: bytes) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _is_deep(record: dict[str, Any]) -> bool:
    # Level by level rather than by recursion: this is where depth is not to be trusted.
    level: list[Any] = [record]
    for _ in range(MAX_NESTING):
        children: list[Any] = []
        for value in level:
            children += value.values() if type(value) is dict else value
        level = [child for child in children if type(child) is dict or type(child) is list]
        if not level:
            return False
    return True


def repeated_key(line: bytes, record: dict[str, Any]) -> str | None:
    """A key that some object in ``line`` has more than once, of which ``record`` has the last; ``None``: there is none.

    Every key has its colon, behind a quote or white space. As many of these as there are keys in ``record``, or as many
    colons at all: no key was lost. Only lines with more, as of texts that hold JSON, are parsed again.
    """
    keys = _count_keys(record)
    if line.count(b'":') == keys and not (b" :" in line or b"\t:" in line or b"\r:" in line):
        return None
    if line.count(b":") == keys:
        return None
    if _depth_of_text(line) > MAX_NESTING:
        return _UNNAMED  # `record` is not as deep, so a value was lost; nothing that recurses may look for its key
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        keys = Counter(key for key, _ in pairs)
        if len(keys) != len(pairs):
            found.append(keys.most_common(1)[0][0])

    json.loads(line, object_pairs_hook=look)
    return found[0] if found else None


def _count_keys(record: dict[str, Any]) -> int:
    # Level by level, as depth is looked for.
    count = len(record)
    level: list[Any] = [value for value in record.values() if value.__class__ is dict or value.__class__ is list]
    while level:
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                count += len(value)
                value = value.values()
            below += [child for child in value if child.__class__ is dict or child.__class__ is list]
        level = below
    return count


def why_not_json(line: bytes, error: orjson.JSONDecodeError) -> tuple[str, int | None]:
    """The reason in the user's words, and the column (from 1, in characters) where it is known."""
    try:
        text = line.decode()
    except UnicodeDecodeError as undecodable:
        return f"InvalidEncoding at byte {undecodable.start + 1}", None
    if "\0" in text:
        return _invalid("NUL byte", text.index("\0") + 1)
    if line.startswith(BOM):
        return _invalid("byte order mark", 1)
    if "depth" in error.msg or "recursion" in error.msg:
        return _TOO_DEEP, None
    if "surrogate" in error.msg:
        return f"InvalidEncoding at byte {len(text[: error.pos].encode()) + 1}", error.colno
    if (number := _number_beyond_json(text, error.pos)) is not None:
        return number, error.colno
    return _invalid(error.msg.removeprefix("unexpected character, "), error.colno)


def _invalid(reason: str, column: int) -> tuple[str, int]:
    return f"InvalidJSON: {reason} at column {column}", column


def _number_beyond_json(text: str, position: int) -> str | None:
    if position and text[position - 1] == "-":  # the error may stand after the sign
        position -= 1
    match = _NUMBER.match(text, position)
    if match is None:
        return None
    number = match[0]
    if number.removeprefix("-").isdigit():
        return "integer too large" if len(number) > _LONGEST_FINITE else None
    if number.endswith(("NaN", "Infinity")) or isinf(float(number)):
        return f"{number[:_NUMBER_SHOWN]} is not JSON"
    return None
