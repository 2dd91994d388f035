"""A finished file of JSON lines as Parquet. The columns and their types are those of all lines together.

Integers and floats make floats where that rounds none of them. Where types do not go together, at any depth, the values
stand as JSON text, and the user is told of the first line that has another type than those before. So nothing is lost,
and nothing stops a run that is done but for this. What a line lacks is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from stageflow.adapters.jsonl.results import record_of, text_of
from stageflow.adapters.parquet import arrow

__all__ = ["Parquet"]

_ROWS_PER_GROUP: Final = 32 * 1024
_BYTES_PER_GROUP: Final = 32 * 1024 * 1024
_EXACT: Final = 2**53
_LONGEST: Final = 2**63
_MOST_FIELDS: Final = 1000
"""An object with more fields than this is a table of its own: it stands as text."""

Kind = Any
"""``None`` (nothing but null yet), a name, ``["list", kind]`` or ``{"field": kind}``."""

_TEXT: Final = "JSON text"


class Parquet:
    """Makes Parquet.

    Args:
        path: The file, for messages.

    Raises:
        RequestError: pyarrow is not installed.
    """

    lossless = False

    def __init__(self, path: str) -> None:
        self._arrow = arrow(path)

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        """Read the lines twice: for their types, and to write them."""
        columns: dict[str, Kind] = {}
        notes: list[str] = []
        for number, line in enumerate(lines(), 1):
            for name, value in record_of(line).items():
                before = columns.get(name)
                after = columns[name] = _joined(before, _kind(value))
                if _is_mixed(after) and not _is_mixed(before):
                    notes.append(
                        f'column "{name}": values of different types stand as JSON text (first in line {number})'
                    )
        library = self._arrow
        schema = library.schema([(name, _type(library, kind)) for name, kind in columns.items()])
        forms = {name: _former(kind) for name, kind in columns.items()}
        with library.parquet.ParquetWriter(_File(write), schema) as writer:
            for some in _groups(lines()):
                arrays = [
                    library.array([form(row.get(name)) for row in some], schema.field(name).type)
                    for name, form in forms.items()
                ]
                writer.write_table(library.Table.from_arrays(arrays, schema=schema))
        return notes

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        """It can't be done: what was lacking is null."""
        raise AssertionError("asked for the lines that a table was made of")


def _groups(lines: Iterator[bytes]) -> Iterator[list[dict[str, Any]]]:
    """The records of the lines, as many at a time as make a row group."""
    some, length = list[dict[str, Any]](), 0
    for line in lines:
        some.append(record_of(line))
        length += len(line)
        if len(some) >= _ROWS_PER_GROUP or length >= _BYTES_PER_GROUP:
            yield some
            some, length = [], 0
    if some:
        yield some


class _File:
    """What pyarrow writes to."""

    closed = False

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._at = 0

    def write(self, data: Any) -> int:
        taken = bytes(data)
        self._write(taken)
        self._at += len(taken)
        return len(taken)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Whoever gets the bytes does that."""

    def close(self) -> None:
        """Whoever gets the bytes does that."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _kind(value: Any) -> Kind:
    """The type of a value."""
    kind = value.__class__
    if kind is str:
        return "string"
    if value is None:
        return None
    if kind is bool:
        return "bool"
    if kind is int:
        if -_EXACT <= value <= _EXACT:
            return "int"
        return "long" if -_LONGEST <= value < _LONGEST else _TEXT
    if kind is float:
        return "float"
    if kind is list:
        inner: Kind = None
        for each in value:
            inner = _joined(inner, _kind(each))
        return ["list", inner]
    if not value or len(value) > _MOST_FIELDS:
        return _TEXT if value else {}
    return {name: _kind(each) for name, each in value.items()}


def _joined(one: Kind, other: Kind) -> Kind:
    """The type of values of both."""
    if other is None or one == other:
        return one
    if one is None:
        return other
    if isinstance(one, str) and isinstance(other, str):
        pair = {one, other}
        if pair == {"int", "float"}:
            return "float"
        return "long" if pair == {"int", "long"} else _TEXT
    if isinstance(one, list) and isinstance(other, list):
        return ["list", _joined(one[1], other[1])]
    if isinstance(one, dict) and isinstance(other, dict):
        joined = {name: _joined(kind, other.get(name)) for name, kind in one.items()}
        joined |= {name: kind for name, kind in other.items() if name not in one}
        return joined if len(joined) <= _MOST_FIELDS else _TEXT
    return _TEXT


def _is_mixed(kind: Kind) -> bool:
    if isinstance(kind, dict):
        return any(map(_is_mixed, kind.values()))
    return _is_mixed(kind[1]) if isinstance(kind, list) else kind == _TEXT


def _type(library: Any, kind: Kind) -> Any:
    if isinstance(kind, list):
        return library.list_(_type(library, kind[1]))
    if isinstance(kind, dict) and kind:
        return library.struct([(name, _type(library, each)) for name, each in kind.items()])
    plain = {"int": "int64", "long": "int64", "float": "float64", "bool": "bool_"}
    return getattr(library, plain.get(kind, "string") if isinstance(kind, str) else "string")()


def _former(kind: Kind) -> Callable[[Any], Any]:
    """What makes of a value one of its column's type."""
    if isinstance(kind, list):
        each = _former(kind[1])
        return lambda value: None if value is None else [each(inner) for inner in value]
    if isinstance(kind, dict) and kind:
        fields = {name: _former(inner) for name, inner in kind.items()}
        return lambda value: None if value is None else {name: form(value.get(name)) for name, form in fields.items()}
    if kind == _TEXT or isinstance(kind, dict):
        return lambda value: None if value is None else text_of(value)
    if kind == "float":
        return lambda value: None if value is None else float(value)
    return lambda value: value
