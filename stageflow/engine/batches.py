"""The worker of a stage whose calls take lists: gather, attempt, send.

One batch is one call. Where that fails, each of its items has a call of its own, so that one bad item takes no others
with it.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

from stageflow.channel import END, End
from stageflow.engine.watch import CURRENT_STAGE
from stageflow.engine.worker import Worker
from stageflow.errors import ResultError
from stageflow.item import Exit, Item

__all__ = ["BatchWorker"]


class BatchWorker(Worker):
    """A worker whose calls take lists: it gathers items first."""

    __slots__ = ()

    async def run(self) -> None:
        """A worker's life."""
        pool = self.pool
        CURRENT_STAGE.set(pool.stage.name)
        channel = pool.channel
        channel.attended -= 1
        while True:
            first = await channel.receive()
            if first is END:
                if await pool.dismiss(self):
                    return
                continue
            if not channel.attended:
                pool.attend()
            items = await self._gather(first)
            if not channel.attended:  # while it gathered, it was the one who waited for the next
                pool.attend()
            pool.enter()
            try:
                await self._call_all(items)
            except asyncio.CancelledError:
                pool.counters.cancelled += len(self.rest)
                raise
            if self.abandoned:
                return
            pool.counters.in_flight -= 1

    async def _gather(self, first: Item) -> list[Item]:
        """Up to ``size`` items, waiting for those after the first no longer than ``within``."""
        batch = self.pool.stage.batch
        assert batch is not None, "a batch worker in a stage without batches"
        channel = self.pool.channel
        items = [first]
        deadline = asyncio.get_running_loop().time() + batch.within
        try:
            async with asyncio.timeout_at(deadline):
                while len(items) < batch.size:
                    item: Item | End = channel.try_receive() or await channel.receive(first=True)
                    if item is END:
                        channel.leave()
                        break
                    items.append(item)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self.pool.counters.cancelled += len(items)
            raise
        return items

    async def _call_all(self, gathered: list[Item]) -> None:
        """One call for the batch; where it fails, one for each item, so that one bad item takes no others with it."""
        pool = self.pool
        items = [item for item in gathered if not item.closed]
        pool.counters.cancelled += len(gathered) - len(items)
        for item in gathered:
            if item.closed:
                pool.router.leave(item)
        if pool.stage.when is not None:
            items = await self._wanted(items)
        if self.abandoned:
            return
        items = await self._admitted(items)
        if not items:
            return
        values = await self._call(items, alone=len(items) == 1)
        if self.abandoned:
            return
        if values is not None:
            for place, item in enumerate(items):
                self.rest = items[place + 1 :]
                await pool.conclude(item, values[place])
        if values is not None or len(items) == 1:
            return
        for place, item in enumerate(items):
            self.rest = items[place + 1 :]
            if not await self._admitted([item]):
                continue
            pool.count_attempt(item)
            single = await self._call([item], alone=True)
            if self.abandoned:
                return
            if single is not None:
                await pool.conclude(item, single[0])

    async def _wanted(self, items: list[Item]) -> list[Item]:
        """Those for which ``when`` does not say no."""
        pool = self.pool
        wanted: list[Item] = []
        for place, item in enumerate(items):
            self.items, self.rest = [item], wanted + items[place + 1 :]
            pool.resume(self, pool.clock())
            value: Any = Exit("skip")
            try:
                if await pool.attempts.wanted(item):
                    wanted.append(item)
                    continue
            except BaseException as error:  # noqa: BLE001 - `when` is foreign code
                if self.abandoned:
                    break
                value = await pool.failing.outcome(item, error, worker=self)
            finally:
                self.since = inf
            if self.abandoned:
                break
            await pool.conclude(item, value)
        self.rest = []
        return wanted

    async def _admitted(self, items: list[Item]) -> list[Item]:
        """Wait for a permit for one call; those of the items that have been given up by then leave."""
        pool, gate = self.pool, self.pool.gate
        shut = bool(items) and gate.shut
        if shut:
            await self.pass_gate(items)
            for item in items if gate.barred else ():
                if not item.closed:
                    pool.failing.withhold(item)
        wanted = [item for item in items if not item.closed]
        for item in items:
            if item.closed:
                pool.counters.cancelled += 1
                pool.router.leave(item)
        if shut and not wanted:
            if not gate.barred:
                gate.give_back(self.reserved)
        elif wanted and gate.purse is not None:
            pool.set_aside(wanted[0])
        return wanted

    async def _call(self, items: list[Item], *, alone: bool) -> list[Any] | None:
        """Call the handler; ``None`` where that failed. A failure of one item alone is concluded here."""
        pool = self.pool
        self.items = items
        started = pool.clock()
        pool.resume(self, started)
        error: BaseException | None = None
        values: Any = None
        assert pool.batch_call is not None, "a batch worker in a stage without batches"
        try:
            values = await pool.batch_call(items)
            if not isinstance(values, (list, tuple)) or len(values) != len(items):
                error = ResultError(_wrong_length(pool.stage.name, values, len(items)))
        except BaseException as raised:  # noqa: BLE001 - the handler is foreign code
            error = raised
        if self.abandoned:
            return None
        pool.counters.count_call(pool.clock() - started)
        pool.settle_tokens(self, items)
        if error is None:
            self.since = inf
            self.forgive()
            if pool.cancelled:
                pool.counters.cancelled += len(items)
                raise asyncio.CancelledError
            return list(values)
        if alone:
            value = await pool.failing.outcome(items[0], error, worker=self)
            self.since = inf
            if not self.abandoned:
                await pool.conclude(items[0], value)
        else:
            self.since = inf
            pool.judge.heed(pool.failing.cancellation(error, worker=self, items=len(items)))
        return None


def _wrong_length(stage: str, values: Any, expected: int) -> str:
    got = f"{len(values)} results" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
    return f'stage "{stage}" returned {got} for a batch of {expected}'
