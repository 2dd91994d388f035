"""An input in shards: what is tried again first, then the input itself without being decoded, where it is a text."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from stageflow.adapters.jsonl.encode import encode_leniently
from stageflow.adapters.jsonl.parts import Looker, Part, first_records, smaller
from stageflow.commit import Resumption
from stageflow.engine.attempt import describe
from stageflow.errors import InputDamaged, RecordError, RunStopped, SourceFailed, StageflowError
from stageflow.feeding import EarlierRuns
from stageflow.item import BadRecord
from stageflow.protocols import Entry, Source
from stageflow.replicas.coordinator import Shard
from stageflow.replicas.messages import Entries, Lines

__all__ = ["Sharder"]

_PER_REPLICA: Final = 20
"""Shards for each replica, where there is so much: the last one is then at most a twentieth of its work."""

_SMALLEST_BYTES: Final = 256
_LARGEST_BYTES: Final = 256 * 1024
_LARGEST_IN_ORDER_BYTES: Final = 16 * 1024
"""Where results wait in memory for their order, by the shard."""

_MOST_ENTRIES: Final = 16
"""Of what is no text: it is asked for so many at a time, more than are needed just then."""


class Sharder:
    """Reads a source, once.

    Args:
        found: What earlier runs did, and where to begin to read.
        retries: Records of earlier dead letters; they come first.
        limit: Records of the input to do, counted from its first.
        replicas: How many will share the work.
        in_order: What comes of a shard waits for what is before it.
        strict: A line with a key that comes twice is refused by whoever decodes it; else the first one is warned of.
        read: Called whenever something was read, before it is handed out: to take marks and warnings.
        warn: Tells the user something.
        stop: Stops the run.

    Attributes:
        at_end: The end of the input was reached.
        damaged: Why it ended before it should.
        retried: The indices of the records that are tried again.
    """

    def __init__(
        self,
        source: Source,
        *,
        found: Resumption,
        retries: Iterator[Entry],
        limit: int | None,
        replicas: int,
        in_order: bool,
        strict: bool,
        read: Callable[[], None],
        warn: Callable[[str], None],
        stop: Callable[[StageflowError], None],
    ) -> None:
        self._source = source
        self._start = found.start
        self._done = found.done
        self._retries = retries
        self._left = None if limit is None else limit - EarlierRuns(found).records
        self._replicas = replicas
        self._largest = _LARGEST_IN_ORDER_BYTES if in_order else _LARGEST_BYTES
        self._looker = None if strict else Looker(source.path or "-", warn)
        self._read = read
        self._stop = stop
        self._number = 0
        self._handed = 0  # records, or bytes of a text, so far
        self.at_end = False
        self.damaged: InputDamaged | None = None
        self.retried: set[int] = set()

    async def shards(self) -> AsyncGenerator[Shard, None]:
        """Yield the shards, in the order of the input."""
        while chunk := list(islice(self._retries, self._some(None))):
            self._handed += len(chunk)
            self.retried.update(index for index, _ in chunk)
            yield self._entries(chunk)
        self._handed = 0
        if self._left is not None and self._left <= 0:
            return
        try:
            async with contextlib.aclosing(self._parts() if self._is_text else self._records()) as shards:
                async for shard in shards:
                    yield shard
        except InputDamaged as error:
            self.damaged = error
        except RunStopped as error:  # the source's own bound was reached
            self._stop(error)
        finally:
            self._read()

    @property
    def _is_text(self) -> bool:
        return hasattr(self._source, "read_parts")

    async def _parts(self) -> AsyncGenerator[Shard, None]:
        identity = self._source.identity()
        size = None if identity is None else identity.size
        async with contextlib.aclosing(self._source.read_parts(self._start)) as blocks:  # type: ignore[attr-defined]
            async for parts in blocks:
                self._read()
                for part in parts:
                    for shard in self._lines(part, size) if isinstance(part, Part) else self._one(part):
                        yield shard
                    if self._left == 0:
                        return
        self.at_end = True

    def _some(self, whole: int | None) -> int:
        """How many entries to hand out next; ``whole``: how many there are, if that is known."""
        return max(1, min(self._part(whole), _MOST_ENTRIES))

    def _part(self, whole: int | None) -> int:
        """A part of which each process gets many; where nobody knows what is to come, of as much as there was."""
        return (self._handed if whole is None else whole) // (_PER_REPLICA * self._replicas)

    def _one(self, entry: Entry) -> Iterator[Shard]:
        """A line that nobody can decode."""
        if self._left is not None:
            self._left -= 1
        if entry[0] >= len(self._done) or not self._done[entry[0]]:
            yield self._entries([entry])

    def _lines(self, part: Part, size: int | None) -> Iterator[Shard]:
        if self._looker is not None:
            self._looker.look(part)
        if self._left is not None:
            part, records = first_records(part, self._left)
            self._left -= records
        for piece in smaller(part, lambda: max(_SMALLEST_BYTES, min(self._part(size), self._largest))):
            self._handed += len(piece.data)
            yield Shard(self._next(), self._undone(piece), Lines(piece.first, piece.data))

    def _undone(self, part: Part) -> Sequence[int]:
        """The lines that earlier runs have not settled: a range where that is all of them."""
        indices, done = range(part.first, part.first + part.lines), self._done
        if part.first >= len(done) or not any(done[part.first : indices.stop]):
            return indices
        return [index for index in indices if index >= len(done) or not done[index]]

    async def _records(self) -> AsyncGenerator[Shard, None]:
        total = self._source.estimate()
        async with contextlib.aclosing(self._source.read(self._start)) as portions:
            while (portion := await self._portion(portions)) is not None:
                self._read()
                entries = iter(portion)
                while chunk := self._chunk(entries, self._some(total)):
                    self._handed += len(chunk)
                    if self._left is not None:
                        self._left -= len(chunk)
                    yield self._entries(chunk)
                if self._left == 0:
                    return
        self.at_end = True

    async def _portion(self, portions: AsyncGenerator[Iterable[Entry], None]) -> Iterable[Entry] | None:
        try:
            return await anext(portions, None)
        except StageflowError:
            raise
        except Exception as error:
            raise SourceFailed(f"the source failed: {describe(error)}") from error

    def _chunk(self, entries: Iterator[Entry], most: int) -> list[Entry]:
        try:
            return list(islice(entries, most if self._left is None else min(most, self._left)))
        except StageflowError:
            raise
        except Exception as error:
            raise SourceFailed(f"the source failed: {describe(error)}") from error

    def _entries(self, entries: list[Entry]) -> Shard:
        return Shard(self._next(), [index for index, _ in entries], Entries([_packed(entry) for entry in entries]))

    def _next(self) -> int:
        self._number += 1
        return self._number - 1


def _packed(entry: Entry) -> tuple[int, bytes]:
    index, record = entry
    try:
        return index, pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - whatever the record's class does
        reason = RecordError(f"it can't be sent to a process of the run: {describe(error)}")
        return index, pickle.dumps(BadRecord(reason, encode_leniently(record).rstrip(b"\n")))
