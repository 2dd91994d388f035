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
from typing import BinaryIO, Final

__all__ = ["MOMENTS", "OUT_OF_SPACE", "READ_BYTES", "Disk", "read_exactly", "read_lines", "write_all"]

OUT_OF_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
"""Errors that somebody can mend while the run waits."""

READ_BYTES: Final = 1 << 20

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
