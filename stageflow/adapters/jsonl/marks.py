"""An input in blocks, with a mark behind the last line that ends in each; and marks held against an input.

Where the marks stand is a matter of the place where reading begins and of what stands there, never of how many bytes a
read happened to return. So whoever begins at a mark comes by the same marks as whoever passed it: a block ends so many
bytes behind the last mark. What it holds is handed on as it was read: nothing is copied to be cut at a line.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from stageflow.adapters.jsonl.decode import BOM
from stageflow.commit import InputMark
from stageflow.errors import InputDamaged

__all__ = ["BEGINNING", "Block", "Text", "first_difference", "marked_blocks", "plain_blocks"]

BEGINNING = InputMark(0, 0, "")

_REHASHED_BYTES = 1024 * 1024
_AT_ONCE = 16
"""How many of the marks that do not follow the one before them are tried in one reading, and behind how many others."""

Link = tuple[InputMark, InputMark]
"""A mark and one behind it whose digest may have been made from there."""


class Text(Protocol):
    """What is asked of an opened input."""

    def read(self, size: int, /) -> bytes: ...

    def fill(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Block:
    """Some bytes of an input, and the mark behind the last line that ends in them, if any does.

    Args:
        pieces: The same bytes cut at each LF: counting lines for the mark and cutting them are one search.
    """

    data: bytes
    mark: InputMark | None
    pieces: list[bytes] | None = field(default=None, compare=False, repr=False)


def plain_blocks(text: Text, block_bytes: int) -> Generator[Block]:
    """Blocks as they come, without marks: what a pipe has is handed on at once."""
    while data := text.read(block_bytes):
        yield Block(data, None)


def marked_blocks(text: Text, block_bytes: int, start: InputMark, *, mid_line: bool = False) -> Generator[Block]:
    """Blocks with marks, at most ``block_bytes`` apart where lines are no longer than that.

    Whatever reading raises is raised after the last whole line before it.

    Args:
        text: The input, at ``start``.
        block_bytes: The most that is read at once.
        start: Where it stands.
        mid_line: The line before ``start`` was not ended: an LF or CRLF that comes first belongs to it.
    """
    chain, size, ended = _Chain(start), block_bytes, False
    failed: Exception | None = None
    while not ended:
        reads: list[bytes] = []
        left = size
        try:
            while left and not ended:
                reads.append(text.read(left))
                left -= len(reads[-1])
                ended = not reads[-1]
        except Exception as error:  # noqa: BLE001  # raised again behind the lines before it
            failed, ended = error, True
        data = reads[0] if len(reads) == 1 else b"".join(reads)
        if failed is not None:
            data = data[: data.rfind(b"\n") + 1]
        if mid_line and data:
            mid_line = False
            data = data[chain.take_line_end(data) :]
        pieces = data.split(b"\n")
        mark, behind = chain.take(data, len(pieces) - 1, last=ended and failed is None)
        size = block_bytes if mark is None else block_bytes - behind
        if data or mark is not None:
            yield Block(data, mark, pieces)
    if failed is not None:
        raise failed


class _Chain:
    """What was read since the last mark."""

    def __init__(self, start: InputMark) -> None:
        self._mark = start
        self._lines = start.lines
        self._bytes = start.bytes
        self._hash = hashlib.sha256(start.digest.encode())
        self._in_line = False

    def take_line_end(self, data: bytes) -> int:
        """Add the end of a line that was counted already, if ``data`` begins with one; return its length."""
        length = _line_end_bytes(data)
        self._bytes += length
        self._hash.update(data[:length])
        return length

    def take(self, data: bytes, line_ends: int, *, last: bool) -> tuple[InputMark | None, int]:
        """Add bytes; return the mark behind the last line that ends in them, and how many are behind that.

        The ``last`` line is ended by the end of the input. A mark is made only where anything is new.

        Args:
            line_ends: How many LF are in ``data``.
        """
        end = len(data) if last else data.rfind(b"\n") + 1
        view = memoryview(data)
        if end:
            # A byte order mark alone is no line.
            self._in_line = not data.endswith(b"\n", 0, end) and not (self._bytes == 0 and data == BOM)
            self._add(view[:end])
            self._lines += line_ends
        mark = None
        if (end or last) and self._bytes > self._mark.bytes:
            self._lines += self._in_line
            self._mark = mark = InputMark(self._lines, self._bytes, self._hash.hexdigest())
            self._hash = hashlib.sha256(mark.digest.encode())
        if end < len(data):
            self._in_line = True
            self._add(view[end:])
        return mark, len(data) - end

    def _add(self, data: memoryview) -> None:
        self._bytes += len(data)
        self._hash.update(data)


def _line_end_bytes(data: bytes) -> int:
    return 1 if data.startswith(b"\n") else 2 if data.startswith(b"\r\n") else 0


# Marks held against an input


def first_difference(
    open_text: Callable[[], AbstractContextManager[Text]], marks: Sequence[InputMark]
) -> tuple[int, int] | None:
    """The first lines (from 1, both ends included) between two marks that are not what they were, or not there.

    Marks of several runs may stand behind each other: each follows the one before it, or another one from which a
    later run began. A line that the input ended in, and that goes on now, is not what it was.

    Args:
        open_text: Opens the input, at its beginning.
        marks: In the order in which they were taken.
    """
    links, known = _links(marks)
    with open_text() as text:
        wrong = _broken(text, links)
    while wrong:
        tried, wrong = wrong[:_AT_ONCE], wrong[_AT_ONCE:]
        others = [(place, mark) for before, mark in tried for place in _places(known, mark) if place != before]
        with open_text() as text:
            broken = set(_broken(text, others))
        followed = {mark for place, mark in others if (place, mark) not in broken}
        for before, mark in tried:
            if mark not in followed:
                return before.lines + 1, max(mark.lines, before.lines + 1)
    return None


def _links(marks: Iterable[InputMark]) -> tuple[list[Link], list[InputMark]]:
    """Each mark with the one that it most likely follows, and all marks, both by their places."""
    links, seen, before = [], {(0, ""): BEGINNING}, BEGINNING
    for mark in marks:
        key = (mark.bytes, mark.digest)
        if key not in seen:
            seen[key] = mark
            if before.bytes >= mark.bytes:
                before = max((known for known in seen.values() if known.bytes < mark.bytes), key=_place)
            links.append((before, mark))
        before = seen[key]
    return sorted(links, key=lambda link: link[1].bytes), sorted(seen.values(), key=_place)


def _place(mark: InputMark) -> int:
    return mark.bytes


def _places(known: Sequence[InputMark], mark: InputMark) -> list[InputMark]:
    return [place for place in known if place.bytes < mark.bytes][-_AT_ONCE:]


def _broken(text: Text, links: Sequence[Link]) -> list[Link]:
    """Of these links, by their ends, the ones that the input does not bear out. One pass over the input."""
    starts: defaultdict[int, list[Link]] = defaultdict(list)
    for link in links:
        starts[link[0].bytes].append(link)
    good: set[Link] = set()
    running: list[tuple[Link, hashlib._Hash]] = []
    at, held, last = 0, b"", b""
    for cut in sorted({mark.bytes for link in links for mark in link}):
        while at < cut:
            piece = held or _what_is_there(text, min(_REHASHED_BYTES, cut - at))
            piece, held = piece[: cut - at], piece[cut - at :]
            if not piece:
                return [link for link in links if link not in good]
            at, last = at + len(piece), piece[-1:]
            for _, digest in running:
                digest.update(piece)
        ending = [(link, digest) for link, digest in running if link[1].bytes == cut]
        running = [pair for pair in running if pair[0][1].bytes > cut]
        if ending and last != b"\n" and ending[0][0][1].lines:
            # The input ended in that line, without LF. To have got one since does not change the line; more does.
            held = held if len(held) > 1 else held + _what_is_there(text, 2 - len(held))
            if held and not _line_end_bytes(held):
                ending = []
        good.update(link for link, digest in ending if digest.hexdigest() == link[1].digest)
        running += [(link, hashlib.sha256(link[0].digest.encode())) for link in starts[cut]]
    return [link for link in links if link not in good]


def _what_is_there(text: Text, size: int) -> bytes:
    try:
        return text.fill(size)
    except InputDamaged:
        return b""
