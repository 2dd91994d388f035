"""The last step to a file that is no JSON lines: it is made of them, and can be made again.

The lines stay what counts. Under the user's name stands what was made of them, complete or not at all::

    OUT.jsonl            the results, finished as any other file of JSON lines
    OUT                  what was made of them, renamed into place
    OUT.jsonl removed    where the lines can be had from OUT again, which is compressed then, and nothing else

A run that goes on removes OUT first, so an OUT that is there is that of the newest lines.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator

from stageflow.errors import RequestError, StageflowError, StorageError
from stageflow.ledger.disk import READ_BYTES, Disk, read_lines, write_all
from stageflow.ledger.names import Names
from stageflow.protocols import Form

__all__ = ["Copy", "Stopped", "give_lines_back", "make_form"]


class Stopped(Exception):
    """Finishing was asked to end early; it goes on where it was when the run is started again."""


class Copy:
    """A file that gets its name when it is whole and durable, and leaves nothing otherwise."""

    def __init__(self, disk: Disk, path: str, mode: int) -> None:
        self._disk = disk
        self._path = path
        self._draft = f"{path}.{secrets.token_hex(8)}.tmp"
        self._mode = mode
        self._buffer: list[bytes] = []
        self._buffered = 0

    def __enter__(self) -> Copy:
        directory, name = os.path.split(self._path)
        draft = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.tmp")
        for left in filter(draft.fullmatch, self._disk.list(directory)):  # by a run that was killed
            self._disk.remove(os.path.join(directory, left))
        self._descriptor = self._disk.create(self._draft, self._mode)
        return self

    def write(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= READ_BYTES:
            self._flush()

    def _flush(self) -> None:
        write_all(self._disk, self._descriptor, b"".join(self._buffer))
        self._buffer, self._buffered = [], 0

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._disk.sync(self._descriptor)
                self._disk.rename(self._draft, self._path)
        finally:
            self._disk.close(self._descriptor)
            self._disk.remove(self._draft)


def make_form(disk: Disk, names: Names, form: Form | None, check: Callable[[], None]) -> list[str]:
    """Make the file with the user's name of the finished lines, where it is not there yet.

    Args:
        check: Called now and then; what it raises ends the making, and leaves nothing of it.

    Returns:
        What the user should know of it, a line each.

    Raises:
        StorageError: It can't be made.
    """
    if form is None or names.made is None:
        return []
    notes: list[str] = []
    if not disk.exists(names.made):
        source = disk.open(names.output, write=False)

        def lines() -> Iterator[bytes]:
            for number, line in enumerate(read_lines(disk, source)):
                if number % 1024 == 0:
                    check()
                yield line

        try:
            with Copy(disk, names.made, disk.mode(source)) as copy:
                notes = form.make(lines, copy.write)
        except (OSError, StageflowError, Stopped):
            raise
        except Exception as error:  # whatever a library has against what it is given
            raise StorageError(f"cannot make {names.shown}: {error}; the results are in {names.shown}.jsonl") from error
        finally:
            disk.close(source)
        disk.reached("form made")
    if form.lossless and disk.exists(names.output):
        disk.sync_directory(names.directory)
        disk.remove(names.output)
        disk.reached("lines removed")
    return notes


def give_lines_back(disk: Disk, names: Names, form: Form | None) -> None:
    """Make the lines of the finished file again, where they were removed.

    Raises:
        StorageError: They can't be written.
    """
    if form is None or names.made is None or not form.lossless or not disk.exists(names.made):
        return
    if disk.exists(names.output) or disk.exists(names.partial):
        return
    made = disk.open(names.made, write=False)
    offset = 0

    def read(size: int) -> bytes:
        nonlocal offset
        data = disk.read(made, size, offset)
        offset += len(data)
        return data

    try:
        with Copy(disk, names.output, disk.mode(made)) as copy:
            form.lines_of(read, copy.write)
    except RequestError as error:
        raise StorageError(f"cannot read {names.shown}: {error.message}") from error
    finally:
        disk.close(made)
