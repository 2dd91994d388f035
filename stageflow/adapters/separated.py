"""Records from CSV (RFC 4180): the first record names the columns, every value is text.

A record is one line, or several where a quoted value holds line ends; so where records end is known to whoever parses
them, and marks stand there. What is no record becomes a ``BadRecord`` in its place, with its number and its line:
another number of values than the header has, quotes that RFC 4180 does not know, bytes that are no UTF-8. Behind a
quote that is never closed reading goes on in the next line. Blank lines are passed over and not numbered.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Final

from stageflow.adapters.base import Chain, FileSource, Rows
from stageflow.adapters.jsonl.decode import BOM
from stageflow.adapters.jsonl.inputs import InputText
from stageflow.adapters.jsonl.lines import RAW_KEPT_BYTES, readable_size, wrong_file
from stageflow.adapters.jsonl.marks import BEGINNING, first_difference
from stageflow.adapters.media import LocalFile, Medium
from stageflow.commit import InputMark
from stageflow.errors import InputDamaged, RecordError, RequestError, RunStopped
from stageflow.item import BadRecord
from stageflow.protocols import Entry

__all__ = ["CsvSource"]

_LOOKED_AT: Final = 100
_MAX_RECORD_BYTES: Final = 64 * 1024 * 1024


class CsvSource(FileSource):
    """Reads one record per row of a CSV file, as text by column.

    Args:
        path: The file as the user calls it.
        delimiter: What stands between two values.
        block_bytes: How much is read at once.
        max_record_bytes: The longest record.
        max_input_bytes: Reading stops when the text is larger.
        medium: What is read instead of a file of this name.
    """

    def __init__(
        self,
        path: str,
        *,
        delimiter: str = ",",
        block_bytes: int = 256 * 1024,
        max_record_bytes: int = _MAX_RECORD_BYTES,
        max_input_bytes: int | None = None,
        medium: Medium | None = None,
    ) -> None:
        super().__init__(medium or LocalFile(path))
        self._delimiter = delimiter
        self._block_bytes = block_bytes
        self._max_record_bytes = max_record_bytes
        self._max_input_bytes = max_input_bytes
        # The library's own limit is one for the whole process, and lower.
        csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))

    def check(self) -> None:
        """See that it can be read and is CSV, as far as its beginning tells.

        Raises:
            RequestError: It is missing or may not be read; it is UTF-16, or compressed by something else than its name
                says; two of its columns have one name; or most of its first records are none.
        """
        self._check_medium()
        if (reason := wrong_file(self.peek(_LOOKED_AT))) is not None:
            raise RequestError(f"{self._name} is not CSV: {reason}", hint="is it the right file?")

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries of a regular file; ``[]`` for anything else."""
        return self._beginning()[0][:n]

    def estimate(self) -> int | None:
        """About how many records a regular file holds, by its size and its beginning."""
        entries, taken, compression = self._beginning()
        there = self.identity()
        if there is None:
            return None
        return round(len(entries) * max(there.size * compression, taken) / taken) if taken else 0

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """The first records (from 1) between two marks that are not what they were."""
        try:
            return first_difference(lambda: closing(self._open_text(watched=False)), marks)
        except OSError as error:
            raise self._failed(error) from error

    def _beginning(self) -> tuple[list[Entry], int, float]:
        """The entries of the first block, its bytes, and how many of them a byte of the file makes."""
        if not self._medium.lasting:
            return [], 0, 1.0
        try:
            with closing(self._open_text(watched=False)) as text:
                for rows in self._read(text, BEGINNING):
                    if rows.mark is not None:
                        return rows.entries, rows.mark.bytes, text.compression or 1.0
        except (InputDamaged, RunStopped):
            pass
        except OSError as error:
            raise self._unreadable(error) from error
        return [], 0, 1.0

    def _rows(self, start: InputMark | None) -> Generator[Rows]:
        start = start or BEGINNING
        header = None
        if start.bytes:
            with closing(self._open_text(watched=False)) as text:
                header = self._header(text)
        with closing(self._open_text(watched=True, limit=self._max_input_bytes)) as text:
            in_line = not text.seek(start.bytes)
            yield from self._read(text, start, header, in_line=in_line)

    def _header(self, text: InputText) -> list[str]:
        parser = _Parser(self._name, self._delimiter)
        size, data, more = self._block_bytes, b"", b"-"
        while parser.header is None and more:
            more = text.fill(size)
            data += more
            parser.take(data, last=not more, closing=False)
        return parser.header or []

    def _read(
        self, text: InputText, start: InputMark, header: list[str] | None = None, *, in_line: bool = False
    ) -> Generator[Rows]:
        """Entries and marks from ``start`` on. ``in_line``: what is before it lacked a line end, which may come now.

        A block ends so many bytes behind the last mark, whoever reads it: so marks stand where they stood.
        """
        parser = _Parser(self._name, self._delimiter, first=start.lines, header=header)
        chain, data, size, ended = Chain(start), b"", self._block_bytes, False
        failed: Exception | None = None
        while not ended:
            data, ended, failed = _filled(text, data, size)
            skipped = _line_end(data) if in_line else 0
            closing_ = (ended and failed is None) or len(data) > self._max_record_bytes
            entries, taken = parser.take(data[skipped:], last=ended and failed is None, closing=closing_)
            in_line = in_line and not data
            taken += skipped if taken or ended else 0
            size = self._block_bytes if taken else 2 * size
            chain.add(data[:taken])
            yield Rows(entries, chain.mark(parser.index) if taken and not parser.in_long_line else None)
            data = data[taken:]
        if failed is not None:
            raise failed


def _filled(text: InputText, data: bytes, size: int) -> tuple[bytes, bool, Exception | None]:
    """``data`` and what follows, up to ``size`` bytes; whether that was the last; and what kept it from being read."""
    pieces, length = [data], len(data)
    try:
        while length < size:
            piece = text.read(size - length)
            if not piece:
                return b"".join(pieces), True, None
            pieces.append(piece)
            length += len(piece)
    except Exception as error:  # noqa: BLE001  # raised again behind the records before it
        return b"".join(pieces), True, error
    return b"".join(pieces), False, None


def _line_end(data: bytes) -> int:
    return 1 if data.startswith(b"\n") else 2 if data.startswith(b"\r\n") else 0


class _Parser:
    """Makes entries of text.

    Attributes:
        header: The names of the columns, when they were read.
        index: The number of the next entry.
        in_long_line: What comes next is the rest of a line that was refused.
    """

    def __init__(self, name: str, delimiter: str, *, first: int = 0, header: list[str] | None = None) -> None:
        self.header = header
        self.index = first
        self.in_long_line = False
        self._name = name
        self._delimiter = delimiter
        self._line = 0 if header is None else None  # of the beginning of a file only: in its middle nobody counted

    def take(self, data: bytes, *, last: bool, closing: bool) -> tuple[list[Entry], int]:
        """The entries of the records that end in ``data``, which begins with one, and how many bytes they are.

        Args:
            last: Nothing follows.
            closing: A quote that is not closed in ``data`` never is.
        """
        if self.in_long_line:
            end = data.find(b"\n") + 1
            if not end:
                return [], len(data)
            self.in_long_line = False
            if self._line is not None:
                self._line += 1
            behind, taken = self.take(data[end:], last=last, closing=closing)
            return behind, end + taken
        end = len(data) if last else data.rfind(b"\n") + 1
        if not end:
            return self._too_long(data) if closing and not last else ([], 0)
        mark = 0
        if self.header is None:
            self._refuse_utf_16(data)
            mark = len(BOM) if data.startswith(BOM) else 0
        try:
            text, torn = data[mark:end].decode(), False
        except UnicodeDecodeError:
            text, torn = data[mark:end].decode(errors="surrogateescape"), True
        lines = list(io.StringIO(text, newline="\n"))
        entries: list[Entry] = []
        taken = self._entries(lines, entries, torn=torn, closing=closing)
        left = "".join(lines[taken:]).encode(errors="surrogateescape")
        if self._line is not None:
            self._line += taken
        return entries, end - len(left) if taken else 0

    def _entries(self, lines: list[str], entries: list[Entry], *, torn: bool, closing: bool) -> int:
        """Add the entries of whole records; return how many lines they are."""
        at = 0
        while at < len(lines):
            rows = csv.reader(iter(lines[at:] if at else lines), delimiter=self._delimiter, strict=True)
            ends = 0
            try:
                for row in rows:
                    self._add(row, entries, lines, at + ends, at + rows.line_num, torn=torn)
                    ends = rows.line_num
                return len(lines)
            except csv.Error as error:
                begin = at + ends
                if str(error) != "unexpected end of data":
                    at += rows.line_num
                    self._refuse(entries, lines, begin, at, f"InvalidCSV: {error}")
                elif closing:
                    at = begin + 1
                    self._refuse(entries, lines, begin, at, "InvalidCSV: a quote that opens here is never closed")
                else:
                    return begin
        return at

    def _add(self, row: list[str], entries: list[Entry], lines: list[str], begin: int, end: int, *, torn: bool) -> None:
        header = self.header
        if not row:
            return
        if header is None:
            self.header = self._checked(row)
        elif torn and _holds_torn(row):
            self._refuse(entries, lines, begin, end, "InvalidEncoding: it is not UTF-8")
        elif len(row) == len(header):
            entries.append((self.index, dict(zip(header, row, strict=True))))
            self.index += 1
        else:
            self._refuse(entries, lines, begin, end, f"WrongFields: {len(row)} values, the header has {len(header)}")

    def _refuse(self, entries: list[Entry], lines: list[str], begin: int, end: int, message: str) -> None:
        if self.header is None:
            raise RequestError(f"{self._name} is not CSV: its header: {message}", hint="is it the right file?")
        line = None if self._line is None else self._line + begin + 1
        where = f"record {self.index + 1:,}" + (f", line {line:,}" if line is not None else "")
        raw = "".join(lines[begin:end]).encode(errors="surrogateescape").rstrip(b"\r\n")
        size = f", {readable_size(len(raw))}" if len(raw) > RAW_KEPT_BYTES else ""
        error = RecordError(f"{message} ({where}{size})", line=line)
        entries.append((self.index, BadRecord(error, raw[:RAW_KEPT_BYTES])))
        self.index += 1

    def _too_long(self, data: bytes) -> tuple[list[Entry], int]:
        """One line is longer than a record may be: what is left of it is passed over."""
        entries: list[Entry] = []
        self._refuse(entries, [data[:RAW_KEPT_BYTES].decode(errors="surrogateescape")], 0, 1, "RecordTooLarge")
        self.in_long_line = True
        return entries, len(data)

    def _checked(self, names: list[str]) -> list[str]:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise RequestError(f'{self._name} has two columns named "{name}"', hint="give one of them another name")
            seen.add(name)
        if _holds_torn(names):
            raise RequestError(f"{self._name} is not UTF-8", hint="convert it first: iconv -t UTF-8")
        return names

    def _refuse_utf_16(self, data: bytes) -> None:
        zeros = tuple(byte == 0 for byte in data[:4])
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros in (
            (False, True, False, True),
            (True, False, True, False),
        ):
            raise RequestError("input looks like UTF-16", hint="convert it first: iconv -f UTF-16 -t UTF-8")


def _holds_torn(row: list[str]) -> bool:
    """Whether bytes are in it that were no UTF-8."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return True
    return False
