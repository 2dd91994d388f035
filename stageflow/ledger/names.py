"""The names of a run's files."""

from __future__ import annotations

import os
from itertools import count

from stageflow.ledger.disk import Disk

__all__ = ["Names", "as_text"]


class Names:
    """Where the files of a run stand, and what messages call them.

    Args:
        path: The output as the user calls it. A symbolic link is followed once, and stays a link.
        dead: The file of dead letters, if they are kept in one.
        made: Under the name stands something that is made of the lines; these have a name of their own.
    """

    def __init__(self, path: str, dead: str | None, *, made: bool = False) -> None:
        self.shown = path
        self._real = os.path.realpath(path)
        self.made = self._real if made else None
        self.output = f"{self._real}.jsonl" if made else self._real
        self.partial = self._real + ".partial"
        self.ledger = self._real + ".ledger"
        self.letters = os.path.realpath(dead) if dead is not None else None
        self.shown_letters = dead or ""
        self.directory = os.path.dirname(self.output)
        self.letters_directory = os.path.dirname(self.letters) if self.letters is not None else None

    @property
    def letters_noted(self) -> str | None:
        """The dead letters as a ledger notes them: no folder where it is its own, so that all may be moved together."""
        if self.letters is None:
            return None
        beside = self.letters_directory == self.directory
        return as_text(os.path.basename(self.letters) if beside else self.letters)

    @property
    def letters_named(self) -> bool:
        """The dead letters have a name of the user's choice, which another run may be given as well."""
        return self.letters is not None and self.letters != f"{self._real}.dead.jsonl"

    @property
    def directories(self) -> list[str]:
        """The folders that hold the files, each once."""
        return list(dict.fromkeys(path for path in (self.directory, self.letters_directory) if path is not None))

    def present(self, disk: Disk) -> list[tuple[str, str]]:
        """The data files that exist, as (path, what messages call it)."""
        known = [(self.output, self.shown), (self.partial, f"{self.shown}.partial")]
        if self.made is not None:
            known = [(self.made, self.shown), (self.output, f"{self.shown}.jsonl"), known[1]]
        if self.letters is not None:
            known.append((self.letters, self.shown_letters))
        return [(path, shown) for path, shown in known if disk.exists(path)]

    def set_aside(self, disk: Disk, *more: str) -> None:
        """Give every data file that exists, and then ``more``, another name: ``out.jsonl.1``, one number for all."""
        paths = [*(path for path, _ in self.present(disk)), *more]
        free = next(number for number in count(1) if not any(disk.exists(f"{path}.{number}") for path in paths))
        for path in paths:
            disk.rename(path, f"{path}.{free}")
        for directory in self.directories:
            disk.sync_directory(directory)


def as_text(path: str) -> str:
    """A path as it stands in a ledger: bytes of it that are no text are spelt out."""
    return path.encode(errors="backslashreplace").decode()
