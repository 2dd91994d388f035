"""Where bytes come from: a file of this machine, a pipe, standard input; others look alike to whoever reads.

A medium says what it is before anything is read. What it opens is read from its beginning or from a place in it, if a
later run could do that too: such a medium is lasting.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from stageflow.commit import InputIdentity

__all__ = ["LocalFile", "Medium", "Opened"]


class Opened(Protocol):
    """The bytes of a medium, from the beginning on. Everything blocks, and raises ``OSError`` where it fails."""

    @property
    def identity(self) -> InputIdentity | None:
        """What was opened, as it was then; ``None`` if it is not lasting."""
        ...

    def read(self, size: int, /) -> bytes:
        """At least one and at most ``size`` bytes; ``b""`` at the end."""
        ...

    def head(self, size: int, /) -> bytes:
        """The first bytes, wherever reading is; ``b""`` where looking would take them."""
        ...

    def seek(self, position: int, /) -> None:
        """Go on reading there."""
        ...

    def close(self) -> None: ...


class Medium(Protocol):
    """Something that can be opened.

    Attributes:
        path: As the user calls it.
        name: As messages call it.
    """

    path: str
    name: str

    def check(self) -> None:
        """See that it is there and may be read.

        Raises:
            OSError: It is not.
        """
        ...

    @property
    def lasting(self) -> bool:
        """Whether a later run finds the same, and can begin in the middle."""
        ...

    def open(self) -> Opened: ...


class LocalFile:
    """A file by its name; ``-`` is standard input."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "stdin" if path == "-" else path

    def check(self) -> None:
        """See that it is no directory, and may be read."""
        if stat.S_ISDIR(self._stat().st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if self.path != "-" and not os.access(self.path, os.R_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    @property
    def lasting(self) -> bool:
        """Whether it is a regular file with a name."""
        try:
            return self.path != "-" and stat.S_ISREG(self._stat().st_mode)
        except OSError:
            return False

    def open(self) -> LocalBytes:
        """Open it. A FIFO blocks until somebody writes to it."""
        if self.path == "-":
            # The descriptor, not `sys.stdin.buffer`: a thread blocked in that one holds its lock, and an interpreter
            # that then exits dies of it.
            return LocalBytes(0, self.path, owned=False)
        return LocalBytes(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), self.path, owned=True)

    def _stat(self) -> os.stat_result:
        return os.fstat(0) if self.path == "-" else os.stat(self.path)


class LocalBytes:
    """An open descriptor.

    Args:
        owned: Whether :meth:`close` closes it.
    """

    def __init__(self, descriptor: int, path: str, *, owned: bool) -> None:
        self._descriptor = descriptor
        self._path = path
        self._owned = owned
        self._lasting = path != "-" and stat.S_ISREG(os.fstat(descriptor).st_mode)

    @property
    def identity(self) -> InputIdentity | None:
        """The file as it is now."""
        if not self._lasting:
            return None
        there = os.fstat(self._descriptor)
        return InputIdentity(
            self._path, there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
        )

    def read(self, size: int) -> bytes:
        """As the system has them."""
        return os.read(self._descriptor, size)

    def head(self, size: int) -> bytes:
        """The first bytes of a regular file."""
        return os.pread(self._descriptor, size, 0) if self._lasting else b""

    def seek(self, position: int) -> None:
        """Go on there."""
        os.lseek(self._descriptor, position, os.SEEK_SET)

    def close(self) -> None:
        """Close it, if it is this one's to close."""
        if self._owned:
            os.close(self._descriptor)
