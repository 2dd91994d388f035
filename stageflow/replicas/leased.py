"""The source of a replica's run: records of the leases that it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from stageflow.adapters.jsonl.parts import entries_of
from stageflow.commit import InputMark
from stageflow.engine.attempt import describe
from stageflow.errors import RecordError, WorkerDied
from stageflow.item import BadRecord, Lost, Reentry
from stageflow.protocols import Entry
from stageflow.replicas.coordinator import Lease
from stageflow.replicas.messages import Ask, Entries, Lines, Open, Read, Setup
from stageflow.replicas.partial import PartialSource
from stageflow.replicas.wire import Wire, unpickled

__all__ = ["LeasedSource"]

_AHEAD: Final = 2
"""Leases that are asked for before the one at hand is read: so there is always one to go on with."""


class LeasedSource(PartialSource):
    """Records of leases; see :class:`stageflow.protocols.Source`.

    Args:
        opened: How many records are open.
        reentered: Called for each record of dead letters that is handed over.
        renamed: Modules by what they are called where records are pickled.
    """

    def __init__(
        self,
        wire: Wire,
        setup: Setup,
        *,
        opened: Callable[[], Open],
        reentered: Callable[[], None],
        renamed: Mapping[str, str],
    ) -> None:
        self.path = setup.path
        self.numbered = setup.numbered
        self.blank = 0
        self.warnings: Sequence[str] = ()  # the fleet looks at what may be odd
        self._strict = setup.options.strict
        self._wire = wire
        self._opened = opened
        self._reentered = reentered
        self._renamed = renamed
        self._given: asyncio.Queue[Lease | None] = asyncio.Queue()

    def begin(self) -> None:
        """Ask for work."""
        for _ in range(_AHEAD):
            self._wire.send(Ask())

    def give(self, lease: Lease) -> None:
        """A lease has come."""
        self._given.put_nowait(lease)

    def end(self) -> None:
        """None will come any more."""
        self._given.put_nowait(None)

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield the entries of one lease after the other."""
        while (lease := await self._given.get()) is not None:
            blank: list[int] = []
            yield self._entries(lease, blank)
            if not isinstance(lease.indices, range):
                blank = sorted(set(lease.indices).intersection(blank))
            self._wire.send(Read(blank, self._opened()))
            self._wire.send(Ask())

    def _entries(self, lease: Lease, blank: list[int]) -> Iterator[Entry]:
        content = lease.shard.content
        if isinstance(content, Lines):
            entries = entries_of(content.data, content.first, path=self.path or "-", strict=self._strict, blank=blank)
        else:
            entries = self._unpacked(content.entries)
        if not isinstance(lease.indices, range):
            wanted = set(lease.indices)
            entries = (entry for entry in entries if entry[0] in wanted)
        if lease.fatal:
            entries = (_failed(entry, lease.deaths) for entry in entries)
        return self._counted(entries) if isinstance(content, Entries) else entries

    def _counted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if isinstance(entry[1], Reentry) or (isinstance(entry[1], Lost) and entry[1].reentry is not None):
                self._reentered()
            yield entry

    def _unpacked(self, entries: Sequence[tuple[int, bytes]]) -> Iterator[Entry]:
        for index, data in entries:
            try:
                record: Any = unpickled(data, self._renamed)
            except Exception as error:  # noqa: BLE001 - whatever the classes of the records do
                record = BadRecord(RecordError(f"it can't be read in a process of the run: {describe(error)}"))
            yield index, record


def _failed(entry: Entry, deaths: int) -> Entry:
    index, record = entry
    if isinstance(record, BadRecord):
        return entry  # which is run on nothing
    error = WorkerDied(f"the process that ran it died {deaths} times: it is not run again")
    return index, Lost(record.record, error, record) if isinstance(record, Reentry) else Lost(record, error)
