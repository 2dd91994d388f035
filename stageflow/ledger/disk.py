"""The system calls through which everything durable goes.

Blocking, and as thin as can be: a test puts in its place a disk that loses power, is full, or kills the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import BinaryIO, Final

__all__ = [
    "FORM_MOMENTS",
    "MOMENTS",
    "OUT_OF_SPACE",
    "READ_BYTES",
    "Disk",
    "ScatteredReads",
    "line_lengths",
    "read_exactly",
    "read_lines",
    "write_all",
]

OUT_OF_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
"""Errors that somebody can mend while the run waits."""

READ_BYTES: Final = 1 << 20

_BLOCK_BYTES: Final = 1 << 18
_BLOCKS_KEPT: Final = 8

MOMENTS: Final = (
    "header written",
    "results written",
    "letters written",
    "commit written",
    "files synced",
    "marker written",
    "ledger cut",
    "results cut",
    "epoch begun",
    "output taken back",
    "final line written",
    "letters compacted",
    "output sorted",
    "output renamed",
    "partial removed",
)
"""Names of the moments between two steps at which a run may be killed; see :meth:`Disk.reached`."""

FORM_MOMENTS: Final = ("form made", "lines removed")
"""The further ones of a run whose output is no JSON lines."""


class Disk:
    """What a ledger asks of the file system. Errors are ``OSError``."""

    def create(self, path: str, mode: int = 0o600) -> int:
        """Make a new file for appending; it may not exist, and no link is followed."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, mode)

    def open(self, path: str, *, write: bool = True) -> int:
        """Open a file that is there, for appending or to look at.

        Raises:
            OSError: It is no regular file, or one of another user's.
        """
        flags = os.O_RDWR | os.O_APPEND if write else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or (write and os.geteuid() not in (0, found.st_uid)):
            os.close(descriptor)
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
        return descriptor

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def lock(self, descriptor: int) -> bool:
        """Take the lock of a file for as long as it is open; False where another process has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_at(self, descriptor: int, path: str) -> bool:
        """Whether an open file still has that name."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(path))
        except FileNotFoundError:
            return False

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Append, and say how much of it; it may be less than all."""
        return os.write(descriptor, data)

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        """Up to ``count`` bytes from ``offset``; ``b""`` at the end."""
        return os.pread(descriptor, count, offset)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def mode(self, descriptor: int) -> int:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Return when the data written so far would survive a loss of power."""
        os.fdatasync(descriptor)

    def sync_directory(self, path: str) -> None:
        """Return when names made, changed or removed there would survive a loss of power."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def list(self, directory: str) -> list[str]:
        """The names in a folder."""
        return os.listdir(directory)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    def try_directory(self, path: str) -> None:
        """See that files can be made there. Asking the system beats guessing from modes: a mount may be read-only."""
        tempfile.TemporaryFile(dir=path).close()

    def scratch(self, directory: str) -> BinaryIO:
        """A file without a name, of which nothing is left whatever happens."""
        return tempfile.TemporaryFile(dir=directory, buffering=0)

    def reached(self, moment: str) -> None:
        """One of :data:`MOMENTS` has come. A test may end the process here."""


def write_all(disk: Disk, descriptor: int, data: bytes) -> None:
    """Append all of ``data``, in as many calls as the system makes of it."""
    written = disk.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[disk.write(descriptor, view) :]


def read_exactly(disk: Disk, descriptor: int, start: int, end: int) -> bytes:
    """The bytes between two places in a file, in as many calls as the system makes of it.

    Raises:
        OSError: The file ends before.
    """
    data = disk.read(descriptor, end - start, start)
    while len(data) < end - start:
        more = disk.read(descriptor, end - start - len(data), start + len(data))
        if not more:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data += more
    return data


def read_lines(disk: Disk, descriptor: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The lines between two places in a file, each with its LF; the last one may lack it."""
    rest, offset = b"", start
    while end is None or offset < end:
        block = disk.read(descriptor, READ_BYTES if end is None else min(READ_BYTES, end - offset), offset)
        if not block:
            break
        offset += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def line_lengths(disk: Disk, descriptor: int, end: int) -> Iterator[int]:
    """The length of each line before a place in a file, with its LF; the last one may lack it."""
    return chain.from_iterable(_line_lengths(disk, descriptor, end))


def _line_lengths(disk: Disk, descriptor: int, end: int) -> Iterator[list[int]]:
    begun = offset = 0
    while offset < end and (block := disk.read(descriptor, min(READ_BYTES, end - offset), offset)):
        offset += len(block)
        *lines, rest = block.split(b"\n")
        lengths = [len(line) + 1 for line in lines]
        if lengths:
            lengths[0] += begun
            begun = 0
        begun += len(rest)
        yield lengths
    if begun:
        yield [begun]


class ScatteredReads:
    """Reads short pieces of a file that come nearly, but not quite, in the order in which they stand.

    A block of the file is read at once and the newest few are kept, so most pieces cost no call of the system. Where
    pieces are far apart that would read most of a block for nothing: no more than twice what was asked for is read,
    and whatever else is asked for is read by itself.

    Args:
        end: Of the file.
    """

    def __init__(self, disk: Disk, descriptor: int, end: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._end = end
        self._blocks: dict[int, bytes] = {}
        self._room = _BLOCK_BYTES * _BLOCKS_KEPT  # bytes that may still be read in blocks

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two places.

        Raises:
            OSError: The file can't be read.
        """
        number = start // _BLOCK_BYTES
        base = number * _BLOCK_BYTES
        self._room += 2 * (end - start)
        block = self._blocks.get(number)
        if block is None and end <= base + _BLOCK_BYTES and self._room >= _BLOCK_BYTES:
            block = self._read_block(number, base)
        if block is None or end > base + len(block):
            return read_exactly(self._disk, self._descriptor, start, end)
        return block[start - base : end - base]

    def _read_block(self, number: int, base: int) -> bytes:
        block = read_exactly(self._disk, self._descriptor, base, min(base + _BLOCK_BYTES, self._end))
        self._room -= len(block)
        self._blocks[number] = block
        if len(self._blocks) > _BLOCKS_KEPT:
            del self._blocks[next(iter(self._blocks))]
        return block
