"""Records from a file of JSON lines, or from standard input."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Final

from stageflow.adapters.jsonl.inputs import InputText, codec_of
from stageflow.adapters.jsonl.lines import LineParser, wrong_file
from stageflow.adapters.jsonl.marks import BEGINNING, Block, first_difference, marked_blocks, plain_blocks
from stageflow.adapters.jsonl.parts import Part, PartCutter
from stageflow.adapters.jsonl.threads import BlockReader
from stageflow.adapters.media import LocalFile, Medium, Opened
from stageflow.commit import InputIdentity, InputMark
from stageflow.errors import InputDamaged, RequestError, RunStopped, StorageError
from stageflow.protocols import Entry

__all__ = ["JsonlSource"]

LOOKED_AT: Final = 100
"""Entries at the beginning by which a wrong file is told."""

MARKS_KEPT: Final = 4096
BLANKS_KEPT: Final = 4 * 1024 * 1024
"""The most marks (those of a gibibyte) and blank lines that wait to be taken. Where there are more, nobody takes them:
they are forgotten, and no more are kept."""


class JsonlSource:
    """Reads one record per line; what holds no record comes as a ``BadRecord`` in its place.

    Entries come in the order of the file, ``index + 1`` being the line number; blank lines are skipped. The file is
    read in blocks by a daemon thread, at most two blocks ahead, and decoded line by line as a portion is iterated: the
    loop never waits for the disk or for whoever feeds a pipe, and memory does not depend on the size of the file.
    A cancelled wait for a portion loses nothing.

    A file that is gzip or Zstandard, by its first bytes or its name, is decompressed as it is read; all places in it
    are places in the text. A regular file has an identity and gives marks, each at the end of a block, at which
    reading can begin; in compressed text by decompressing and throwing away what is before. Their digests are made in
    the thread. Standard input and pipes have neither.

    Args:
        path: The file as the user calls it; ``-`` is standard input.
        max_line_bytes: Longest line that is parsed; a longer one is skipped as it is read, and becomes a bad record.
        block_bytes: How much is read at once. 256 KiB is some hundred records: the cost of a hand-over vanishes.
        max_input_bytes: Reading stops with :class:`RunStopped` when the input, decompressed, is larger; ``None``: any
            size.
        marked: Give marks. Where nobody takes them, the making of their digests is saved.
        strict: A line with a key that comes twice is a bad record. Else its last value counts, and one warning names
            the first such line, if it is among the first 1,000 or so.
        medium: What is read instead of a file of this name.

    Attributes:
        path: As given.
        numbered: True: indices are line numbers, less one.
        warnings: What was accepted though it looks wrong, a line each. It grows while portions are iterated, and (what
            follows gzip data) up to the end of reading.
    """

    def __init__(
        self,
        path: str,
        *,
        max_line_bytes: int = 64 * 1024 * 1024,
        block_bytes: int = 256 * 1024,
        max_input_bytes: int | None = None,
        marked: bool = True,
        strict: bool = False,
        medium: Medium | None = None,
    ) -> None:
        self.path: str | None = path
        self.numbered = True
        self.warnings: list[str] = []
        self._path = path
        self._medium = medium or LocalFile(path)
        self._name = self._medium.name
        self._max_line_bytes = max_line_bytes
        self._block_bytes = block_bytes
        self._max_input_bytes = max_input_bytes
        self._marked = marked
        self._strict = strict
        self._parser = self._new_parser()
        self._marks: list[InputMark] = []
        self._newest: InputMark | None = None
        self._marking = True
        self._opened: InputIdentity | None = None

    @property
    def blank(self) -> int:
        """Blank lines skipped by :meth:`read` so far."""
        return self._parser.blank

    def check(self) -> None:
        """See that the input can be read and is what it should be, as far as its beginning tells.

        Only a regular file is opened: looking into a pipe would take from it.

        Raises:
            RequestError: It is missing, a directory or not permitted; it is UTF-16, one JSON array, or named ``.gz``
                without being it; or most of its first lines are no records.
        """
        try:
            self._medium.check()
        except OSError as error:
            raise self._unreadable(error) from error
        if (reason := wrong_file(self.peek(LOOKED_AT))) is not None:
            raise RequestError(f"{self._name} is not JSON lines: {reason}", hint="is it the right file?")

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries of a regular file, read separately and at once; ``[]`` for anything else.

        Fewer where the lines are so long that ``n`` of them would be a lot to read, or before a damage.

        Raises:
            RequestError: As :meth:`check`, but for lines that are no records.
        """
        if not self._is_regular():
            return []
        with closing(self._open(watched=False)) as text:
            try:
                return list(islice(self._entries_now(text), n))
            except OSError as error:
                raise self._unreadable(error) from error

    def estimate(self) -> int | None:
        """About how many records a regular file holds, by its size and first block; ``None`` for anything else."""
        if not self._is_regular():
            return None
        with closing(self._open(watched=False)) as text:
            try:
                block = text.fill(self._block_bytes)
            except (InputDamaged, RunStopped):
                return None
            there = self.identity()
            size = there.size if there is not None else len(block)
            if (compression := text.compression) is not None:
                size = round(size * compression) if len(block) == self._block_bytes else len(block)
        cut = len(block) if len(block) >= size else block.rfind(b"\n") + 1  # without a last line that is not whole
        if not cut:
            return size // len(block) if block else 0
        records = sum(1 for line in block[:cut].split(b"\n") if line.strip())
        return round(max(size, cut) * records / cut)

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterator[Entry], None]:
        """Yield the entries in portions of the lines that a block ended; each is decoded as it is iterated.

        Args:
            start: A mark of this input; its line is the first one read. Only of a regular file.

        Raises:
            RequestError: The input can't be opened, is UTF-16, one JSON array or not the gzip it is named. That it is
                an array is told while the first portion is iterated.
            InputDamaged: Compressed data ends early or is damaged; the whole lines before were yielded.
            RunStopped: The input is larger than ``max_input_bytes``; the whole lines before were yielded.
            StorageError: Reading failed in the middle.
        """
        start = start or BEGINNING
        self._parser = parser = self._new_parser(start, warned=True)
        self._marks, self._newest, self._marking, self._opened = [], None, True, None
        reader = BlockReader(lambda: self._blocks(start))
        try:
            while (block := await self._receive(reader)) is not None:
                portion = parser.feed(block.data, block.pieces)
                self._keep(block.mark)
                if portion is not None:
                    yield portion
        except (InputDamaged, RunStopped):
            if (portion := parser.cut_short()) is not None:
                yield portion
            raise
        finally:
            reader.stop()
        if (portion := parser.finish()) is not None:
            yield portion
        parser.close()

    async def read_parts(self, start: InputMark | None = None) -> AsyncGenerator[list[Part | Entry], None]:
        """As :meth:`read`, but as whole lines that somebody else decodes; a line too long for that is an entry.

        Blank lines are for whoever decodes to find: no mark has any.

        Raises:
            RequestError, InputDamaged, RunStopped, StorageError: As :meth:`read`.
        """
        start = start or BEGINNING
        self._marks, self._newest, self._marking, self._opened = [], None, True, None
        cutter = PartCutter(self._path, start.lines, self._max_line_bytes)
        reader = BlockReader(lambda: self._blocks(start))
        try:
            while (block := await self._receive(reader)) is not None:
                parts = [*cutter.feed(block.data)]
                self._keep(block.mark)
                if parts:
                    yield parts
        finally:
            reader.stop()
        if parts := [*cutter.finish()]:
            yield parts

    def take_marks(self) -> list[InputMark]:
        """The marks not taken yet; the last is at the end of the newest portion, whether or not that was iterated.

        Blank lines are found as a portion is iterated, so they come with a later mark. Where there is none, the last
        mark is given once more to bear them: ask again after the end.
        """
        marks, self._marks = self._marks, []
        if self._newest is not None and (blanks := self._parser.blanks):
            *marks, last = marks or [self._newest]
            marks.append(replace(last, blank=tuple(blanks)))
            blanks.clear()
        return marks

    def identity(self) -> InputIdentity | None:
        """The file as it is now; ``None`` for what is no regular file, and for standard input.

        Raises:
            RequestError: It can't be opened.
        """
        if not self._is_regular():
            return None
        with closing(self._opened_medium()) as opened:
            return self._identity(opened)

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """Read what the marks were made of again, and return the first lines (from 1) that are not what they were.

        Blocks for as long as it takes to read and to hash all before the last mark.

        Raises:
            RequestError: The input can't be opened, or is not the gzip it is named.
            StorageError: Reading failed.
        """
        if not self._is_regular():
            return None
        try:
            return first_difference(lambda: closing(self._open(watched=False, limited=False)), marks)
        except OSError as error:
            raise self._failed(error) from error

    def changed(self) -> bool:
        """Whether the file is not the one that the last :meth:`read` opened, or was touched since."""
        if self._opened is None:
            return False
        try:
            there = self.identity()
        except RequestError:
            return True
        return there is None or not there.same_file(self._opened)

    async def _receive(self, reader: BlockReader[Block]) -> Block | None:
        try:
            return await reader.receive()
        except OSError as error:
            raise self._failed(error) from error

    def _blocks(self, start: InputMark) -> Generator[Block]:
        """The input in blocks, with marks if it is a regular file and they are wanted. Runs in the reader's thread."""
        with closing(self._open(watched=True)) as text:
            if self._opened is None or not self._marked:
                yield from plain_blocks(text, self._block_bytes)
                return
            mid_line = not text.seek(start.bytes) and start.lines > 0
            yield from marked_blocks(text, self._block_bytes, start, mid_line=mid_line)

    def _keep(self, mark: InputMark | None) -> None:
        if mark is None or not self._marking:
            return
        if self._parser.blanks is None:
            self._parser.blanks = []
        self._newest = mark
        self._marks.append(mark)
        if len(self._marks) > MARKS_KEPT or len(self._parser.blanks) > BLANKS_KEPT:
            self._marking, self._newest, self._marks, self._parser.blanks = False, None, [], None

    def _entries_now(self, text: InputText) -> Iterator[Entry]:
        parser, rest, seen = self._new_parser(), self._max_line_bytes, False
        try:
            while rest >= 0 and (block := text.read(self._block_bytes)):
                rest -= len(block)
                for entry in parser.feed(block) or ():
                    seen = True
                    yield entry
        except (InputDamaged, RunStopped):
            return
        if rest >= 0 or not seen:
            # All that there is, or the beginning of one line that is longer than may be: it is told by that.
            yield from parser.finish() or ()
            parser.close()

    def _new_parser(self, start: InputMark = BEGINNING, *, warned: bool = False) -> LineParser:
        warn = self.warnings.append if warned else None
        return LineParser(self._path, self._max_line_bytes, first_index=start.lines, strict=self._strict, warn=warn)

    def _is_regular(self) -> bool:
        return self._medium.lasting

    def _open(self, *, watched: bool, limited: bool = True) -> InputText:
        """Open the input. ``watched``: this is the reading that is asked later whether the file has changed."""
        opened = self._opened_medium()
        if watched:
            self._opened = self._identity(opened)
        limit = self._max_input_bytes if limited else None
        try:
            return InputText(opened, self._path, limit, self.warnings.append if watched else _ignore)
        except RequestError:
            opened.close()
            raise

    def _opened_medium(self) -> Opened:
        try:
            return self._medium.open()
        except OSError as error:
            raise self._unreadable(error) from error

    def _identity(self, opened: Opened) -> InputIdentity | None:
        there = opened.identity
        return None if there is None else replace(there, codec=codec_of(opened, self._path))

    def _unreadable(self, error: OSError) -> RequestError:
        return RequestError(f"cannot read {self._name}: {error.strerror}")

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"cannot read {self._name}: {error.strerror}")


def _ignore(_: str) -> None:
    """What is warned of is warned of by the reading that counts."""
