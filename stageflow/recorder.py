"""From settled items to what is written of them, and the account of the run."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from stageflow.counters import RunCounters
from stageflow.errors import ContextConflict, ItemError, ResultError
from stageflow.events import Event, RecordDead
from stageflow.item import BadRecord, Failure, Item
from stageflow.output import dead_letter, family, output_maker, output_records
from stageflow.plan import Plan
from stageflow.policies.redact import secrets_of
from stageflow.protocols import Entry, Sink

__all__ = ["Recorder"]


class Recorder:
    """Takes settled items on the loop and writes what they came to, in one task, a batch at a time.

    Under a slow sink a batch grows by itself, up to the bound on open records: a record keeps its credit until it has
    been written, and that is how a slow sink holds back the source.

    Args:
        emit: Where events go.
        path, numbered: The source's, for dead letters.
        in_order: Write in the order in which records were let in.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        dead: Sink,
        counters: RunCounters,
        *,
        emit: Callable[[Event], None],
        path: str | None,
        numbered: bool,
        in_order: bool = False,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._dead = dead
        self._counters = counters
        self._emit = emit
        self._path = path
        self._numbered = numbered
        self._settled: deque[Item] = deque()
        self._expected: deque[int] | None = deque() if in_order else None
        self._early: dict[int, Item] = {}
        self._more = asyncio.Event()
        self._closed = False
        self._output = output_maker(plan)
        self._levels = any(stage.fans_out for stage in plan.stages.values())
        self._held: list[tuple[Item, Sequence[Item]]] = []
        self._secrets = secrets_of(os.environ)
        self.release: Callable[[int], None] = lambda count: None
        self.watch: Callable[[int, int], None] = lambda dead, settled: None
        self.verdict: Callable[[str], str] = lambda stage: "cleared"

    def expect(self, index: int) -> None:
        """A record with that index is about to be let in."""
        if self._expected is not None:
            self._expected.append(index)

    def settled(self, item: Item) -> None:
        """Take an item whose outcome is final; returns at once.

        In order, it waits here until all that were let in before it have settled: it keeps its credit meanwhile, so
        that no more wait than may be open.
        """
        if self._expected is None:
            self._settled.append(item)
        else:
            self._early[item.index] = item
            while self._expected and self._expected[0] in self._early:
                self._settled.append(self._early.pop(self._expected.popleft()))
        if not self._more.is_set():
            self._more.set()

    def close(self) -> None:
        """No item will come any more: :meth:`write` ends when those that came are written."""
        self._closed = True
        # Of a cancelled run some never settle; what came after them is written all the same.
        self._settled.extend(self._early.pop(index) for index in sorted(self._early))
        self._more.set()

    async def write(self) -> None:
        """Write until closed.

        Raises:
            StorageError: A sink failed.
        """
        while not (self._closed and not self._settled):
            await self._more.wait()
            self._more.clear()
            while self._settled:
                await self._write_batch()
        await self._write_batch()  # what waited for a verdict until now

    async def _write_batch(self) -> None:
        settled = self._settled
        batch = _Batch()
        count = len(settled)
        outputs, output, encode, levels = batch.outputs, self._output, self._sink.encode, self._levels
        for _ in range(count):
            item = settled.popleft()
            if item.closed or levels:
                self._sort(item, batch)
                continue
            try:
                outputs.append((item.index, encode(output(item))))
            except (ContextConflict, ResultError) as error:
                self._refuse(item, error, batch)
                batch.dead += 1
            else:
                batch.written += 1
        self._review(batch)
        self.watch(batch.dead, count)
        if batch.outputs:
            await self._sink.write(batch.outputs)
        if batch.letters:
            await self._dead.write(batch.letters)
        self._counters.written += batch.written
        self._counters.dropped += batch.dropped
        self._counters.dead += batch.dead
        self.release(count)

    def _sort(self, record: Item, batch: _Batch) -> None:
        """A record of which something failed, left or was made more of."""
        failed = [item for item in family(record) if item.failure is not None]
        if any(item.withheld for item in failed):
            return
        if any(item.held for item in failed):
            self._held.append((record, failed))
            return
        self._judged(record, failed, batch)

    def _judged(self, record: Item, failed: Sequence[Item], batch: _Batch) -> None:
        lines = len(batch.outputs)
        whole = output_records(record, self._plan, on_partial=self._plan.on_partial)
        unwritable = [item for item in whole if not self._encode(item, batch)]
        batch.letters += [(item.index, self._letter(item, item.failure)) for item in failed if item.failure is not None]
        if failed or unwritable:
            batch.dead += 1
        elif len(batch.outputs) > lines:
            batch.written += 1
        else:
            batch.dropped += 1

    def _review(self, batch: _Batch) -> None:
        """Decide on the failures that waited for the verdict on their stage, where there is one."""
        if not self._held:
            return
        held, self._held = self._held, []
        for record, failed in held:
            stages = [item.failure.stage for item in failed if item.held and item.failure is not None]
            verdicts = {self.verdict(stage) for stage in stages if stage is not None}
            if "tripped" in verdicts:
                continue
            if "pending" in verdicts and not (self._closed and not self._settled):
                self._held.append((record, failed))
            else:
                self._judged(record, failed, batch)

    def _encode(self, item: Item, batch: _Batch) -> bool:
        """Make an item's output line, or else its dead letter."""
        try:
            batch.outputs.append((item.index, self._sink.encode(self._output(item))))
        except (ContextConflict, ResultError) as error:
            self._refuse(item, error, batch)
            return False
        return True

    def _refuse(self, item: Item, error: ItemError, batch: _Batch) -> None:
        """A settled item has no form in the output."""
        stage = None
        if isinstance(error, ResultError):
            stage, error = self._culprit(item, error)
        batch.letters.append((item.index, self._letter(item, Failure(stage, error, 1))))

    def _culprit(self, item: Item, error: ResultError) -> tuple[str | None, ResultError]:
        """The first stage whose result has no form in the output, and the error with its path within that result."""
        written = self._plan.emitted or [name for name, stage in self._plan.stages.items() if stage.emit]
        found = [(name, each.results[name]) for each in item.lineage() for name in written if name in each.results]
        for name, value in found:
            for whole in (value, {name: value}):  # what is nested too deep may be so by its place in the record alone
                try:
                    self._sink.encode(whole)
                except ResultError as refusal:
                    return name, ResultError(f"result of stage {name} is {refusal}")
        return None, error

    def _letter(self, item: Item, failure: Failure) -> Any:
        letter = dead_letter(item, failure, path=self._path, numbered=self._numbered, secrets=self._secrets)
        if isinstance(item.record, BadRecord):
            self._counters.bad += 1
        self._emit(RecordDead(letter))
        return self._dead.encode(letter)


class _Batch:
    """What one batch comes to."""

    __slots__ = ("dead", "dropped", "letters", "outputs", "written")

    def __init__(self) -> None:
        self.outputs: list[Entry] = []
        self.letters: list[Entry] = []
        self.written = 0
        self.dropped = 0
        self.dead = 0
