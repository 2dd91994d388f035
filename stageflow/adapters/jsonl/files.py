"""A regular file of lines, appended to: the dead letters of a run whose results go elsewhere."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from itertools import count

from stageflow.errors import RequestError, StorageError

__all__ = ["FileOutput", "free_name", "is_file_name", "sync_directory"]


class FileOutput:
    """A file of lines. Blocking: ``write`` for microseconds, ``finish`` for as long as the disk takes.

    Args:
        path: As the user calls it. A symbolic link is followed once, and stays a link.
        fresh: Rename what is in the way rather than refuse.
        mode: Permissions of the file, less the umask, from its creation.
    """

    def __init__(self, path: str, *, fresh: bool, mode: int) -> None:
        self._name = path
        self._fresh = fresh
        self._mode = mode
        self._real = os.path.realpath(path)
        self._directory = os.path.dirname(self._real)
        self._descriptor: int | None = None
        self._end = 0

    def open(self) -> None:
        """Claim the path. The file is made with the first line.

        Raises:
            RequestError: Its directory can't be written to, or it exists; nothing was touched.
        """
        try:
            # Asking the system beats guessing from modes: only a trial tells of a read-only mount or a quota.
            tempfile.TemporaryFile(dir=self._directory).close()
        except OSError as error:
            shown = os.path.dirname(self._name) or "."
            raise RequestError(f"cannot write to {shown}: {error.strerror}") from error
        if os.path.isdir(self._real):
            raise RequestError(f"cannot write to {self._name}: {os.strerror(errno.EISDIR)}")
        if not os.path.lexists(self._real):
            return
        if not self._fresh:
            hint = "choose another --dead, or pass --fresh to keep it under another name"
            raise RequestError(f"{self._name} exists", hint=hint)
        os.rename(self._real, free_name(self._real))

    def write(self, data: bytes) -> None:
        """Append ``data``, wholly or not at all.

        Raises:
            StorageError: It can't be written.
        """
        if not data:
            return
        try:
            if self._descriptor is None:
                self._create()
            self._append(data)
        except OSError as error:
            raise self._failure(error) from error

    def finish(self) -> None:
        """Make what was written durable.

        Raises:
            StorageError: That failed.
        """
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
            sync_directory(self._directory)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self._name}: {error.strerror}")

    def _create(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._real, flags, self._mode)

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(data)


def is_file_name(path: str) -> bool:
    """Whether a regular file stands there, or can be made. A directory counts: it is refused when it is opened."""
    if path in ("-", "/dev/stdout"):
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def free_name(path: str) -> str:
    """The first of ``path.1``, ``path.2``... that is not taken."""
    return next(name for number in count(1) if not os.path.lexists(name := f"{path}.{number}"))


def sync_directory(path: str) -> None:
    """Return when names made or changed in a folder would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
