"""What a finished file of JSON lines is made into, by the suffix of its name."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from stageflow.adapters.jsonl.gz import GzipReader
from stageflow.adapters.jsonl.results import record_of, text_of
from stageflow.adapters.jsonl.zst import ZstdReader, zstd_library
from stageflow.protocols import Form

__all__ = ["form_of"]

_TEXT_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 1024 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


def form_of(path: str) -> Form | None:
    """What the file is made into; ``None``: JSON lines it stays, as of every suffix that is not known.

    Raises:
        RequestError: What makes it is not installed.
    """
    name = path.lower()
    if name.endswith(".gz"):
        return Gzipped()
    if name.endswith((".zst", ".zstd")):
        return Zstandard(path)
    if name.endswith((".csv", ".tsv")):
        return Separated("\t" if name.endswith(".tsv") else ",")
    if name.endswith((".parquet", ".pq")):
        from stageflow.adapters.parquet_form import Parquet

        return Parquet(path)
    return None


class Separated:
    """CSV (RFC 4180, lines ended by LF): a header, and a row for each line.

    The columns are the fields in the order in which they first come. Text stands as it is, numbers and lists as JSON
    writes them; what a line lacks and what is ``null`` are both empty.
    """

    lossless = False

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        """Read the lines twice: for their fields, and to write them."""
        columns: dict[str, None] = {}
        for line in lines():
            if not (record := record_of(line)).keys() <= columns.keys():
                columns.update(dict.fromkeys(record))
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        if columns:
            rows.writerow(columns)
        for line in lines():
            record = record_of(line)
            rows.writerow([_cell(record.get(name)) for name in columns])
            if text.tell() >= _TEXT_BYTES:
                _hand_over(text, write)
        _hand_over(text, write)
        return []

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        """It can't be done: what was a number is text."""
        raise AssertionError("asked for the lines that a table was made of")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else text_of(value)


def _hand_over(text: io.StringIO, write: Callable[[bytes], object]) -> None:
    write(text.getvalue().encode())
    text.seek(0)
    text.truncate()


class Gzipped:
    """The lines, compressed by gzip."""

    lossless = True

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        """Write one member, without a time in it: the same results make the same file."""
        member = zlib.compressobj(wbits=_GZIP)
        for text in _texts(lines()):
            write(member.compress(text))
        write(member.flush())
        return []

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        """Write what was compressed."""
        text = GzipReader(read, "the output", _ignore)
        while data := text.read(_READ_BYTES):
            write(data)


class Zstandard:
    """The lines, compressed by Zstandard.

    Args:
        path: The file, for messages.

    Raises:
        RequestError: The library is not installed.
    """

    lossless = True

    def __init__(self, path: str) -> None:
        self._library = zstd_library(path)

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        """Write one frame with a checksum."""
        options = {self._library.CompressionParameter.checksum_flag: 1}
        frame = self._library.ZstdCompressor(options=options)
        for text in _texts(lines()):
            write(frame.compress(text))
        write(frame.flush())
        return []

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        """Write what was compressed."""
        text = ZstdReader(read, "the output", _ignore)
        while data := text.read(_READ_BYTES):
            write(data)


def _texts(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines, about a mebibyte at a time, or one that is longer."""
    some, length = list[bytes](), 0
    for line in lines:
        some.append(line)
        length += len(line)
        if length >= _TEXT_BYTES:
            yield b"".join(some)
            some, length = [], 0
    yield b"".join(some)


def _ignore(_: str) -> None:
    """What follows the data of our own file can't be there."""
