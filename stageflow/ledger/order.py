"""In which order records were written to a file, and how to read them back in the order of their input."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import BinaryIO

from stageflow.ledger.disk import Disk, write_all

__all__ = ["OrderIndex", "Place"]

_WORD = 8
Place = tuple[int, int, int]
_ordinal = itemgetter(0)


class OrderIndex:
    """Remembers the ordinal and the length of each piece of a file, in a nameless scratch file.

    A piece is what one record has at one place: its lines, one after another. Memory does not grow with the number of
    pieces, but for three numbers (24 bytes) per block of 4,096: the smallest and the largest ordinal in the block, and
    where in the data its first piece starts.

    :meth:`in_order` sorts by repeated selection. A pass goes over the blocks, skips those whose ordinals all lie
    outside the range wanted, and picks the pieces with the smallest ordinals not yet returned. When it has picked more
    than ``window``, it sorts them, keeps the lower seven eighths, and from then on wants nothing above: the less is
    thrown away, the less is read again, and sorting anew what is nearly sorted costs little. So a pass returns most of
    a window, unless less is left, and holds at most a window and a block. Records are settled nearly in the order in
    which they were read, so most blocks lie wholly above or below what a pass wants: together the passes read each
    block once or twice. Only a file in random order costs a reading of the whole index per window. One ordinal with
    more pieces than fit is streamed: they stand in the order wanted.

    Args:
        scratch: A file to write to and read from; it is closed in the end.
        window: Most pieces sorted at once; 16,384 take about 3 MB.
        block_lines: Pieces per block of the index.

    Attributes:
        size: The lengths of all pieces, together.
    """

    def __init__(self, scratch: BinaryIO, *, window: int = 16 * 1024, block_lines: int = 4096) -> None:
        self.size = 0
        self._window = window
        self._block_lines = block_lines
        self._file = scratch
        self._written = 0
        self._ordinals = array("Q")
        self._lengths = array("Q")
        self._lowest = array("Q")
        self._highest = array("Q")
        self._starts = array("Q")

    def add(self, ordinal: int, length: int) -> None:
        """Note the next piece of the file. Of one ordinal there may be several.

        Raises:
            OSError: The scratch file can't be written.
        """
        self.size += length
        self._ordinals.append(ordinal)
        self._lengths.append(length)
        if len(self._ordinals) >= self._block_lines:
            self._flush(self._block_lines)

    def add_all(self, ordinals: Sequence[int], lengths: Sequence[int]) -> None:
        """Note the next pieces of the file.

        Raises:
            OSError: The scratch file can't be written.
        """
        self.size += sum(lengths)
        self._ordinals.extend(ordinals)
        self._lengths.extend(lengths)
        while len(self._ordinals) >= self._block_lines:
            self._flush(self._block_lines)

    def in_order(self) -> Iterator[Place]:
        """Ordinal, offset and length of each piece, by ordinal; those of one in the order in which they were noted."""
        self._flush(len(self._ordinals))
        low, end = 0, max(self._highest, default=-1) + 1
        while low < end:
            high = end
            picked: list[Place] = []
            for block in range(len(self._starts)):
                picked += self._places(block, low, high)
                if len(picked) > self._window:
                    picked.sort(key=_ordinal)
                    high = max(picked[self._window * 7 // 8][0], low + 1)
                    del picked[bisect_left(picked, high, key=_ordinal) :]
                if high == low + 1:
                    yield from picked
                    picked.clear()
            picked.sort(key=_ordinal)
            yield from picked
            low = high

    def close(self) -> None:
        """Drop the index."""
        self._file.close()

    def _flush(self, count: int) -> None:
        if not count:
            return
        ordinals, lengths = self._ordinals[:count], self._lengths[:count]
        # A file of its own, which need not survive anything: it is no part of the disk that a test may replace.
        write_all(Disk(), self._file.fileno(), ordinals.tobytes() + lengths.tobytes())
        self._lowest.append(min(ordinals))
        self._highest.append(max(ordinals))
        self._starts.append(self._written)
        self._written += sum(lengths)
        del self._ordinals[:count], self._lengths[:count]

    def _places(self, block: int, low: int, high: int) -> Collection[Place]:
        """Ordinal, offset and length of the pieces of a block with ``low <= ordinal < high``."""
        lowest, highest = self._lowest[block], self._highest[block]
        if highest < low or lowest >= high:
            return ()
        size = 2 * self._block_lines * _WORD
        words = array("Q", os.pread(self._file.fileno(), size, block * size))
        ordinals, lengths = words[: len(words) // 2], words[len(words) // 2 :]
        places = zip(ordinals, accumulate(lengths, initial=self._starts[block]), lengths, strict=False)
        if low <= lowest and highest < high:
            return list(places)
        return [place for place in places if low <= place[0] < high]
