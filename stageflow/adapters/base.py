"""What sources of files have in common that are no lines: where they are read, what they are, and their marks."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from stageflow.adapters.jsonl.inputs import InputText, codec_of
from stageflow.adapters.jsonl.threads import BlockReader
from stageflow.adapters.media import Medium, Opened
from stageflow.commit import InputIdentity, InputMark
from stageflow.errors import RequestError, StorageError
from stageflow.protocols import Entry

__all__ = ["Chain", "FileSource", "Rows"]

_MARKS_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class Rows:
    """Some entries, and the mark behind them, if there is one."""

    entries: list[Entry]
    mark: InputMark | None


class Chain:
    """Makes marks: each digest is made of the one before and the bytes since."""

    def __init__(self, start: InputMark) -> None:
        self.bytes = start.bytes
        self._hash = hashlib.sha256(start.digest.encode())

    def add(self, data: bytes | memoryview) -> None:
        """Take what was read."""
        self.bytes += len(data)
        self._hash.update(data)

    def mark(self, records: int) -> InputMark:
        """The mark behind all of it, which stands before the record of that number."""
        mark = InputMark(records, self.bytes, self._hash.hexdigest())
        self._hash = hashlib.sha256(mark.digest.encode())
        return mark


class FileSource:
    """A source of one file, whose entries are numbered from 0 and have no lines of their own.

    Subclasses give :meth:`_rows`, :meth:`peek` and the like.

    Args:
        medium: The file.

    Attributes:
        path: As the user calls it.
        numbered: False: an index is no line number.
        blank: 0.
        warnings: What was accepted though it looks wrong.
    """

    def __init__(self, medium: Medium) -> None:
        self.path: str | None = medium.path
        self.numbered = False
        self.blank = 0
        self.warnings: list[str] = []
        self._medium = medium
        self._name = medium.name
        self._opened: InputIdentity | None = None
        self._marks: list[InputMark] = []

    def _rows(self, start: InputMark | None) -> Generator[Rows]:
        """Read, in the reader's thread."""
        raise NotImplementedError

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[list[Entry], None]:
        """Yield the entries in portions; see :meth:`stageflow.protocols.Source.read`.

        Raises:
            RequestError: It can't be opened, or is not what its name says.
            InputDamaged: It ends early or is damaged; what was before was yielded.
            StorageError: Reading failed in the middle.
        """
        self._marks, self._opened = [], None
        reader = BlockReader(lambda: self._rows(start))
        try:
            while (rows := await self._receive(reader)) is not None:
                if rows.mark is not None:
                    self._marks.append(rows.mark)
                    if len(self._marks) > _MARKS_KEPT:
                        del self._marks[:-1]  # nobody takes them
                if rows.entries:
                    yield rows.entries
        finally:
            reader.stop()

    async def _receive(self, reader: BlockReader[Rows]) -> Rows | None:
        try:
            return await reader.receive()
        except OSError as error:
            raise self._failed(error) from error

    def take_marks(self) -> list[InputMark]:
        """The marks not taken yet."""
        marks, self._marks = self._marks, []
        return marks

    def identity(self) -> InputIdentity | None:
        """The file as it is now; ``None`` for what can be read only once."""
        if not self._medium.lasting:
            return None
        with closing(self._open_medium()) as opened:
            return self._identity(opened)

    def changed(self) -> bool:
        """Whether the file is not the one that was read last, or was touched since."""
        if self._opened is None:
            return False
        try:
            there = self.identity()
        except RequestError:
            return True
        return there is None or not there.same_file(self._opened)

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """The first records between two marks that are not what they were."""
        raise NotImplementedError

    def _check_medium(self) -> None:
        try:
            self._medium.check()
        except OSError as error:
            raise self._unreadable(error) from error

    def _open_medium(self) -> Opened:
        try:
            return self._medium.open()
        except OSError as error:
            raise self._unreadable(error) from error

    def _open_text(self, *, watched: bool, limit: int | None = None) -> InputText:
        opened = self._open_medium()
        if watched:
            self._opened = self._identity(opened)
        warn: Callable[[str], object] = self.warnings.append if watched else _ignore
        try:
            return InputText(opened, self._medium.path, limit, warn)
        except RequestError:
            opened.close()
            raise

    def _identity(self, opened: Opened) -> InputIdentity | None:
        there = opened.identity
        return None if there is None else replace(there, codec=codec_of(opened, self._medium.path))

    def _unreadable(self, error: OSError) -> RequestError:
        return RequestError(f"cannot read {self._name}: {error.strerror or error}")

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"cannot read {self._name}: {error.strerror or error}")


def _ignore(_: str) -> None:
    """What is warned of is warned of by the reading that counts."""
