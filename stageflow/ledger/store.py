"""The three files of a run while it goes on: every commit whole or not at all, every marker true.

What holds, always:

1. Data is written before the line of the ledger that covers it, and ranges touch: each begins where the last one ended.
2. A record settles once in an epoch, with all its results and dead letters in one commit.
3. A marker is written after what it speaks of was synced, and never after a sync that failed: the system may report a
   lost page once and then call it clean, so after such a failure nothing is written any more.
4. What was half written when a write failed is cut off again, which works on a full disk too.
5. The ledger is appended to, and its tail cut by recovery; no line is ever changed.
"""

from __future__ import annotations

import datetime
import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

from stageflow.commit import Commit, InputMark
from stageflow.errors import StorageError
from stageflow.ledger.disk import OUT_OF_SPACE, Disk, write_all
from stageflow.ledger.format import Fields, ranges_of, seal
from stageflow.ledger.names import Names
from stageflow.ledger.recovery import Recovered
from stageflow.ledger.state import State

__all__ = ["OutOfSpace", "Store"]


class OutOfSpace(StorageError):
    """There is no room. Nothing of what was to be written is there, and the same may be tried again."""


class Store:
    """Appends commits and markers. Blocking; one thread at a time.

    Args:
        ledger, results: Descriptors, at the ends that ``found`` tells.
        letters: Of the dead letters; ``None`` while the file does not exist. It is made with the first letter.

    Attributes:
        state: The sum of all that was written.
        failure: Why nothing may be written any more: a sync has failed, or what was half written can't be cut off.
    """

    def __init__(
        self, disk: Disk, names: Names, *, ledger: int, results: int, letters: int | None, found: Recovered
    ) -> None:
        self.disk = disk
        self.names = names
        self.state: State = found.state
        self.failure: StorageError | None = None
        self._ledger = ledger
        self._results = results
        self._letters = letters
        self._end = found.end
        self._seal = found.seal
        self._unnamed = False  # the file of dead letters was made, and its name is not durable yet
        self._marked = -1  # where the ledger ended behind the newest marker

    @property
    def results(self) -> int:
        return self._results

    @property
    def letters(self) -> int | None:
        return self._letters

    @property
    def ledger(self) -> int:
        return self._ledger

    @property
    def dirty(self) -> bool:
        """Whether anything was written since the newest marker."""
        return self._end != self._marked

    # Commits

    def append(self, commit: Commit) -> None:
        """Write a commit, wholly or not at all.

        Raises:
            OutOfSpace: There is no room.
            StorageError: It can't be written.
        """
        state = self.state
        self._refuse_failed()
        assert state.may_settle(commit.ordinals), "a record has settled twice"
        results, letters = b"".join(commit.lines), b"".join(commit.letters)
        try:
            if results:
                write_all(self.disk, self._results, results)
            self.disk.reached("results written")
            if letters:
                write_all(self.disk, self._open_letters(), letters)
                self.disk.reached("letters written")
            lines = [_mark_fields(mark) for mark in commit.marks]
            if commit.ordinals:
                lines.append(
                    state.commit_fields(commit, _range(state.results_end, results), _range(state.letters_end, letters))
                )
            if commit.spend is not None:
                lines.append(state.spend_fields(commit.spend))
            self._write_lines(lines)
        except OSError as error:
            self._cut_back()
            raise self._failure(error) from error
        self.disk.reached("commit written")

    def sync(self, *, clean: bool = False) -> None:
        """Make durable what was written, and say so in the ledger.

        Args:
            clean: The run ends here, in good order.

        Raises:
            OutOfSpace: There is no room for the marker; what was written is durable all the same.
            StorageError: The disk reported an error; nothing may be written any more.
        """
        self._refuse_failed()
        self._sync_files()
        state = self.state
        marker: Fields = {
            "t": "s",
            "o": state.results_end,
            "x": state.letters_end,
            "n": [state.totals.written, state.totals.dropped, state.totals.dead],
            "at": now(),
            "rss": _peak_memory(),
        }
        if clean:
            marker["clean"] = True
        self.write_line(marker)
        self._marked = self._end
        self.disk.reached("marker written")
        if clean:
            self._sync(self._ledger)

    def _sync_files(self) -> None:
        self._sync(self._results)
        if self._letters is not None:
            self._sync(self._letters)
        if self._unnamed:
            assert self.names.letters_directory is not None, "letters without a folder"
            with self._syncing():
                self.disk.sync_directory(self.names.letters_directory)
            self._unnamed = False
        self._sync(self._ledger)
        self.disk.reached("files synced")

    def write_line(self, fields: Fields) -> None:
        """Append one line to the ledger.

        Raises:
            OutOfSpace, StorageError: As :meth:`append`.
        """
        self._refuse_failed()
        try:
            self._write_lines([fields])
        except OSError as error:
            self._cut_back()
            raise self._failure(error) from error

    def begin(self, header: Fields) -> None:
        """Begin an epoch, durably.

        Raises:
            StorageError: It can't be written.
        """
        self.write_line(header)
        self._sync(self._ledger)
        for directory in self.names.directories:
            self.disk.sync_directory(directory)
        self.disk.reached("header written")

    def retry(self, numbers: list[int]) -> None:
        """Let the records of these dead letters settle once more."""
        self.write_line({"t": "r", "n": ranges_of(numbers)})

    def complete(self, final: Fields) -> None:
        """Say, durably, that the run is complete; a marker comes before that.

        Raises:
            OutOfSpace, StorageError: As :meth:`sync`.
        """
        self._sync(self._ledger)  # the marker itself: the final line, too, promises that everything before it is there
        self.write_line(final)
        self._sync(self._ledger)
        self.disk.reached("final line written")

    def close(self) -> None:
        """Give the files, and with them the lock, back."""
        for descriptor in (self._results, self._letters, self._ledger):
            if descriptor is not None:
                self.disk.close(descriptor)

    # Bytes

    def _write_lines(self, lines: list[Fields]) -> None:
        sealed, data = self._seal, b""
        for fields in lines:
            line, sealed = seal(fields, sealed)
            data += line
        write_all(self.disk, self._ledger, data)
        self._end += len(data)
        self._seal = sealed
        for fields in lines:
            self.state.apply(fields)

    def _open_letters(self) -> int:
        if self._letters is None:
            assert self.names.letters is not None, "a letter without a file"
            self._letters = self.disk.create(self.names.letters)
            self._unnamed = True
        return self._letters

    def _cut_back(self) -> None:
        """Cut off what belongs to no commit."""
        state = self.state
        for descriptor, end in (
            (self._results, state.results_end),
            (self._letters, state.letters_end),
            (self._ledger, self._end),
        ):
            if descriptor is not None:
                try:
                    self.disk.truncate(descriptor, end)
                except OSError as error:
                    # What stays behind is no part of a commit; but behind it nothing may follow.
                    self.failure = self._failure(error)

    def _sync(self, descriptor: int) -> None:
        with self._syncing():
            self.disk.sync(descriptor)

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = self.state.synced_totals.settled
            self.failure = StorageError(
                f"disk reported a write error ({error.strerror}); stopping, nothing after {kept:,} records is trusted"
            )
            raise self.failure from error

    def _refuse_failed(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _failure(self, error: OSError) -> StorageError:
        kept = f"{self.state.totals.settled:,} records are safe"
        if error.errno in OUT_OF_SPACE:
            return OutOfSpace(f"no space left writing {self.names.shown}.partial; {kept}")
        if error.errno == errno.EEXIST:  # no other file is made in the middle of a run
            return StorageError(f"{self.names.shown_letters} appeared during the run; {kept}", hint="move it away")
        return StorageError(f"cannot write {self.names.shown}.partial: {error.strerror}; {kept}")


def now() -> str:
    """The wall clock, for people to read."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _peak_memory() -> int:
    """Of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _range(start: int, data: bytes) -> tuple[int, int, int]:
    return start, start + len(data), crc32(data)


def _mark_fields(mark: InputMark) -> Fields:
    fields: Fields = {"t": "i", "n": mark.lines, "b": mark.bytes, "sha": mark.digest}
    if mark.blank:
        fields["w"] = mark.blank
    return fields
