"""The loop of one worker: receive, attempt, send.

* As long as calls do not wait, a worker deals with many items in one turn of the loop; see
  :mod:`stageflow.engine.turn`. What a turn can't deal with, a call that waits, fails or leaves, is carried on by
  itself, like those of a stage whose calls wait.
* Whoever is about to be held up, by a call or a permit, sees to it that somebody looks for the next item. Within a turn
  that is not needed: whoever is in it looks by itself.
* An item for which there is no room below is left in the line there, and its worker goes on. The item takes up the
  place of a worker meanwhile: there are never more of both than ``max_in_flight``.
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
from stageflow.engine.turn import TURN_SECONDS, begun
from stageflow.engine.watch import CURRENT_STAGE
from stageflow.item import Exit, Item

if TYPE_CHECKING:
    from stageflow.engine.pool import Pool

__all__ = ["Worker"]


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
        """A worker's life: turns, and between them one call after the other."""
        pool, channel, gate, lodging = self.pool, self.pool.channel, self.pool.gate, self.pool.lodging
        pace, clock, invoke, most = pool.pace, pool.clock, pool.attempts.invoke, pool.stage.max_in_flight
        parked, lodged = channel.parked, lodging.since
        CURRENT_STAGE.set(pool.stage.name)
        channel.attended -= 1  # it was on this worker's account while it was on its way
        while True:
            if (found := self._look()) is None:
                if await self._rest():
                    return
                continue
            item, call = found
            now = clock()
            while True:
                if not channel.attended and (parked or pool.workers < most):
                    pool.attend()
                at_once = call is not None or not (gate.shut or item.closed or self.permitted) or self.passes(item)
                if at_once or await self.may_begin(item):
                    self.items = item
                    self.since = began = now if at_once else clock()
                    try:
                        value = await (invoke(item) if call is None else call)
                    except BaseException as error:  # noqa: BLE001 - the handler is foreign code; Failing sorts it out
                        if self.abandoned:
                            return
                        value = await pool.failing.outcome(item, error, worker=self)
                    if self.abandoned:
                        return
                    now = clock()
                    if (parting := self._conclude(item, value, now - began, now)) is not None:
                        await parting
                        now = clock()
                if pace.alone <= 0 or (lodged and pool.busy + len(lodged) > most):
                    break
                if (following := channel.try_next()) is None:
                    break
                item, call = following, None

    def _look(self) -> tuple[Item, Awaitable[Any] | None] | None:
        """Deal with items in turns.

        Returns:
            The first that is to be dealt with by itself, and what is left of its call, where that was begun. ``None``
            where there is nothing to do at the moment.
        """
        pool, channel = self.pool, self.pool.channel
        while channel.items and pool.pace.alone <= 0 and self.spent <= TURN_SECONDS and (size := pool.reach()):
            self.enter()
            if (odd := self.turn(size)) is not None:
                return odd
        if self.spent > TURN_SECONDS or (pool.lodging.since and pool.is_crowded(self)):
            return None
        if (item := channel.try_next()) is None:
            return None
        self.enter()
        return item, None

    async def _rest(self) -> bool:
        """Let others run, or wait until there is something to look at. True where nothing will come any more."""
        pool, channel, spent = self.pool, self.pool.channel, self.spent
        self.pause()
        if spent > TURN_SECONDS:
            await asyncio.sleep(0)
        elif not channel.items or (pool.lodging.since and pool.is_crowded(self)):
            await channel.park()
        elif channel.items[0] is END:
            channel.try_receive()
            return await pool.dismiss(self)
        return False

    def _conclude(self, item: Item, value: Any, seconds: float, now: float) -> Awaitable[None] | None:
        """A call has ended: count it, and send the item on. Where that may have to wait, what is to be awaited."""
        pool, counters = self.pool, self.pool.counters
        self.since = inf
        counters.calls.append(seconds)
        pool.pace.made_alone(seconds)
        if self.timed_out:
            self.forgive()
        if pool.reported:
            pool.settle_tokens(self, [item], value)
        if pool.crew.cancelled:  # the handler kept the cancellation to itself
            counters.cancelled += 1
            raise asyncio.CancelledError
        if value.__class__ is Exit or item.closed:
            return pool.depart(item, value)
        counters.passed += 1
        item.results[pool.name] = value
        if (only := pool.only) is not None:
            if not only.try_send(item):
                pool.lodging.add(item, only, now)
        elif pool.last:
            pool.router.leave(item)
        else:
            return pool.pass_on(item)
        return None

    def enter(self) -> None:
        """It turns to its work."""
        if self.idle:
            self.idle = False
            self.pool.busy += 1
            self.pool.enter()

    def pause(self) -> None:
        """Nothing is in its hands: it lets others run, or there is nothing to do."""
        if self.permitted:
            self.permitted = False
            self.pool.gate.give_back(self.reserved)
        if not self.idle:
            self.idle, self.spent = True, 0.0
            self.pool.busy -= 1
            self.pool.counters.in_flight -= 1

    def passes(self, item: Item) -> bool:
        """Whether the item's call may begin at a gate that is shut, and nothing has to be waited for."""
        return not (item.closed or self.permitted) and self.pool.gate.pass_at_once()

    async def may_begin(self, item: Item) -> bool:
        """Wait for leave to begin the item's call. False where there is none to be made, and the item has left."""
        pool, gate = self.pool, self.pool.gate
        if gate.shut and not item.closed:
            if not self.permitted:
                await self.pass_gate([item])
                self.permitted = not gate.barred
            if gate.barred:
                pool.failing.withhold(item)
        if item.closed:
            pool.counters.cancelled += 1
            pool.router.leave(item)
            return False  # a permit that was waited for with it serves the next one, if that is there
        self.permitted = False
        if gate.purse is not None:
            pool.set_aside(item)
        return True

    def turn(self, size: int) -> tuple[Item, Awaitable[Any] | None] | None:
        """Deal with the next ``size`` items at once.

        Returns:
            ``None`` where all of them have gone on. Else the first that could not, and what is left of its call, which
            is nothing where it was not begun; what comes after it stays in the channel.
        """
        pool = self.pool
        channel, pace, clock = pool.channel, pool.pace, pool.clock
        bulk = channel.first(size)
        each = iter(bulk)
        began = clock()
        left = begun(pool.turn(bulk, each))
        seconds = clock() - began
        self.spent += seconds
        odd: tuple[Item, Awaitable[Any] | None] | None = None
        if left is None:
            finished = channel.take(size)
            pace.went_through(size, seconds)
        else:
            place = size - length_hint(each) - 1
            size = place + (left is not CLOSED)
            odd = bulk[place], None if left is CLOSED else left
            bulk.clear()
            finished = channel.take(place + 1)
            finished.pop()
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
