"""The lines of a finished file, read back, and values as JSON text: nothing of them is rounded."""

from __future__ import annotations

import json
from typing import Any

import orjson

from stageflow.adapters.jsonl.decode import has_long_digits

__all__ = ["record_of", "text_of"]


def record_of(line: bytes) -> dict[str, Any]:
    """What a line holds. orjson would make floats of integers beyond 64 bits."""
    found: dict[str, Any] = json.loads(line) if has_long_digits(line) else orjson.loads(line)
    return found


def text_of(value: Any) -> str:
    """A value as JSON."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
