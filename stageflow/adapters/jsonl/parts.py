"""Whole lines as they stand, for somebody else to decode: cut out of blocks, cut smaller, and decoded.

Whoever cuts looks at nothing but where lines end, so that it costs next to nothing per record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from stageflow.adapters.jsonl.decode import BOM
from stageflow.adapters.jsonl.lines import LINES_CHECKED, LineParser
from stageflow.protocols import Entry

__all__ = ["MAX_LINE_BYTES", "Looker", "Part", "PartCutter", "entries_of", "first_records", "smaller"]

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The longest line that is parsed."""


class Part(NamedTuple):
    """Whole lines.

    Args:
        first: The index of the first one.
        lines: How many there are.
        data: The lines, each with its LF; the last one of the input may lack it.
    """

    first: int
    lines: int
    data: bytes


class PartCutter:
    """Makes parts of the blocks of a text. A line that is too long to be parsed comes as the entry it amounts to.

    Args:
        path: What the user calls the input.
        first: The index of the first line.
    """

    def __init__(self, path: str, first: int, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._path = path
        self._next = first
        self._limit = max_line_bytes
        self._held: list[bytes] = []
        self._length = 0
        self._long: LineParser | None = None

    def feed(self, block: bytes) -> Iterator[Part | Entry]:
        """Take the next block; yield what ends in it."""
        if self._long is not None:
            end = block.find(b"\n") + 1
            yield from self._skip(self._long, block[:end] if end else block, ended=bool(end))
            if not end:
                return
            block = block[end:]
        end = block.rfind(b"\n") + 1
        if end:
            yield self._part(b"".join((*self._held, block[:end])))
            self._held, self._length = [], 0
        if end < len(block):
            self._held.append(block[end:])
            self._length += len(block) - end
            if self._length > self._limit:
                self._long = LineParser(self._path, self._limit, first_index=self._next)
                held, self._held, self._length = b"".join(self._held), [], 0
                yield from self._skip(self._long, held, ended=False)

    def finish(self) -> Iterator[Part | Entry]:
        """The last line, where it lacks its LF."""
        if self._long is not None:
            yield from self._skip(self._long, b"", ended=True)
        elif self._held:
            yield self._part(b"".join(self._held))

    def _skip(self, parser: LineParser, data: bytes, *, ended: bool) -> Iterator[Entry]:
        found = [*(parser.feed(data) or ())]
        if ended:
            found += parser.finish() or ()
            self._long = None
            self._next += 1
        yield from found

    def _part(self, data: bytes) -> Part:
        count = data.count(b"\n") + (not data.endswith(b"\n"))
        part = Part(self._next, count, data)
        self._next += count
        return part


def smaller(part: Part, size: Callable[[], int]) -> Iterator[Part]:
    """The part in pieces of about ``size()`` bytes, and one line at least."""
    first, data, start = part.first, part.data, 0
    while start < len(data):
        end = data.find(b"\n", min(start + size(), len(data)) - 1) + 1 or len(data)
        piece = data[start:end]
        count = piece.count(b"\n") + (not piece.endswith(b"\n"))
        yield Part(first, count, piece)
        first += count
        start = end


def first_records(part: Part, most: int) -> tuple[Part, int]:
    """The part up to its ``most``-th line that is not blank, and how many such lines there are in it."""
    seen = start = count = 0
    while start < len(part.data) and seen < most:
        end = part.data.find(b"\n", start) + 1 or len(part.data)
        line = part.data[start:end]
        if not part.first and not start:
            line = line.removeprefix(BOM)
        seen += bool(line.strip(b" \t\r\n"))
        start = end
        count += 1
    return Part(part.first, count, part.data[:start]), seen


def entries_of(data: bytes, first: int, *, path: str, strict: bool, blank: list[int]) -> Iterator[Entry]:
    """Decode whole lines; the indices of those that are blank are added to ``blank`` as it goes."""
    parser = LineParser(path, MAX_LINE_BYTES, first_index=first, strict=strict)
    parser.blanks = blank
    yield from parser.feed(data) or ()
    yield from parser.finish() or ()
    yield from parser.release()


class Looker:
    """Looks at the first lines of an input for what one warning is given of, whoever decodes them.

    Args:
        warn: Told of it, once.
    """

    def __init__(self, path: str, warn: Callable[[str], object]) -> None:
        self._path = path
        self._warn = warn
        self._left = LINES_CHECKED

    def look(self, part: Part) -> None:
        """Look at these lines, if they are still among the first.

        Raises:
            RequestError: As :class:`LineParser`.
        """
        if self._left:
            self._left = max(0, self._left - part.lines)
            parser = LineParser(self._path, MAX_LINE_BYTES, first_index=part.first, warn=self._tell)
            for portion in (parser.feed(part.data), parser.finish()):
                for _ in portion or ():
                    pass

    def _tell(self, message: str) -> None:
        self._left = 0
        self._warn(message)
