"""The source of a replica's run: the records of the shards that it is leased, read by itself where they are."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, Protocol, TypeVar

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.jsonl.inputs import codec_of
from stageflow.adapters.jsonl.parts import MAX_LINE_BYTES, Part, entries_of
from stageflow.adapters.media import Opened
from stageflow.cluster.messages import ShardLease
from stageflow.cluster.plan import PlannedFile, Shard, ShardPlan, place_in_shard, shard_of
from stageflow.commit import InputMark
from stageflow.errors import SourceFailed, WorkerDied
from stageflow.files import medium_of
from stageflow.item import BadRecord, Lost
from stageflow.protocols import Entry
from stageflow.replicas.partial import PartialSource

__all__ = ["Desk", "LeasedShards", "Takings", "lines_of"]

T = TypeVar("T")

_BLOCK_BYTES: Final = 256 * 1024
_AT_A_TIME: Final = 32
"""Records that are decoded at a time."""

_record_of: Final = itemgetter(1)


class Desk(Protocol):
    """Where leases come from."""

    async def next(self) -> ShardLease | None:
        """The next one; ``None``: there will be no more."""
        ...

    def coming(self) -> ShardLease | None:
        """What :meth:`next` would give at once, where it is at hand already."""
        ...

    async def about_to_run(self, number: int, place: int) -> None:
        """A record that may kill this process is about to be run: return when somebody else knows."""
        ...


class Takings(Protocol):
    """What becomes of them."""

    def begin(self, lease: ShardLease) -> None:
        """Records of a shard are about to be let in."""
        ...

    def wants(self, number: int) -> bool:
        """Whether a shard that was begun is still ours to do."""
        ...

    def read_whole(self, number: int, *, lines: int, records: int, bad: int) -> None:
        """All of a shard was let in: so many lines of the input, with so many records, some of them unreadable."""
        ...

    async def settled(self, index: int) -> None:
        """Wait until a record has settled."""
        ...


class LeasedShards(PartialSource):
    """Records of leased shards; see :class:`stageflow.protocols.Source`.

    Args:
        strict: A line with a key that comes twice is a bad record.

    Attributes:
        waits: Nothing comes before a lease does, or before what was let in has settled: whoever keeps something back
            until more records have come would wait for ever.
        began_to_wait: Called when that begins.
    """

    def __init__(self, plan: ShardPlan, desk: Desk, takings: Takings, *, strict: bool) -> None:
        self._plan = plan
        self._desk = desk
        self._takings = takings
        self._strict = strict
        self._ahead: tuple[int, asyncio.Task[bytes]] | None = None
        self.waits = False
        self.began_to_wait: Callable[[], None] = lambda: None
        self.path: str | None = None
        self.numbered = False
        self.blank = 0
        self.warnings: list[str] = []

    def locate(self, index: int) -> dict[str, Any]:
        """Where a record stands, as a dead letter says it: its place among the lines of its shard, and its file."""
        number, place = shard_of(index), place_in_shard(index)
        path = self._plan.files[self._plan.shards[number].file].path
        return {"index": place, "line": place + 1, "path": path, "shard": number}

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield the entries of one shard after the other.

        Raises:
            SourceFailed: A file can't be read, or is not what it was when the run was begun.
            InputDamaged: What is compressed breaks off. Of that shard nothing is committed.
        """
        try:
            while (lease := await self._waiting(self._desk.next())) is not None:
                async with contextlib.aclosing(self._entries_of(lease)) as portions:
                    async for portion in portions:
                        yield portion
        finally:
            self._read_ahead(None)

    async def _entries_of(self, lease: ShardLease) -> AsyncGenerator[Iterable[Entry], None]:
        count = _Count()
        self._takings.begin(lease)
        async with contextlib.aclosing(self._portions(self._plan.shards[lease.number], count)) as portions:
            async for portion in portions:
                entries = self._condemned(portion, lease) if lease.fatal else portion
                if not lease.careful:
                    yield count.records(entries)
                else:
                    for entry in entries:
                        await self._desk.about_to_run(lease.number, place_in_shard(entry[0]))
                        yield count.records((entry,))
                        await self._waiting(self._takings.settled(entry[0]))
                        if not self._takings.wants(lease.number):
                            return
                if not self._takings.wants(lease.number):
                    return
        self.blank += len(count.blank)
        self._takings.read_whole(lease.number, lines=count.lines, records=count.read, bad=count.bad)

    async def _waiting(self, something: Awaitable[T]) -> T:
        self.waits = True
        self.began_to_wait()
        try:
            return await something
        finally:
            self.waits = False

    async def _portions(self, shard: Shard, count: _Count) -> AsyncGenerator[Iterator[Entry], None]:
        file = self._plan.files[shard.file]
        if file.codec == "plain":
            data = await self._data_of(shard)
            self._read_ahead(self._desk.coming())
            if data:
                yield self._entries(Part(0, _lines(data), data), file, shard, count)
            return
        await asyncio.to_thread(_refuse_changed, file)
        source = JsonlSource(file.path, marked=False, strict=self._strict, medium=medium_of(file.place))
        async with contextlib.aclosing(source.read_parts()) as blocks:
            async for parts in blocks:
                for part in parts:
                    if isinstance(part, Part):
                        yield self._entries(part, file, shard, count)
                    else:
                        count.lines += 1
                        yield iter(((part[0] + shard.base, part[1]),))
        self.warnings += source.warnings
        await asyncio.to_thread(_refuse_changed, file)

    async def _data_of(self, shard: Shard) -> bytes:
        if self._ahead is not None and self._ahead[0] == shard.number:
            reading, self._ahead = self._ahead[1], None
            return await reading
        return await asyncio.to_thread(_lines_read, self._plan.files[shard.file], shard)

    def _read_ahead(self, lease: ShardLease | None) -> None:
        """Read the lines of the next shard while those of this one are run: a service takes its time."""
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None
        if lease is None or self._plan.files[self._plan.shards[lease.number].file].codec != "plain":
            return
        shard = self._plan.shards[lease.number]
        reading = asyncio.create_task(asyncio.to_thread(_lines_read, self._plan.files[shard.file], shard))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may be that nobody asks
        self._ahead = lease.number, reading

    def _entries(self, part: Part, file: PlannedFile, shard: Shard, count: _Count) -> Iterator[Entry]:
        """Decode whole lines of a shard."""
        count.lines += part.lines
        decoded = functools.partial(entries_of, part.data, path=file.path, strict=self._strict, blank=count.blank)
        if shard.start:
            return decoded(shard.base + part.first)
        # Only what begins at 0 is told to be the beginning of a file: a mark of its encoding is looked for there.
        return ((index + shard.base, record) for index, record in decoded(part.first))

    def _condemned(self, entries: Iterable[Entry], lease: ShardLease) -> Iterator[Entry]:
        """Records that have killed who ran them are not run again."""
        for index, record in entries:
            if place_in_shard(index) in lease.fatal and not isinstance(record, BadRecord):
                yield index, Lost(record, WorkerDied("the process that ran it died, each time: it is not run again"))
            else:
                yield index, record


class _Count:
    """What was met in a shard."""

    def __init__(self) -> None:
        self.lines = 0
        self.blank: list[int] = []
        self.read = 0
        self.bad = 0

    def records(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries, counted as they are taken: some at a time, since a look at each would cost as much as reading
        them."""
        return chain.from_iterable(self._counted(iter(entries)))

    def _counted(self, entries: Iterator[Entry]) -> Iterator[list[Entry]]:
        while some := list(islice(entries, _AT_A_TIME)):
            self.read += len(some)
            if BadRecord in map(type, map(_record_of, some)):
                self.bad += sum(type(record) is BadRecord for _, record in some)
            yield some


def lines_of(opened: Opened, shard: Shard) -> bytes:
    """The lines of a text that begin within a shard's bytes, whole. Blocks.

    Of one that is longer than any line may be, so much as tells that. The last line of the text may lack its LF.

    Raises:
        OSError: Reading failed.
    """
    assert shard.end is not None, "a part of what can't be cut"
    begin = max(0, shard.start - 1)
    opened.seek(begin)
    data = bytearray()
    while begin + len(data) < shard.end:
        block = opened.read(shard.end - begin - len(data))
        if not block:
            break
        data += block
    if shard.start:
        # The line that the byte before the shard belongs to is the shard's before it, whatever of it stands here.
        del data[: data.find(b"\n") + 1 or len(data)]
    if data and not data.endswith(b"\n"):
        line = len(data) - (data.rfind(b"\n") + 1)
        while line <= MAX_LINE_BYTES and (block := opened.read(_BLOCK_BYTES)):
            end = block.find(b"\n") + 1
            data += block[:end] if end else block
            line += len(block)
            if end:
                break
    return bytes(data)


def _lines_read(file: PlannedFile, shard: Shard) -> bytes:
    try:
        with contextlib.closing(medium_of(file.place).open()) as opened:
            _refuse_other(opened, file)
            lines = lines_of(opened, shard)
            _refuse_other(opened, file)  # what was cut short meanwhile would look like a shard with fewer lines
            return lines
    except OSError as error:
        raise SourceFailed(f"cannot read {file.path}: {error.strerror or error}") from error


def _refuse_changed(file: PlannedFile) -> None:
    try:
        with contextlib.closing(medium_of(file.place).open()) as opened:
            _refuse_other(opened, file)
    except OSError as error:
        raise SourceFailed(f"cannot read {file.path}: {error.strerror or error}") from error


def _refuse_other(opened: Opened, file: PlannedFile) -> None:
    there = opened.identity
    if there is None or not file.is_still(replace(there, codec=codec_of(opened, file.place))):
        raise SourceFailed(
            f"{file.path} is not what it was when the run was begun, or is another file on this machine",
            hint="restore it, or choose another output",
        )


def _lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))
