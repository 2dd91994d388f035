"""The loop of one worker: receive, attempt, send.

* As long as calls do not wait, a worker deals with many items in one turn of the loop; see
  :mod:`stageflow.engine.turn`. What a turn can't deal with, a call that waits, fails or leaves, is carried on by
  itself, like those of a stage whose calls wait.
* Whoever is about to be held up, by a call, a permit or a full channel, sees to it that somebody looks for the next
  item. Within a turn that is not needed: whoever is in it looks by itself.
* A worker whose handler outlives its timeout and its cancellation is abandoned: the pool has given its item up and its
  place away, and whatever it still returns is dropped here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from math import inf
from operator import length_hint
from typing import TYPE_CHECKING, Any

from stageflow.channel import END
from stageflow.engine.binding import CLOSED
from stageflow.engine.turn import LONG, TURN_SECONDS, begun
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
        idle: It has nothing in hand.
        spent: Seconds of its turns since others last ran.
        timed_out: The pool has cancelled the call because its time was over.
        reserved: Tokens reserved for the call.
        permitted: It has leave to start a call, and waited for that.
    """

    __slots__ = (
        "abandoned",
        "idle",
        "items",
        "permitted",
        "pool",
        "reserved",
        "rest",
        "since",
        "spent",
        "task",
        "timed_out",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.task: asyncio.Task[None] | None = None
        self.items: Item | list[Item] = []
        self.rest: list[Item] = []
        self.since = inf
        self.timed_out = False
        self.abandoned = False
        self.reserved = 0.0
        self.permitted = False
        self.idle = True
        self.spent = 0.0

    async def run(self) -> None:
        """A worker's life."""
        pool = self.pool
        CURRENT_STAGE.set(pool.stage.name)
        channel, counters, clock, gate, pace = pool.channel, pool.counters, pool.clock, pool.gate, pool.pace
        try_receive, invoke = channel.try_receive, pool.attempts.invoke
        only, last, leave, crew = pool.only, pool.last, pool.router.leave, pool.crew
        name, reported, most = pool.stage.name, pool.reported, pool.stage.max_in_flight
        channel.attended = False  # it was on this worker's account while it was on its way
        while True:
            call: Awaitable[Any] | None = None
            if pace.alone <= 0 and (size := pool.reach()):
                self.enter()
                if (odd := self.turn(size)) is None:
                    if self.spent > TURN_SECONDS:
                        self.pause()
                        await asyncio.sleep(0)
                    continue
                item, call = odd
            else:
                found = try_receive()
                if found is None or found is END:
                    self.pause()
                    if found is None:
                        await channel.park()
                    elif await pool.dismiss(self):
                        return
                    continue
                item = found
                if self.idle:
                    self.enter()
            if not channel.attended and (channel.parked or pool.workers < most):
                pool.attend()
            if call is None and (gate.shut or item.closed or self.permitted) and not await self.may_begin(item):
                continue
            self.items = item
            self.since = started = clock()
            try:
                value = await (invoke(item) if call is None else call)
            except BaseException as error:  # noqa: BLE001 - the handler is foreign code; Pool.failed sorts it out
                if self.abandoned:
                    return
                value = await pool.failed(item, error, worker=self)
            if self.abandoned:
                return
            self.since = inf
            seconds = clock() - started
            counters.count_call(seconds)
            if pace.alone > 0:
                pace.alone -= 1 if seconds < TURN_SECONDS else LONG
            if self.timed_out:
                self.forgive()
            if reported:
                pool.settle_tokens(self, [item])
            if crew.cancelled:  # the handler kept the cancellation to itself
                counters.cancelled += 1
                raise asyncio.CancelledError
            if value.__class__ is Exit or item.closed:
                await pool.depart(item, value)
                continue
            counters.passed += 1
            item.results[name] = value
            if only is not None:
                if not only.try_send(item):
                    await pool.send_blocked(only, item)
            elif last:
                leave(item)
            else:
                await pool.pass_on(item)

    def enter(self) -> None:
        """It turns to its work."""
        if self.idle:
            self.idle = False
            self.pool.enter()

    def pause(self) -> None:
        """Nothing is in its hands: it lets others run, or there is nothing to do."""
        if self.permitted:
            self.permitted = False
            self.pool.gate.give_back(self.reserved)
        if not self.idle:
            self.idle, self.spent = True, 0.0
            self.pool.counters.in_flight -= 1

    async def may_begin(self, item: Item) -> bool:
        """Wait for leave to begin the item's call. False where there is none to be made, and the item has left."""
        pool, gate = self.pool, self.pool.gate
        if gate.shut and not item.closed:
            if not self.permitted and not gate.pass_at_once():
                await self.pass_gate([item])
                self.permitted = True
            if gate.barred:
                pool.withhold(item)
        if item.closed:
            pool.counters.cancelled += 1
            pool.router.leave(item)
            return False  # a permit that was waited for with it serves the next one, if that is there
        self.permitted = False
        return True

    def turn(self, size: int) -> tuple[Item, Awaitable[Any] | None] | None:
        """Deal with the next ``size`` items at once.

        Returns:
            ``None`` where all of them have gone on. Else the first that could not, and what is left of its call, which
            is nothing where it was not begun; what came after it is in the channel again.
        """
        pool = self.pool
        channel, pace = pool.channel, pool.pace
        bulk = channel.take(size)
        each = iter(bulk)
        began = pool.clock()
        left = begun(pool.turn(bulk, each))
        seconds = pool.clock() - began
        self.spent += seconds
        odd: tuple[Item, Awaitable[Any] | None] | None = None
        finished = bulk
        if left is None:
            pace.went_through(size, seconds)
        else:
            place = size - length_hint(each) - 1
            odd = bulk[place], None if left is CLOSED else left
            finished = bulk[:place]
            channel.give_back(bulk[place + 1 :])
            bulk.clear()
            size = place + (left is not CLOSED)
            pace.broke_off(place, seconds)
        if pool.last:
            channel.refill()  # who feeds comes before who writes, and those below before those above
        if pool.gate.shut:
            pool.gate.passed(size)
        if finished:
            pool.counters.count_instant(len(finished), seconds)
            if pool.reported:
                pool.settle_tokens(self, finished)
            pool.pass_on_all(finished)
        if not pool.last:
            channel.refill()
        return odd

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
