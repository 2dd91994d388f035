"""From bytes to entries: where lines end, and what each of them holds. No files, no loop.

The rules, which follow JSON (RFC 8259) and what an editor calls a line:

- A line ends at LF and nowhere else. A lone CR, U+0085 and U+2028 are ordinary bytes of a line; the CR of a CRLF is
  white space to JSON. The last line needs no LF.
- ``index`` counts physical lines from 0, blank ones included, so ``index + 1`` is the number an editor shows.
- A byte order mark is dropped at the very start; anywhere else it is an error of its line.
- A key that comes twice is JSON, and its last value counts; whoever asks for it is told, or refuses such lines.
- Nothing is read as something else: what orjson would round (integers beyond 64 bits) is parsed exactly, and
  what can't be written again (nesting deeper than the sink's limit) is refused here, by line number.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from stageflow.adapters.jsonl.decode import (
    BOM,
    MAYBE_DEEP_BYTES,
    examined,
    has_long_digits,
    repeated_key,
    why_not_json,
)
from stageflow.adapters.jsonl.gz import MAGIC
from stageflow.adapters.jsonl.zst import MAGIC as ZSTD_MAGIC
from stageflow.errors import RecordError, RequestError
from stageflow.item import BadRecord
from stageflow.protocols import Entry

__all__ = ["LineParser", "LineSplitter", "Oversized", "Portion", "readable_size", "wrong_file"]

RAW_KEPT_BYTES = 64 * 1024
"""How much is kept of a line that is too long, or filled with NUL bytes."""

LINES_CHECKED: Final = 1000
"""At least so many of the first lines are searched for keys that come twice, unless all are."""

FEWEST_JUDGED: Final = 10
"""So many lines it takes to say that a file is the wrong one."""

_KEY_SHOWN = 60


class Oversized(NamedTuple):
    """What is left of a line that was longer than the limit: its length in bytes, and how it began."""

    length: int
    head: bytes


class Portion(NamedTuple):
    """Whole lines, without their LF; ``long_digits``: one of them may hold 19 digits in a row."""

    lines: list[bytes | Oversized]
    long_digits: bool


class LineSplitter:
    """Cuts blocks of any size into lines at LF. Of a line beyond ``max_line_bytes`` only the head is kept."""

    def __init__(self, max_line_bytes: int) -> None:
        self._limit = max_line_bytes
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, block: bytes, pieces: list[bytes] | None = None) -> Portion | None:
        """Take the next block; return the lines that end in it, if any does.

        Args:
            pieces: The block cut at each LF, where somebody has done that already.
        """
        first, *others = block.split(b"\n") if pieces is None else pieces
        self._carry(first)
        if not others:
            return None
        last = others.pop()
        lines: list[bytes | Oversized] = [self._take(), *others]
        long_digits = _has_long_digits(lines[0]) or has_long_digits(block)
        if len(block) > self._limit:
            lines = [self._limited(line) for line in lines]
        self._carry(last)
        return Portion(lines, long_digits)

    def finish(self) -> Portion | None:
        """The last line, where the input did not end with LF."""
        if not self._length:
            return None
        line = self._take()
        return Portion([line], _has_long_digits(line))

    def _carry(self, piece: bytes) -> None:
        if not piece:
            return
        self._length += len(piece)
        self._parts.append(piece)
        if self._length > self._limit:
            self._parts = [_head(self._parts)]

    def _take(self) -> bytes | Oversized:
        parts, length = self._parts, self._length
        self._parts, self._length = [], 0
        if length > self._limit:
            return Oversized(length, _head(parts))
        return b"".join(parts)

    def _limited(self, line: bytes | Oversized) -> bytes | Oversized:
        if isinstance(line, Oversized) or len(line) <= self._limit:
            return line
        return Oversized(len(line), line[:RAW_KEPT_BYTES])


class LineParser:
    """Turns blocks into portions of entries. What is wrong with a line becomes a :class:`BadRecord` in its place.

    Args:
        path: What the user calls the input, ``-`` being standard input; for hints.
        max_line_bytes: Longest line that is parsed, without its LF.
        first_index: The index of the first line; more than 0 is the middle of an input, whose encoding is known.
        strict: Refuse a line with a key that comes twice. Else the first one found in the first
            :data:`LINES_CHECKED` lines, or some more, is warned of.
        warn: Told of what is accepted but looks wrong; without it, and not ``strict``, nothing is searched for.

    Attributes:
        blank: Lines so far that held nothing but white space; they are skipped.
        blanks: Their indices, where it was made a list; who takes them empties it.
    """

    def __init__(
        self,
        path: str,
        max_line_bytes: int,
        *,
        first_index: int = 0,
        strict: bool = False,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self.blank = 0
        self.blanks: list[int] | None = None
        self._path = path
        self._shell_path = "" if path == "-" else " " + shlex.quote(path)
        self._limit = max_line_bytes
        self._strict = strict
        self._warn = warn
        self._warned_until = first_index + LINES_CHECKED if warn else 0
        self._splitter = LineSplitter(max_line_bytes)
        # The first bytes, until there are enough to tell the encoding.
        self._start: bytes | None = None if first_index else b""
        self._next_index = first_index
        self._first_seen = bool(first_index)
        self._lone_array: Entry | None = None

    def feed(self, block: bytes, pieces: list[bytes] | None = None) -> Iterator[Entry] | None:
        """Take the next block; return the entries of the lines that end in it, decoded as they are iterated.

        Args:
            pieces: As for :meth:`LineSplitter.feed`.

        Raises:
            RequestError: The input is no UTF-8 text, or (while iterating) one JSON array.
        """
        if self._start is not None:
            self._start += block
            if len(self._start) < 4:
                return None
            block, pieces = self._begin(), None
        return self._portion(self._splitter.feed(block, pieces))

    def finish(self) -> Iterator[Entry] | None:
        """The entry of a last line without LF."""
        portion = None
        if self._start is not None:
            portion = self._splitter.feed(self._begin())
        last = self._splitter.finish()
        if portion is not None and last is not None:
            return self._portion(Portion(portion.lines + last.lines, True))
        return self._portion(portion or last)

    def cut_short(self) -> Iterator[Entry] | None:
        """The entries of lines that ended, but were too short to be looked at; for an input that breaks off there."""
        return None if self._start is None else self._portion(self._splitter.feed(self._begin()))

    def close(self) -> None:
        """The last portion was iterated.

        Raises:
            RequestError: All there was is one JSON array.
        """
        if self._lone_array is not None:
            raise self._one_array()

    def release(self) -> Iterator[Entry]:
        """In place of :meth:`close`, where more of the input follows elsewhere: the line that was held is one of many.

        That all of an input is one array is told by whoever looks at its beginning.
        """
        if self._lone_array is not None:
            yield self._lone_array
            self._lone_array = None

    def _begin(self) -> bytes:
        start, self._start = self._start or b"", None
        zeros = tuple(byte == 0 for byte in start[:4])
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros in (
            (False, True, False, True),
            (True, False, True, False),
        ):
            raise RequestError(
                "input looks like UTF-16",
                hint=f"convert it first: iconv -f UTF-16 -t UTF-8{self._shell_path}",
            )
        if start.startswith(MAGIC):
            raise RequestError(
                "input looks like gzip", hint="decompress it before: gunzip -c FILE | stageflow run ... -"
            )
        if start.startswith(ZSTD_MAGIC):
            raise RequestError(
                "input looks like Zstandard", hint="decompress it before: zstd -dc FILE | stageflow run ... -"
            )
        return start.removeprefix(BOM)

    def _portion(self, portion: Portion | None) -> Iterator[Entry] | None:
        if portion is None:
            return None
        index = self._next_index
        self._next_index += len(portion.lines)
        entries = self._decode(portion, index)
        return entries if self._first_seen else self._hold_lone_array(entries)

    def _hold_lone_array(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        # One array over the whole file is refused as such. Whether a first line that is an array is the whole file
        # is known at the next record, so that line is held until then.
        for entry in entries:
            if self._lone_array is None and _begins_with_array(entry):
                if _continues_on_next_line(entry):
                    raise self._one_array()
                self._lone_array = entry
                continue
            self._first_seen = True
            if self._lone_array is not None:
                yield self._lone_array
                self._lone_array = None
            yield entry
            break
        yield from entries

    def _one_array(self) -> RequestError:
        return RequestError(
            "input is one JSON array, not JSON lines",
            hint=f"put each of its elements on a line of its own: jq -c '.[]'{self._shell_path}",
        )

    def _decode(self, portion: Portion, first_index: int) -> Iterator[Entry]:
        # The hot loop: everything that is rare is told by one comparison each, and looked at elsewhere.
        loads, long_digits = orjson.loads, portion.long_digits
        look_closer = long_digits or self._strict or first_index < self._warned_until
        for index, line in enumerate(portion.lines, first_index):
            try:
                record = loads(line)  # type: ignore[arg-type]  # it refuses an Oversized like any other bad line
            except ValueError as error:
                if (bad := self._refusal(line, index, error)) is not None:
                    yield index, bad
                continue
            if type(record) is not dict or len(line) > MAYBE_DEEP_BYTES or look_closer:
                record = examined(line, record, index, long_digits=long_digits)  # type: ignore[arg-type]
                if look_closer and type(record) is dict and (self._strict or index < self._warned_until):
                    record = self._with_single_keys(line, record, index)  # type: ignore[arg-type]
            yield index, record

    def _with_single_keys(self, line: bytes, record: dict[str, Any], index: int) -> Any:
        if (key := repeated_key(line, record)) is None:
            return record
        if self._strict:
            return BadRecord(RecordError(f"duplicate key {_quoted(key)}", line=index + 1), line)
        self._warned_until = 0
        assert self._warn is not None
        name = "stdin" if self._path == "-" else self._path
        self._warn(f"{name}:{index + 1}: duplicate key {_quoted(key)}; the last value counts, here and in other lines")
        return record

    def _refusal(self, line: bytes | Oversized, index: int, error: ValueError) -> BadRecord | None:
        if isinstance(line, Oversized):
            message = f"RecordTooLarge: {readable_size(line.length)} > {readable_size(self._limit, exact=True)}"
            return BadRecord(RecordError(message, line=index + 1), line.head)
        if not line.strip(b" \t\r"):
            self.blank += 1
            if self.blanks is not None:
                self.blanks.append(index)
            return None
        assert isinstance(error, orjson.JSONDecodeError)
        message, column = why_not_json(line, error)
        raw = line[:RAW_KEPT_BYTES] if b"\0" in line else line
        return BadRecord(RecordError(message, line=index + 1, column=column), raw)


def wrong_file(entries: Sequence[Entry]) -> str | None:
    """Why the first entries of an input say that it is not JSON lines at all; ``None``: it may be.

    More than half of them are bad, out of at least :data:`FEWEST_JUDGED`: of fewer, a broken one says nothing about
    the next. Blank lines are no entries and do not count.
    """
    bad = [value for _, value in entries if isinstance(value, BadRecord)]
    if len(entries) < FEWEST_JUDGED or 2 * len(bad) <= len(entries):
        return None
    error = bad[0].error
    return f"{len(bad)} of its first {len(entries)} lines hold no record; line {error.line}: {error.message}"


def _quoted(key: str) -> str:
    return orjson.dumps(key[:_KEY_SHOWN]).decode()


def readable_size(length: int, *, exact: bool = False) -> str:
    """``length`` bytes in the largest unit that fits; ``exact`` leaves out decimals that say nothing."""
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if length >= unit:
            return f"{length / unit:g} {name}" if exact else f"{length / unit:.1f} {name}"
    return f"{length} bytes"


def _has_long_digits(line: bytes | Oversized) -> bool:
    return not isinstance(line, Oversized) and has_long_digits(line)


def _head(parts: list[bytes]) -> bytes:
    head = bytearray()
    for part in parts:
        head += part[: RAW_KEPT_BYTES - len(head)]
    return bytes(head)


def _begins_with_array(entry: Entry) -> bool:
    _, value = entry
    return isinstance(value, BadRecord) and value.raw.lstrip().startswith(b"[")


def _continues_on_next_line(entry: Entry) -> bool:
    raw = entry[1].raw.rstrip()
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return error.pos >= len(raw.decode(errors="replace"))
    return False
