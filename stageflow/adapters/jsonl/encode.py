"""From a record to its line. What JSON has no form for is refused by its path, never written as something else.

orjson does the work, and three things are taken out of its hands, at no cost to a record that has none of them:

- It writes NaN and infinities as ``null``. Only where the line holds ``null`` is the record looked through for them.
- It refuses integers beyond 64 bits, which came in exactly. They are written by the standard library.
- Its refusals name no place. What it refuses is walked once more, by plain rules, to say where; what those rules
  can give a form (a named tuple, a subclass of ``float``) is written.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable
from enum import Enum
from math import isfinite
from typing import Any, cast
from uuid import UUID

import orjson

from stageflow.errors import ResultError

__all__ = ["encode_leniently", "encode_strictly"]

MAX_NESTING = 254
"""The deepest that orjson writes."""

SHOWN_BYTES = 2048
"""How much a dead letter holds of a value that can't be written."""

_LONG_BYTES = 1024
_FEW_FIELDS = 16
"""With a line that long and fields so few, to look at each value is cheaper than to search the line."""

_dumps, _NEWLINE = orjson.dumps, orjson.OPT_APPEND_NEWLINE

_PLAIN = frozenset((str, int, bool, type(None)))

_NATIVE = (datetime.datetime, datetime.date, datetime.time, UUID)


def encode_strictly(record: Any) -> bytes:
    """``record`` as one line.

    Raises:
        ResultError: JSON has no form for some value in it; the message has the path.
    """
    try:
        line = _dumps(record, None, _NEWLINE)
    except TypeError:
        return _dump_plain(_plain(record))
    if len(line) > _LONG_BYTES and _is_plain(record):
        return line
    # From the right, which takes a third of the time that `in` does.
    if line.rfind(b"null") >= 0 and _holds_non_finite(record):
        return _dump_plain(_plain(record))
    return line


def encode_leniently(record: Any) -> bytes:
    """``record`` as one line; a value that JSON has no form for becomes its ``repr``, cut. Never raises."""
    try:
        return encode_strictly(record)
    except Exception:  # noqa: BLE001  # the record's own code may run here: properties, mappings, `repr`
        return _dump_plain(_LenientPlain().visit(record, "$", 1))


def _plain(record: Any) -> Any:
    try:
        return _Plain().visit(record, "$", 1)
    except ResultError:
        raise
    except Exception as error:
        raise ResultError(f"not JSON: {type(error).__name__}: {error}") from error


def _dump_plain(plain: Any) -> bytes:
    try:
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _is_plain(record: Any) -> bool:
    """Whether a record has few fields, and in them nothing but text, integers, finite floats, booleans and ``None``."""
    if type(record) is not dict or len(record) > _FEW_FIELDS:
        return False
    for value in record.values():
        kind = type(value)
        if kind not in _PLAIN and not (kind is float and isfinite(value)):
            return False
    return True


def _holds_non_finite(record: Any) -> bool:
    """Whether a float that JSON has no form for is in a record that orjson has written."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is float:
            if not isfinite(value):
                return True
        elif kind is str or kind is int or value is None:
            continue
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, Enum):
            waiting.append(value.value)
        elif dataclasses.is_dataclass(value):
            waiting += (field for _, field in _fields(value))
    return False


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    # As orjson has it: an attribute with a leading underscore is private.
    names = (field.name for field in dataclasses.fields(value))
    return ((name, getattr(value, name)) for name in names if not name.startswith("_"))


class _Plain:
    """Copies a value into the types JSON knows, or says where that fails.

    Two frames per level at most, so that the deepest value allowed stays well within Python's recursion limit.
    """

    def visit(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.visit(value.value, path, depth)
        if isinstance(value, dict):
            return self.mapping(value.items(), path, depth)
        if isinstance(value, (list, tuple)):
            return self.sequence(value, path, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.mapping(_fields(value), path, depth)
        return self.scalar(value, path)

    def mapping(self, pairs: Iterable[tuple[Any, Any]], path: str, depth: int) -> dict[str, Any]:
        _check_depth(depth)
        copy = {}
        for key, value in pairs:
            name = self.key(key, path)
            copy[name] = self.visit(value, path + _step(name), depth + 1)
        return copy

    def sequence(self, values: Iterable[Any], path: str, depth: int) -> list[Any]:
        _check_depth(depth)
        copy = []
        for position, value in enumerate(values):  # a comprehension is a frame of its own on Python 3.11
            copy.append(self.visit(value, f"{path}[{position}]", depth + 1))
        return copy

    def scalar(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(str.__str__(value), path)
        if isinstance(value, int):
            return self.integer(int(value), path)
        if isinstance(value, float):
            return self.number(float(value), path)
        if isinstance(value, _NATIVE):
            return self.native(value, path)
        raise _refused(type(value).__qualname__, path)

    def key(self, key: Any, path: str) -> str:
        if not isinstance(key, str):
            raise _refused(f"key of type {type(key).__qualname__}", path)
        return cast("str", self.text(str.__str__(key), path))

    def text(self, text: str, path: str) -> Any:
        if _holds_surrogate(text):
            raise _refused("lone surrogate", path)
        return text

    def integer(self, value: int, path: str) -> Any:
        try:
            str(value)
        except ValueError as error:  # Python's limit on digits
            raise _refused("integer of too many digits", path) from error
        return value

    def number(self, value: float, path: str) -> Any:
        if not isfinite(value):
            name = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
            raise _refused(name, path)
        return value

    def native(self, value: Any, path: str) -> Any:
        try:
            return orjson.loads(orjson.dumps(value))
        except TypeError as error:  # a time with a time zone, for one
            raise _refused(f"{type(value).__qualname__} ({error})", path) from error


class _LenientPlain(_Plain):
    """Copies what it can, and shows the rest as text: a value inside itself, too, or it would be copied for ever."""

    def __init__(self) -> None:
        self._around: set[int] = set()

    def visit(self, value: Any, path: str, depth: int) -> Any:
        if id(value) in self._around:
            return _shown(value)
        self._around.add(id(value))
        try:
            return super().visit(value, path, depth)
        except Exception:  # noqa: BLE001  # whatever the value's own code raised: a dead letter must be written
            return _shown(value)
        finally:
            self._around.discard(id(value))

    def key(self, key: Any, path: str) -> str:
        return cast("str", self.text(key, path)) if isinstance(key, str) else _shown(key)

    def text(self, text: str, path: str) -> Any:
        return _encodable(text)


def _check_depth(depth: int) -> None:
    if depth > MAX_NESTING:
        raise ResultError(f"not JSON: nesting deeper than {MAX_NESTING}, or a value inside itself")


def _refused(what: str, path: str) -> ResultError:
    return ResultError(f"not JSON: {what} at {path}")


def _step(key: str) -> str:
    return f".{key}" if key.isidentifier() else f"[{json.dumps(key)}]"


def _holds_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # the value's own code
        text = f"<{type(value).__qualname__} that can't be shown>"
    return _encodable(text).encode()[:SHOWN_BYTES].decode(errors="ignore")
