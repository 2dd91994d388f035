"""A value that fits a JSON schema: enough of the standard for the schemas that structured answers are asked with.

Known are ``type`` (and a list of them), ``enum``, ``const``, ``properties`` and ``required``, ``items`` and
``prefixItems``, the bounds of numbers, strings and arrays, ``anyOf``, ``oneOf``, ``allOf``, and ``$ref`` within the
schema. Patterns and formats are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Any, Final

__all__ = ["value_for"]

_DEPTH: Final = 12
_VALUES: Final = 1000
"""Deeper, or beyond so many values, optional parts are left out, so that a schema that holds itself comes to an end."""
_DEEPEST: Final = 64
_MOST: Final = 10_000


def value_for(schema: Any, drawn: bytes, words: str) -> Any:
    """A value that fits.

    Args:
        schema: As parsed from JSON.
        drawn: Random bytes; they choose among the values that fit.
        words: What strings are made of.

    Raises:
        ValueError: It would be too large; other errors where it is no schema.
    """
    return _Maker(schema, drawn, words).make(schema, 0)


class _Maker:
    def __init__(self, root: Any, drawn: bytes, words: str) -> None:
        self._root = root
        self._drawn = drawn
        self._words = words
        self._taken = 0
        self._made = 0

    def make(self, schema: Any, depth: int) -> Any:
        self._made += 1
        if self._made > _MOST:
            raise ValueError("too many values")
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return None
        schema = self._merged(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._one_of(schema["enum"])
        if options := schema.get("anyOf") or schema.get("oneOf"):
            # The last of them is the way out of a schema that holds itself, as in {"anyOf": [{"$ref": "#"}, null]}.
            return self.make(options[-1] if self._is_enough(depth) else self._one_of(options), depth + 1)
        match self._type(schema, depth):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean":
                return self._draw(2) == 1
            case "string":
                return self._string(schema)
        return None

    def _merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The schema with what it refers to, and all of its ``allOf``, laid into it."""
        merged: dict[str, Any] = {}
        waiting, met = [schema], 0
        while waiting and met < _DEEPEST:
            part = waiting.pop()
            met += 1
            if not isinstance(part, Mapping):
                continue
            waiting.extend(part.get("allOf", ()))
            if isinstance(reference := part.get("$ref"), str):
                waiting.append(self._referred(reference))
            for name, value in part.items():
                if name in ("properties", "$defs") and isinstance(value, Mapping):
                    merged[name] = {**value, **merged.get(name, {})}
                elif name == "required" and isinstance(value, list):
                    merged[name] = [*value, *merged.get(name, ())]
                elif name not in ("allOf", "$ref"):
                    merged.setdefault(name, value)
        return merged

    def _referred(self, reference: str) -> Any:
        found = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, Mapping) else None
        return found

    def _type(self, schema: Mapping[str, Any], depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return "null" if self._is_enough(depth) and "null" in kind else str(self._one_of(kind))
        if kind is None:
            return "object" if "properties" in schema else "array" if "items" in schema else "string"
        return str(kind)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        names = required if self._is_enough(depth) else dict.fromkeys([*properties, *required])
        return {name: self.make(properties.get(name, {}), depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems", [])
        least = int(schema.get("minItems", 0))
        if least > _MOST:
            raise ValueError("a list that long")
        most = int(schema.get("maxItems", max(least, 2)))
        count = least if self._is_enough(depth) else max(least, min(most, max(len(first), 1 + self._draw(2))))
        rest = schema.get("items", {})
        return [self.make(first[place] if place < len(first) else rest, depth + 1) for place in range(count)]

    def _bounds(self, schema: Mapping[str, Any], step: float) -> tuple[float, float]:
        low, high = schema.get("minimum"), schema.get("maximum")
        if (above := schema.get("exclusiveMinimum")) is not None:
            low = above + step if low is None else max(low, above + step)
        if (below := schema.get("exclusiveMaximum")) is not None:
            high = below - step if high is None else min(high, below - step)
        if low is None:
            low = 0 if high is None else min(0, high)
        return low, max(low, low + 100 if high is None else high)

    def _integer(self, schema: Mapping[str, Any]) -> int:
        low, high = self._bounds(schema, 1)
        step = max(1, int(schema.get("multipleOf", 1)))
        first, last = ceil(low / step), floor(high / step)
        return step * (first + self._draw(min(max(1, last - first + 1), 256)))

    def _number(self, schema: Mapping[str, Any]) -> float:
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            return float(step * ceil(self._bounds(schema, step)[0] / step))
        low, high = self._bounds(schema, 0.0)
        return low + (high - low) * (1 + self._draw(255)) / 257  # never a bound: they may be exclusive

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        start = self._draw(max(1, len(self._words) // 2))
        text = self._words[start : start + 24].strip() or "a"
        if least > _MOST:
            raise ValueError("a text that long")
        while len(text) < least:
            text += " " + text
        return text if most is None else text[: int(most)]

    def _one_of(self, options: Any) -> Any:
        return options[self._draw(len(options))]

    def _is_enough(self, depth: int) -> bool:
        return depth > _DEPTH or self._made > _VALUES

    def _draw(self, count: int) -> int:
        """A number from 0 to below ``count``, at most 256 of them."""
        self._taken += 1
        return self._drawn[self._taken % len(self._drawn)] * count // 256
