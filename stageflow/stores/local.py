"""A folder: of this machine, or of a file server that all machines see at the same path.

A file gets its name when it is whole and on the disk. To create a name only once it is linked rather than renamed: a
link to a name that is taken fails, on file servers, too, where asking for a new file by flag may not. A file server may
do what was asked and its answer be lost, so that the second try is told that the name is taken; whether the link was
made is told by the number of names the file has then, as open(2) says.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from stageflow.errors import RequestError

__all__ = ["LocalStore"]

_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_FORGOTTEN_SECONDS: Final = 24 * 3600.0
"""A draft that is older was left by a process that was killed."""

_PRIVATE: Final = re.compile(r"(^|/)dead/|\.dead$")
"""Dead letters hold records and what services said of them: they are for their owner alone, as beside an output."""


class LocalStore:
    """Objects as files of a folder.

    Args:
        path: The folder, as the user calls it. :meth:`check` makes it, but not the folder it is in: where a machine
            lacks the file server, nothing is made in its place.
    """

    def __init__(self, path: str) -> None:
        self.url = path
        self._root = os.path.abspath(path)

    def check(self) -> None:
        """See that it can be written, and that it creates a name only once; make the folder if there is none.

        Raises:
            RequestError: It can't, or it doesn't.
        """
        try:
            with suppress(FileExistsError):
                os.mkdir(self._root)
            self._check_names()
        except OSError as error:
            hint = f"make the folder {os.path.dirname(self._root)} first" if error.errno == errno.ENOENT else None
            raise RequestError(f"cannot write to {self.url}: {error.strerror}", hint=hint) from error

    def _check_names(self) -> None:
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            once, twice = self.create(probe, b"1"), self.create(probe, b"2")
            now = os.stat(self._path(probe)).st_mtime  # by the clock of the file server
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV):
                raise RequestError(
                    f"{self.url} is on a file system without hard links, so two runs could do the same work",
                    hint="choose a folder on another one",
                ) from error
            raise
        finally:
            self.delete(probe)
        if (once, twice) != (True, False):
            raise RequestError(f"{self.url} creates a name twice, so two runs could do the same work")
        for folder, _, files in os.walk(self._root):
            for draft in filter(_DRAFT.fullmatch, files):
                with suppress(FileNotFoundError):
                    if os.stat(path := os.path.join(folder, draft)).st_mtime < now - _FORGOTTEN_SECONDS:
                        os.unlink(path)

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The names that begin with the prefix, sorted, each with its size in bytes."""
        folder, _, _ = prefix.rpartition("/")
        yield from sorted(self._found(folder, prefix))

    def _found(self, folder: str, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = os.scandir(os.path.join(self._root, folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if f"{name}/".startswith(prefix) or prefix.startswith(f"{name}/"):
                        yield from self._found(name, prefix)
                elif name.startswith(prefix) and not _DRAFT.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # renamed or taken away meanwhile
                        yield name, entry.stat().st_size

    def read(self, name: str) -> bytes:
        """What is there.

        Raises:
            FileNotFoundError: Nothing.
        """
        with open(self._path(name), "rb") as file:
            return file.read()

    def put(self, name: str, data: bytes) -> None:
        """Write it, whatever was there."""
        path = self._path(name)
        with self._draft(name, data) as draft:
            os.rename(draft, path)
        _sync(os.path.dirname(path))

    def create(self, name: str, data: bytes) -> bool:
        """Write it if there is nothing of that name. Of all who try, one is told ``True``."""
        path = self._path(name)
        with self._draft(name, data) as draft:
            try:
                os.link(draft, path, follow_symlinks=False)
            except OSError as error:
                if os.stat(draft).st_nlink != 2:
                    if isinstance(error, FileExistsError):
                        return False
                    raise
        _sync(os.path.dirname(path))
        return True

    def publish(self, source: str, target: str) -> None:
        """Give it another name. May be repeated.

        Raises:
            FileNotFoundError: Neither is there.
        """
        path = self._path(target)
        self._make_folder(os.path.dirname(path))
        try:
            os.rename(self._path(source), path)
        except FileNotFoundError:
            if not os.path.isfile(path):
                raise
        _sync(os.path.dirname(path))

    def delete(self, name: str) -> None:
        """Take it away, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if "\0" in name or not all(part and part not in (".", "..") for part in parts) or _DRAFT.fullmatch(parts[-1]):
            raise OSError(errno.EINVAL, f"{name!r} is no name in a store")
        return os.path.join(self._root, *parts)

    @contextmanager
    def _draft(self, name: str, data: bytes) -> Iterator[str]:
        """A file beside where it will stand, whole and on the disk. Nothing of it is left under its first name."""
        folder, base = os.path.split(self._path(name))
        self._make_folder(folder)
        draft = os.path.join(folder, f".{base}.{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600 if _PRIVATE.search(name) else 0o666)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            yield draft
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)

    def _make_folder(self, folder: str) -> None:
        """Make a folder in the store, and those it is in, but not the store itself."""
        if not os.path.isdir(folder) and len(folder) > len(self._root):
            above = os.path.dirname(folder)
            self._make_folder(above)
            with suppress(FileExistsError):
                os.mkdir(folder)
                _sync(above)


def _sync(folder: str) -> None:
    """Return when names made or changed in a folder would survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
