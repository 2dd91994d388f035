"""Records from and to Python itself: iterables, lists, functions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence, Sized
from itertools import islice
from typing import Any

from stageflow.commit import InputMark
from stageflow.errors import StorageError
from stageflow.protocols import Entry, unchanged

__all__ = ["CallableSink", "IterableSource", "ListSink"]


class IterableSource:
    """Hands over the values of an iterable or an async iterable, each as one record.

    It takes the next value when it is asked for one, never ahead, so backpressure reaches into the iterable. A plain
    iterable runs on the event loop: one that blocks, blocks the run. An async iterator that is left early is closed.

    Args:
        records: Any values. An iterator can be read once.

    Attributes:
        path: ``None``: there is no file.
        numbered: False: an index is no line number.
        blank: 0: there are no lines.
        warnings: None, ever: any value is as good as another.
    """

    def __init__(self, records: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.path: str | None = None
        self.numbered = False
        self.blank = 0
        self.warnings: tuple[str, ...] = ()
        self._records = records

    def check(self) -> None:
        """Nothing to refuse before reading."""

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries of a sequence; ``[]`` for anything else, of which looking would take."""
        if not isinstance(self._records, Sequence):
            return []
        return list(islice(enumerate(self._records), n))

    def estimate(self) -> int | None:
        """How many there are, if they can be counted."""
        return len(self._records) if isinstance(self._records, Sized) else None

    def identity(self) -> None:
        """None: a later run can't find these values."""

    def take_marks(self) -> list[InputMark]:
        """None: reading can't begin in the middle."""
        return []

    def first_difference(self, marks: Sequence[InputMark]) -> None:
        """None: there are no marks to compare."""

    def changed(self) -> bool:
        """False: nobody can tell."""
        return False

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield one lazy portion of all values, or from an async iterable one value at a time."""
        assert start is None, "there is no identity, so there are no marks"
        if not isinstance(self._records, AsyncIterable):
            yield enumerate(self._records)
            return
        iterator = aiter(self._records)
        index = 0
        try:
            async for record in iterator:
                yield ((index, record),)
                index += 1
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                await close()


class ListSink:
    """Appends each output record to a list, in the order in which they settle."""

    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def open(self) -> None:
        """Nothing to do."""

    encode = staticmethod(unchanged)

    async def write(self, batch: Sequence[Entry]) -> None:
        """Append the records."""
        self._records.extend([record for _, record in batch])

    async def close(self, *, complete: bool) -> None:
        """Nothing to do."""


class CallableSink:
    """Calls a function with each output record, one at a time, in the order in which they settle.

    Args:
        func: A plain function, which runs on the event loop, or one that returns an awaitable, which is awaited; being
            slow is backpressure.
    """

    def __init__(self, func: Callable[[Any], Any]) -> None:
        self._func = func

    def open(self) -> None:
        """Nothing to do."""

    encode = staticmethod(unchanged)

    async def write(self, batch: Sequence[Entry]) -> None:
        """Call the function with each record.

        Raises:
            StorageError: The function raised.
        """
        for index, record in batch:
            try:
                result = self._func(record)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                message = f"the sink failed on record {index}: {type(error).__name__}: {error}"
                raise StorageError(message) from error

    async def close(self, *, complete: bool) -> None:
        """Nothing to do."""
