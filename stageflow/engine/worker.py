"""The loop of one worker: receive, attempt, send.

* A worker goes on as long as there are items, without leaving its turn of the loop, unless the handler, a permit or a
  full channel makes it wait. That is what makes a stage that does not wait cheap.
* Items that the handler answers at once are counted when the turn ends, many at a time. The end of one call is the
  beginning of the next, so that each costs one look at the clock.
* A worker whose handler outlives its timeout and its cancellation is abandoned: the pool has given its item up and its
  place away, and whatever it still returns is dropped here.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

from stageflow.channel import END
from stageflow.counters import INSTANT
from stageflow.engine.watch import CURRENT_STAGE
from stageflow.errors import ResultError
from stageflow.item import Exit, Item

if TYPE_CHECKING:
    from stageflow.channel import End
    from stageflow.engine.pool import Pool

__all__ = ["BatchWorker", "Worker"]


class Worker:
    """One worker of a pool.

    Attributes:
        items: What it has in hand: an item, or the list of a batch.
        rest: Items it will call the handler with afterwards, one by one.
        since: When the call in progress began, by the pool's clock; infinite while there is none.
        quick: Items that it dealt with at once and that are not counted yet.
        timed_out: The pool has cancelled the call because its time was over.
        reserved: Tokens reserved for the call.
    """

    __slots__ = ("abandoned", "items", "pool", "quick", "reserved", "rest", "since", "task", "timed_out")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.task: asyncio.Task[None] | None = None
        self.items: Item | list[Item] = []
        self.rest: list[Item] = []
        self.since = inf
        self.timed_out = False
        self.abandoned = False
        self.quick = 0
        self.reserved = 0.0

    async def run(self) -> None:
        """A worker's life."""
        pool = self.pool
        CURRENT_STAGE.set(pool.stage.name)
        channel, counters, clock, gate = pool.channel, pool.counters, pool.clock, pool.gate
        try_receive, invoke = channel.try_receive, pool.attempts.invoke
        only, last, leave = pool.only, pool.last, pool.router.leave
        name, reported = pool.stage.name, pool.reported
        idle, permitted = True, False
        mark = now = 0.0
        channel.attended = False  # it was on this worker's account while it was on its way
        while True:
            item = try_receive()
            if item is None or item is END:
                if permitted:
                    permitted = False
                    gate.give_back(self.reserved)
                if not idle:
                    self.since = inf
                    counters.count_instant(self.quick, now - mark)
                    counters.in_flight -= 1
                    idle = True
                item = item or await channel.receive()
                if item is END:
                    if await pool.dismiss(self):
                        return
                    continue
            if idle:
                pool.enter()
                self.quick, mark, idle = 0, (now := clock()), False
            if not channel.attended:
                pool.attend()
            if gate.shut and not item.closed:
                if not permitted:
                    counters.count_instant(self.quick, now - mark)
                    await self.pass_gate([item])
                    permitted, self.quick, mark = True, 0, (now := clock())
                if gate.barred:
                    pool.withhold(item)
            if item.closed:
                counters.cancelled += 1
                leave(item)
                continue  # a permit that was waited for with it serves the next one, if that is there
            permitted = False
            started = self.since = now
            self.items = item
            try:
                value = await invoke(item)
            except BaseException as error:  # noqa: BLE001 - the handler is foreign code; Pool.failed sorts it out
                if self.abandoned:
                    return
                counters.count_instant(self.quick, started - mark)
                self.quick, mark = 0, started
                value = await pool.failed(item, error, worker=self)
            now = clock()
            if now - started < INSTANT and value.__class__ is not Exit and not item.closed and not reported:
                self.quick += 1
            else:
                if self.abandoned:
                    return
                self.since = inf
                counters.count_instant(self.quick, started - mark)
                counters.count_call(now - started)
                self.quick, mark = 0, now
                self.forgive()
                if reported:
                    pool.settle_tokens(self, [item])
                if pool.cancelled:  # the handler kept the cancellation to itself
                    counters.cancelled += 1
                    raise asyncio.CancelledError
                if value.__class__ is Exit or item.closed:
                    await pool.depart(item, value)
                    mark = now = clock()
                    continue
                counters.passed += 1
            item.results[name] = value
            if only is not None:
                if not only.try_send(item):
                    self.since = inf
                    counters.count_instant(self.quick, now - mark)
                    await pool.send_blocked(only, item)
                    self.quick, mark = 0, (now := clock())
            elif last:
                leave(item)
            else:
                self.since = inf
                counters.count_instant(self.quick, now - mark)
                await pool.pass_on(item)
                self.quick, mark = 0, (now := clock())

    async def pass_gate(self, items: list[Item]) -> None:
        """Wait for a permit, outside any attempt."""
        pool = self.pool
        self.since = inf
        pool.counters.in_flight -= 1
        pool.counters.waiting += 1
        began = pool.clock()
        try:
            self.reserved = await pool.gate.wait()
        except asyncio.CancelledError:
            pool.counters.cancelled += len(items)
            raise
        finally:
            pool.counters.waiting -= 1
            pool.counters.waiting_seconds += pool.clock() - began
            pool.enter()

    def forgive(self) -> None:
        """The call ended by itself although it had been cancelled for its time."""
        if self.timed_out:
            self.timed_out = False
            assert self.task is not None, "a worker without a task"
            self.task.uncancel()


class BatchWorker(Worker):
    """A worker whose calls take lists: it gathers items first."""

    __slots__ = ()

    async def run(self) -> None:
        """A worker's life."""
        pool = self.pool
        CURRENT_STAGE.set(pool.stage.name)
        channel = pool.channel
        channel.attended = False
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
                value = await pool.failed(item, error, worker=self)
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
                    pool.withhold(item)
        wanted = [item for item in items if not item.closed]
        for item in items:
            if item.closed:
                pool.counters.cancelled += 1
                pool.router.leave(item)
        if shut and not wanted:
            gate.give_back(self.reserved)
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
            value = await pool.failed(items[0], error, worker=self)
            self.since = inf
            if not self.abandoned:
                await pool.conclude(items[0], value)
        else:
            self.since = inf
            pool.judge.heed(pool.cancellation(error, worker=self, items=len(items)))
        return None


def _wrong_length(stage: str, values: Any, expected: int) -> str:
    got = f"{len(values)} results" if isinstance(values, (list, tuple)) else f"a {type(values).__name__}"
    return f'stage "{stage}" returned {got} for a batch of {expected}'
