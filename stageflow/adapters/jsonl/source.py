"""Records from a file of JSON lines, or from standard input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from itertools import islice

from stageflow.adapters.jsonl.lines import LineParser
from stageflow.adapters.jsonl.threads import BlockReader
from stageflow.errors import RequestError, StorageError
from stageflow.protocols import Entry

__all__ = ["JsonlSource"]


class JsonlSource:
    """Reads one record per line; what holds no record comes as a ``BadRecord`` in its place.

    Entries come in the order of the file, ``index + 1`` being the line number; blank lines are skipped. The file is
    read in blocks by a daemon thread, at most two blocks ahead, and decoded line by line as a portion is iterated: the
    loop never waits for the disk or for whoever feeds a pipe, and memory does not depend on the size of the file.
    A cancelled wait for a portion loses nothing.

    Args:
        path: The file as the user calls it; ``-`` is standard input.
        max_line_bytes: Longest line that is parsed; a longer one is skipped as it is read, and becomes a bad record.
        block_bytes: How much is read at once. 256 KiB is some hundred records: the cost of a hand-over vanishes.

    Attributes:
        path: As given.
        numbered: True: indices are line numbers, less one.
    """

    def __init__(self, path: str, *, max_line_bytes: int = 64 * 1024 * 1024, block_bytes: int = 256 * 1024) -> None:
        self.path: str | None = path
        self.numbered = True
        self._path = path
        self._name = "stdin" if path == "-" else path
        self._max_line_bytes = max_line_bytes
        self._block_bytes = block_bytes
        self._parser = self._new_parser()

    @property
    def blank(self) -> int:
        """Blank lines skipped by :meth:`read` so far."""
        return self._parser.blank

    def check(self) -> None:
        """See that the input can be read and is what it should be, as far as its beginning tells.

        Only a regular file is opened: looking into a pipe would take from it.

        Raises:
            RequestError: It is missing, a directory or not permitted; or it is UTF-16 or one JSON array.
        """
        try:
            mode = self._stat().st_mode
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if self._path != "-" and not os.access(self._path, os.R_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._unreadable(error) from error
        self.peek(1)

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries of a regular file, read separately and at once; ``[]`` for anything else.

        Raises:
            RequestError: As :meth:`check`.
        """
        if not self._is_regular():
            return []
        descriptor, _ = self._open()
        try:
            return list(islice(self._entries_now(descriptor), n))
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(descriptor)

    def estimate(self) -> int | None:
        """About how many records a regular file holds, by its size and first block; ``None`` for anything else."""
        if not self._is_regular():
            return None
        descriptor, _ = self._open()
        try:
            size = os.fstat(descriptor).st_size
            block = os.read(descriptor, self._block_bytes)
        finally:
            os.close(descriptor)
        cut = len(block) if len(block) >= size else block.rfind(b"\n") + 1  # without a last line that is not whole
        if not cut:
            return size // len(block) if block else 0
        records = sum(1 for line in block[:cut].split(b"\n") if line.strip())
        return round(max(size, cut) * records / cut)

    async def read(self) -> AsyncGenerator[Iterator[Entry], None]:
        """Yield the entries in portions of the lines that a block ended; each is decoded as it is iterated.

        Raises:
            RequestError: The input can't be opened, is UTF-16 or is one JSON array. The last is raised while the first
                portion is iterated.
            StorageError: Reading failed in the middle.
        """
        self._parser = parser = self._new_parser()
        reader = BlockReader(self._open, self._block_bytes)
        try:
            while block := await self._receive(reader):
                if (portion := parser.feed(block)) is not None:
                    yield portion
        finally:
            reader.stop()
        if (portion := parser.finish()) is not None:
            yield portion
        parser.close()

    async def _receive(self, reader: BlockReader) -> bytes:
        try:
            return await reader.receive()
        except OSError as error:
            raise StorageError(f"cannot read {self._name}: {error.strerror}") from error

    def _entries_now(self, descriptor: int) -> Iterator[Entry]:
        parser = self._new_parser()
        while block := os.read(descriptor, self._block_bytes):
            yield from parser.feed(block) or ()
        yield from parser.finish() or ()
        parser.close()

    def _new_parser(self) -> LineParser:
        return LineParser(self._path, self._max_line_bytes)

    def _is_regular(self) -> bool:
        try:
            return self._path != "-" and stat.S_ISREG(self._stat().st_mode)
        except OSError:
            return False

    def _stat(self) -> os.stat_result:
        return os.fstat(0) if self._path == "-" else os.stat(self._path)

    def _open(self) -> tuple[int, bool]:
        if self._path == "-":
            # The descriptor, not `sys.stdin.buffer`: a thread blocked in that one holds its lock, and an interpreter
            # that then exits dies of it.
            return 0, False
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), True
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> RequestError:
        return RequestError(f"cannot read {self._name}: {error.strerror}")
