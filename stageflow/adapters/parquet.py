"""Records from Parquet, row by row. The door to pyarrow, with the module that writes it.

What Parquet has and JSON lacks comes as text: dates and times in ISO 8601, decimals as they are written, binary values
in base64; a duration is seconds; a map with text keys is an object, any other a list of pairs. NaN and infinities have
no form at all: such a row is a bad record.

A row group is the least that can be found again: marks stand behind each, and their digests are made of its bytes.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from math import isfinite
from typing import Any, Final

from stageflow.adapters.base import Chain, FileSource, Rows
from stageflow.adapters.jsonl.marks import BEGINNING
from stageflow.adapters.media import LocalFile, Medium, Opened
from stageflow.commit import InputIdentity, InputMark
from stageflow.errors import InputDamaged, RecordError, RequestError
from stageflow.item import BadRecord
from stageflow.protocols import Entry

__all__ = ["ParquetSource", "arrow"]

_ROWS_AT_ONCE: Final = 1024
_HASHED_BYTES: Final = 1024 * 1024
_HINT: Final = "the rows before were processed; get the file again, and the same command goes on"


def arrow(name: str) -> Any:
    """The library, with its module for Parquet.

    Args:
        name: The file that needs it.

    Raises:
        RequestError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RequestError(f"{name} takes pyarrow", hint="pip install 'stageflow[parquet]'") from None
    return pyarrow


class ParquetSource(FileSource):
    """Reads one record per row of a Parquet file.

    Args:
        path: The file as the user calls it.
        medium: What is read instead of a file of this name.

    Raises:
        RequestError: pyarrow is not installed.
    """

    def __init__(self, path: str, *, medium: Medium | None = None) -> None:
        super().__init__(medium or LocalFile(path))
        self._arrow = arrow(path)

    def check(self) -> None:
        """See that it can be read and is Parquet.

        Raises:
            RequestError: It is missing, may not be read, is none, or has two columns of one name.
        """
        self._check_medium()
        if not self._medium.lasting:
            raise RequestError(
                f"{self._name} is no regular file", hint="Parquet is read from its end; write it to a file"
            )
        with self._file() as (_, file):
            names = file.schema_arrow.names
            if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
                raise RequestError(f'{self._name} has two columns named "{twice}"', hint="give one another name")

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries."""
        with self._file() as (_, file):
            entries = (entry for batch in self._batches(file, 0, 0) for entry in batch)
            try:
                return list(islice(entries, n))
            except InputDamaged:
                return []

    def estimate(self) -> int | None:
        """How many rows there are."""
        with self._file() as (_, file):
            return int(file.metadata.num_rows)

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """The first rows (from 1) between two marks that are not what they were.

        A Parquet file can't be added to: one that has other rows behind the same ones goes on.
        """
        with self._file() as (opened, file):
            chain, found = Chain(BEGINNING), {(0, 0): ""}
            wanted = max((mark.bytes for mark in marks), default=0)
            for rows, end in _groups(file.metadata):
                if end > wanted:
                    break
                self._hash(opened, chain, end)
                mark = chain.mark(rows)
                found[rows, end] = mark.digest
        before = 0
        for mark in sorted(marks, key=lambda mark: mark.lines):
            if found.get((mark.lines, mark.bytes)) != mark.digest:
                return before + 1, mark.lines
            before = mark.lines
        return None

    def _identity(self, opened: Opened) -> InputIdentity | None:
        there = opened.identity
        return None if there is None else InputIdentity(**{**_fields(there), "codec": "parquet"})

    def _rows(self, start: InputMark | None) -> Generator[Rows]:
        start = start or BEGINNING
        with self._file(watched=True) as (opened, file):
            chain, before = Chain(start), 0
            for group, (rows, end) in enumerate(_groups(file.metadata)):
                if rows > start.lines:
                    for entries in self._batches(file, group, before):
                        yield Rows(entries, None)
                    self._hash(opened, chain, end)
                    yield Rows([], chain.mark(rows))
                before = rows

    def _batches(self, file: Any, group: int, index: int) -> Iterator[list[Entry]]:
        """The entries of a row group, the first of which has this index."""
        convert = [(field.name, _converter(self._arrow, field.type)) for field in file.schema_arrow]
        special = [(name, change) for name, change in convert if change is not None]
        if not file.metadata.num_row_groups:
            return
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], use_threads=False):
                rows = _whole_nanoseconds(self._arrow, batch).to_pylist()
                yield [(index + at, _converted(row, special)) for at, row in enumerate(rows)]
                index += len(rows)
        except (OSError, ValueError, self._arrow.ArrowException) as error:
            first = str(error).partition("\n")[0]
            raise InputDamaged(f"{self._name} is damaged in row group {group} ({first})", hint=_HINT) from error

    @contextmanager
    def _file(self, *, watched: bool = False) -> Iterator[tuple[Opened, Any]]:
        """The file's bytes, and what pyarrow makes of them."""
        with closing(self._open_medium()) as opened:
            identity = self._identity(opened)
            if watched:
                self._opened = identity
            size = identity.size if identity is not None else 0
            try:
                if (head := opened.head(4)) != b"PAR1":
                    raise ValueError(f"it begins with {head!r}")
                file = self._arrow.parquet.ParquetFile(_Seekable(opened, size))
            except (OSError, ValueError, self._arrow.ArrowException) as error:
                first = str(error).partition("\n")[0]
                raise RequestError(
                    f"{self._name} is not Parquet: {first}", hint="is it whole, and the right file?"
                ) from error
            yield opened, file

    def _hash(self, opened: Opened, chain: Chain, end: int) -> None:
        """Add the bytes up to ``end``."""
        opened.seek(chain.bytes)
        while chain.bytes < end:
            data = opened.read(min(_HASHED_BYTES, end - chain.bytes))
            if not data:
                raise InputDamaged(f"{self._name} ends early", hint=_HINT)
            chain.add(data)


class _Seekable:
    """A medium as a Python file: pyarrow reads the end first."""

    closed = False

    def __init__(self, opened: Opened, size: int) -> None:
        self._opened = opened
        self._size = size
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size < 0 else min(size, self._size - self._at)
        self._opened.seek(self._at)  # whoever hashes moves it, too
        pieces: list[bytes] = []
        while size > 0 and (piece := self._opened.read(size)):
            pieces.append(piece)
            size -= len(piece)
            self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        """Whoever opened the medium closes it."""


def _fields(identity: InputIdentity) -> dict[str, Any]:
    return {name: getattr(identity, name) for name in identity.__slots__}


def _groups(metadata: Any) -> Iterator[tuple[int, int]]:
    """For each row group, how many rows are before its end, and where its bytes end."""
    rows = end = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        for place in range(group.num_columns):
            column = group.column(place)
            begins = [at for at in (column.dictionary_page_offset, column.data_page_offset) if at]
            end = max(end, min(begins, default=0) + column.total_compressed_size)
        yield rows, end


# From values of Arrow to values of JSON

_Change = Callable[[Any], Any]


class _NoForm(ValueError):
    """JSON has no form for a value."""


def _converted(row: dict[str, Any], special: Sequence[tuple[str, _Change]]) -> Any:
    for name, change in special:
        value = row[name]
        if value is not None:
            try:
                row[name] = change(value)
            except _NoForm as error:
                shown = {key: str(value) for key, value in row.items()}
                return BadRecord(RecordError(f'{error} (column "{name}")'), repr(shown).encode()[:4096])
    return row


def _finite(value: float) -> float:
    if not isfinite(value):
        raise _NoForm(f"{'NaN' if value != value else 'Infinity'} is not JSON")
    return value


def _seconds(value: datetime.timedelta) -> float:
    return value.total_seconds()


def _iso(value: Any) -> str:
    return str(value) if isinstance(value, str) else str(value.isoformat())


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _converter(library: Any, kind: Any) -> _Change | None:
    """What makes JSON of the values of a type, other than ``None``; ``None`` where they are JSON already."""
    types = library.types
    if types.is_dictionary(kind):
        return _converter(library, kind.value_type)
    if types.is_floating(kind):
        return _finite
    if types.is_decimal(kind):
        return str
    if types.is_duration(kind):
        return _seconds
    if types.is_temporal(kind):
        return _iso
    if types.is_map(kind):
        return _of_map(
            _converter(library, kind.key_type), _converter(library, kind.item_type), types.is_string(kind.key_type)
        )
    if types.is_struct(kind):
        return _of_struct({field.name: _converter(library, field.type) for field in kind})
    if types.is_nested(kind):
        each = _converter(library, kind.value_type)
        return None if each is None else lambda values: [None if value is None else each(value) for value in values]
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or "binary" in str(kind)
    ):
        return _base64
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind) or "string" in str(kind):
        return None
    return str


def _of_struct(fields: dict[str, _Change | None]) -> _Change | None:
    special = [(name, change) for name, change in fields.items() if change is not None]
    if not special:
        return None

    def convert(value: dict[str, Any]) -> dict[str, Any]:
        for name, change in special:
            if value[name] is not None:
                value[name] = change(value[name])
        return value

    return convert


def _of_map(key: _Change | None, item: _Change | None, named: bool) -> _Change:
    def convert(pairs: list[tuple[Any, Any]]) -> Any:
        changed = [(key(k) if key and k is not None else k, item(v) if item and v is not None else v) for k, v in pairs]
        return dict(changed) if named else [list(pair) for pair in changed]

    return convert


def _whole_nanoseconds(library: Any, batch: Any) -> Any:
    """The batch with its columns of nanoseconds as text: Python's own times end at microseconds."""
    for place, field in enumerate(batch.schema):
        if library.types.is_timestamp(field.type) and field.type.unit == "ns":
            zone = "+00:00" if field.type.tz else ""
            texts = [
                None if n is None else _iso_nanoseconds(n) + zone for n in batch.column(place).cast("int64").to_pylist()
            ]
            batch = batch.set_column(place, field.name, library.array(texts, library.string()))
    return batch


def _iso_nanoseconds(count: int) -> str:
    seconds, rest = divmod(count, 10**9)
    whole = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return whole.isoformat() + (f".{rest:09d}" if rest else "")
