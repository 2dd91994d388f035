"""The seams: what the engine and the runner ask of the parts around them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from stageflow.commit import Commit, InputIdentity, InputMark
from stageflow.events import Event

__all__ = ["Entry", "Form", "Listener", "Output", "Sink", "Source", "unchanged"]

Entry = tuple[int, Any]
"""A record's index in its source (from 0; gaps are fine) and the record, or a :class:`BadRecord`."""


class Source(Protocol):
    """Where records come from.

    Attributes:
        path: The file they stand in, as users call it; ``None`` where there is no file.
        numbered: Whether ``index + 1`` is a line number that means something to a reader of the file.
        blank: Blank lines passed over so far.
        warnings: What was accepted though it looks wrong, a line each. It only grows, while it is read.
    """

    path: str | None
    numbered: bool

    @property
    def blank(self) -> int: ...

    @property
    def warnings(self) -> Sequence[str]: ...

    def check(self) -> None:
        """See that it can be read, as far as that can be told before reading.

        Raises:
            RequestError: It can't.
        """
        ...

    def peek(self, n: int) -> Sequence[Entry]:
        """The first ``n`` entries, where looking takes nothing from it; else none."""
        ...

    def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield entries in portions, in the order of their index, each index at most once.

        A portion may be lazy: it is iterated once, before the next portion is asked for. Cancelling the wait for a
        portion loses nothing that was yielded. Whoever stops early closes the iterator.

        Args:
            start: Where to begin; ``None`` is the beginning. Only a source that has an identity is given one.

        Raises:
            RequestError: It can't be opened.
            InputDamaged: It ends before it should; everything before was yielded.
        """
        ...

    def take_marks(self) -> list[InputMark]:
        """The marks not taken yet, the last of them at the end of the newest portion. None without an identity."""
        ...

    def identity(self) -> InputIdentity | None:
        """What it is, if a later run can find and tell it again."""
        ...

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """The first lines (from 1, both ends included) between two marks that are not what they were; else None."""
        ...

    def changed(self) -> bool:
        """Whether it was changed by somebody while it was read; asked at the end."""
        ...

    def estimate(self) -> int | None:
        """About how many records there are in all, where that can be told cheaply."""
        ...


class Sink(Protocol):
    """Where records end. One task at a time calls it."""

    def open(self) -> None:
        """Make ready to write.

        Raises:
            RequestError: It can't be written to, or holds something that would be lost.
        """
        ...

    def encode(self, record: Any) -> Any:
        """The form in which ``write`` takes the record.

        Raises:
            ResultError: The record has no such form; it becomes a dead letter.
        """
        ...

    async def write(self, batch: Sequence[Entry]) -> None:
        """Take encoded records with their indices, in the order in which they settled. To be slow is backpressure.

        Raises:
            StorageError: They could not be written; the run ends.
        """
        ...

    async def close(self, *, complete: bool) -> None:
        """End it. ``complete`` is false where the run did not reach the end of its input.

        Raises:
            StorageError: What was written could not be made final.
        """
        ...


def unchanged(record: Any) -> Any:
    """The ``encode`` of a sink that takes records as they are; to know it by saves a call for each."""
    return record


class Output(Protocol):
    """Where settled records go as commits. One task at a time calls it."""

    async def write(self, commit: Commit) -> None:
        """Take a commit, and return when it would survive the end of this process. To be slow is backpressure.

        Raises:
            StorageError: It could not be written; the run ends.
        """
        ...

    async def close(self, *, complete: bool) -> None:
        """End it. ``complete`` is false where the run did not reach the end of what it was asked for.

        Raises:
            StorageError: What was written could not be made final.
        """
        ...


class Form(Protocol):
    """What a finished file of JSON lines is made into. Everything blocks, in a thread that may.

    Attributes:
        lossless: The lines can be had again from what was made of them, byte for byte.
    """

    lossless: bool

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        """Write the file.

        Args:
            lines: Begins to read the lines, each with its LF; it may be called several times.
            write: Takes the bytes of the file, one after the other.

        Returns:
            What the user should know of it, a line each.
        """
        ...

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        """Write the lines that a file was made of; only of what is lossless."""
        ...


class Listener(Protocol):
    """Hears of everything that happens in a run; it may not block, and what it raises ends nothing."""

    def on_event(self, event: Event) -> None: ...
