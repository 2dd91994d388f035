"""Output that is a regular file: written beside its name, and given the name when it is whole.

::

    open      claim the names (refuse, or rename what is there), create OUT.partial
    write     append; what was half written when it failed is cut off again
    finish    fsync, rename OUT.partial to OUT, fsync the directory
              or, out of order: write a sorted copy, fsync it, rename that one, remove OUT.partial

At no moment does OUT hold less than everything, and nothing that was there before is removed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import count

from stageflow.adapters.jsonl.order import OrderIndex
from stageflow.errors import RequestError, StorageError

__all__ = ["FileOutput"]

_COPY_BYTES = 1024 * 1024


class FileOutput:
    """A file of lines. Blocking: ``write`` for microseconds, ``finish`` for as long as the disk takes.

    Args:
        path: As the user calls it. A symbolic link is followed once, and stays a link.
        partial: Write to ``path.partial`` first; else append to ``path`` itself, made with the first line.
        fresh: Rename what is in the way rather than refuse.
        mode: Permissions of the file, less the umask, from its creation.
        option: The option that chooses another path; for hints.
    """

    def __init__(self, path: str, *, partial: bool, fresh: bool, mode: int, option: str) -> None:
        self._name = path
        self._partial = partial
        self._fresh = fresh
        self._mode = mode
        self._option = option
        self._real = os.path.realpath(path)
        self._directory = os.path.dirname(self._real)
        self._written_name = path + ".partial" if partial else path
        self._writing_to = self._real + ".partial" if partial else self._real
        self._descriptor: int | None = None
        self._end = 0

    def open(self) -> None:
        """Claim the path.

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
        self._make_way(self._real, f"{self._name} exists")
        if self._partial:
            self._make_way(self._writing_to, f"{self._name}.partial exists, from an interrupted run")
            try:
                self._create()
            except OSError as error:
                raise RequestError(f"cannot write to {self._name}.partial: {error.strerror}") from error

    def open_index(self) -> OrderIndex:
        """An index beside the file.

        Raises:
            RequestError: It can't be made.
        """
        try:
            return OrderIndex(self._directory)
        except OSError as error:
            raise RequestError(f"cannot write to {self._directory}: {error.strerror}") from error

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
            raise self.failure(error) from error

    def finish(self, index: OrderIndex | None, *, complete: bool, stop: threading.Event) -> None:
        """Make what was written durable and, if ``complete``, give it its name.

        Args:
            index: The order of the lines, where the finished file is to be sorted.
            complete: Whether the run reached the end of its input.
            stop: Set by another thread to end a sort early; the partial file stays.

        Raises:
            StorageError: That failed; the partial file stays.
        """
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
            if os.fstat(self._descriptor).st_size != self._end:
                raise StorageError(f"{self._written_name} was changed during the run by something else")
            if complete and self._partial:
                self._publish(index, stop)
            elif self._partial and self._end == 0:
                os.unlink(self._writing_to)  # nothing was ever written: leave no trace
            _sync_directory(self._directory)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def failure(self, error: OSError) -> StorageError:
        """``error`` in the words of the user."""
        return StorageError(f"cannot write {self._written_name}: {error.strerror}")

    def _make_way(self, path: str, complaint: str) -> None:
        if not os.path.lexists(path):
            return
        if not self._fresh:
            hint = f"choose another {self._option}, or pass --fresh to keep it under another name"
            raise RequestError(complaint, hint=hint)
        free = next(name for number in count(1) if not os.path.lexists(name := f"{path}.{number}"))
        os.rename(path, free)

    def _create(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._writing_to, flags, self._mode)

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

    def _publish(self, index: OrderIndex | None, stop: threading.Event) -> None:
        if index is None or index.ascending:
            self._rename(self._writing_to)
            return
        copy = f"{self._real}.{secrets.token_hex(8)}.tmp"
        try:
            self._write_sorted(copy, index, stop)
            if not stop.is_set():
                self._rename(copy)
                os.unlink(self._writing_to)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(copy)

    def _rename(self, path: str) -> None:
        if os.path.lexists(self._real):
            raise StorageError(
                f"{self._name} appeared during the run; the results are in {self._name}.partial",
                hint=f"rename {self._name}.partial yourself",
            )
        os.rename(path, self._real)

    def _write_sorted(self, path: str, index: OrderIndex, stop: threading.Event) -> None:
        assert self._descriptor is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = stat.S_IMODE(os.fstat(self._descriptor).st_mode)
        with open(os.open(path, flags, mode), "wb", buffering=_COPY_BYTES) as copy:
            for offset, length in _pieces(index.in_order()):
                if stop.is_set():
                    return
                copy.write(os.pread(self._descriptor, length, offset))
            copy.flush()
            os.fsync(copy.fileno())


def _pieces(spans: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Join spans that touch, and cut long ones, so that the data is read in few calls and little memory."""
    start = end = 0
    for offset, length in spans:
        if offset != end or end - start >= _COPY_BYTES:
            yield from _cut(start, end)
            start = offset
        end = offset + length
    yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterable[tuple[int, int]]:
    return ((at, min(_COPY_BYTES, end - at)) for at in range(start, end, _COPY_BYTES))


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
