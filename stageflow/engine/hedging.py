"""A call that takes long is made a second time, and the first of the two to succeed counts.

After how long, and how often at the most, :mod:`stageflow.policies.hedging` says.

* A second call breaks no limit, and no item waits for one: it is made where a place, a permit, tokens and money are
  there at once. Till they are, the attempt is among those that wish for one. It is tried again by each worker that
  looks for its next item, and whenever as long again has passed.
* A worker that has finished its item gives its place to a second call first. In a stage that is always full none would
  ever be made, while slow calls keep the places of many others.
* To the pool a second call is one more busy worker.
* Each of the two is a task of its own. As soon as one has succeeded the other is cancelled, and its end is awaited:
  nothing outlives the item that it was for. A call that swallows its cancellation is left behind after a grace.
* Where one of the two fails, the other may still succeed. Where both do, the first failure is the item's. The timeout
  is that of the attempt: it ends both.
* Each of them pays for itself: what the second one used is an account of its own, and of the one that was cancelled
  nobody knows whether it has told all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from stageflow.engine.cached import CachingWorker
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.engine.spending import Report, Usage
from stageflow.engine.worker import Worker
from stageflow.item import Item
from stageflow.policies.hedging import Hedge, Hedging

if TYPE_CHECKING:
    from stageflow.engine.pool import Pool

__all__ = ["Hedges", "HedgingCachingWorker", "HedgingWorker"]

Call = Callable[[Item], Awaitable[Any]]
_Task = asyncio.Task[tuple[bool, Any]]

_GRACE: Final = SWALLOW_GRACE + 0.01
"""Where the attempt's time is over its worker is left behind first, and then what that waited for."""


class Hedges:
    """The second calls of one stage.

    Args:
        first, second: Call the handler for an item; what the second one's call reports comes to :meth:`report`.

    Attributes:
        account: How many there were.
        wishes: The attempts that take long and have no second call yet, in the order in which they came to that.
    """

    def __init__(self, pool: Pool, hedge: Hedge, *, first: Call, second: Call) -> None:
        self.pool = pool
        self.first = first
        self.second = second
        self.account = Hedging(hedge)
        self.wishes: dict[_Race, None] = {}
        self._guests: dict[Item, _Race] = {}

    async def call(self, item: Item) -> Any:
        """The handler's result for an item, by one call or by two."""
        account, clock = self.account, self.pool.clock
        patience, began = account.begin(), clock()
        value = await (self.first(item) if patience is None else _Race(self, item, patience).run())
        account.end(clock() - began)
        return value

    def serve(self, worker: Worker | None = None) -> None:
        """Make the second calls that are wished for, as far as they can be made now.

        Args:
            worker: One that has nothing to do at the moment: its place can be had.
        """
        pool = self.pool
        while self.wishes:
            race = next(iter(self.wishes))
            if not race.is_on:
                del self.wishes[race]
                continue
            if pool.cancelled or not (pool.has_place or (worker is not None and not worker.idle)):
                return
            if not self.account.may or (reserved := pool.gate.enter_at_once()) is None:
                return
            if worker is not None:
                worker.pause()
            self.account.take()
            del self.wishes[race]
            self._guests[race.item] = race
            race.begin_second(reserved)

    def left(self, race: _Race) -> None:
        """A second call is over: its place is free for another one, or for a worker."""
        if self._guests.get(race.item) is race:
            del self._guests[race.item]
        self.serve()
        self.pool.attend_again()

    def report(self, item: Item, attempt: int, report: Report) -> None:
        """A handler tells what a second call used."""
        race = self._guests.get(item)
        if race is not None and attempt == item.attempt(self.pool.stage.name):
            race.usage.reports.append(report)
        else:
            self.pool.report(item, 0, report)  # of no attempt that there is: it comes late

    def close(self) -> None:
        """The run is over, and some second calls have not ended."""
        for race in list(self._guests.values()):
            race.leave(cut=True)


class _Race:
    """One attempt: a call, and perhaps a second one.

    Attributes:
        pool: Whoever watches the loop knows by it whose call that is.
        usage: What is known of the second call.
    """

    __slots__ = (
        "_context",
        "_ending",
        "_failures",
        "_first",
        "_flying",
        "_has_left",
        "_hedges",
        "_over",
        "_patience",
        "_reserved",
        "_second",
        "_since",
        "_timer",
        "_won",
        "_worker",
        "item",
        "pool",
        "usage",
    )

    def __init__(self, hedges: Hedges, item: Item, patience: float) -> None:
        self.item = item
        self.pool = hedges.pool
        self.usage = Usage()
        self._hedges = hedges
        self._patience = patience
        self._worker = asyncio.current_task()
        self._flying: dict[_Task, None] = {}
        self._failures: list[BaseException] = []
        self._first: _Task | None = None
        self._second: _Task | None = None
        self._won: _Task | None = None
        self._over: asyncio.Future[None] | None = None
        self._ending = self._has_left = False

    async def run(self) -> Any:
        """The result of the first call that succeeds. None of them is left when it comes.

        Raises:
            BaseException: The first failure, where none has succeeded.
            asyncio.CancelledError: The worker was cancelled before that.
        """
        self._first = self._start(self._hedges.first)
        self._set_timer(self._patience, self._take_long)
        cut = await self._wait()
        self._hedges.wishes.pop(self, None)
        if self._flying:
            cut = await self._end() or cut
        self._timer.cancel()
        try:
            if self._won is not None:
                self.pool.counters.hedges_won += self._won is self._second
                return self._won.result()[1]
            # What one call makes of its cancellation is its own failure, as it is without a second one.
            if self._failures and (cut is None or self._second is None):
                raise self._failures[0]
            assert cut is not None, "an attempt that neither succeeded nor failed"
            raise cut
        finally:  # else what was raised and the frames that it went through would keep each other
            cut = self._first = self._second = self._won = None
            self._failures = []

    @property
    def is_on(self) -> bool:
        """Whether its first call still has to answer: it was neither ended, nor was its item given up elsewhere."""
        return self._over is not None and not self._over.done() and not self.item.closed

    def begin_second(self, reserved: float) -> None:
        """Make the second call; what it needs has been taken."""
        pool = self.pool
        self._timer.cancel()
        self._reserved = reserved
        self._since = pool.clock()
        self.usage.paid = pool.gate.purse is not None
        pool.busy += 1
        pool.enter()
        pool.counters.hedged += 1
        self._second = self._context.run(self._start, self._hedges.second)

    def leave(self, *, cut: bool) -> None:
        """The second call is over, or is left behind: count what it used, and give its place away."""
        if self._has_left:
            return  # with the run, which was over before it
        pool = self.pool
        self._has_left = True
        pool.busy -= 1
        pool.counters.in_flight -= 1
        pool.counters.count_hedge(pool.clock() - self._since)
        self.usage.cut = cut
        if self.usage.paid or self.usage.reports:
            tokens = pool.spending.settle([self.usage])
            if tokens is not None:
                pool.gate.settle(self._reserved, tokens)
        self._hedges.left(self)

    def _start(self, call: Call) -> _Task:
        task = self.pool.crew.start(self._call(call), f"{self.pool.stage.name} call")
        self._flying[task] = None
        task.add_done_callback(self._ended)
        return task

    async def _call(self, call: Call) -> tuple[bool, Any]:
        """Whether it succeeds, and with what. No failure is the task's own: with an exit the loop would end."""
        try:
            return True, await call(self.item)
        except BaseException as error:  # noqa: BLE001 - the handler is foreign code; Failing sorts it out
            return False, error

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _take_long(self) -> None:
        """The first call takes long: wish for a second one, again and again."""
        self._context = copy_context()  # the worker's, as that of the first call was
        self._hedges.wishes[self] = None
        self._hedges.serve()
        if self in self._hedges.wishes:
            self.pool.pace.alone = 0  # whoever ends a call looks round before going on
            self._set_timer(self._patience, self._take_long)

    async def _wait(self) -> asyncio.CancelledError | None:
        """Wait until there is a result, or no call any more; or until the worker is cancelled."""
        self._over = asyncio.get_running_loop().create_future()
        try:
            await self._over
        except asyncio.CancelledError as error:
            return error
        return None

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancel what is in flight, and wait for its end, whatever happens to the worker meanwhile."""
        self._ending = True
        for task in self._flying:
            if not task.cancelling():  # with the run; a second time would disturb its cleaning up
                task.cancel()
        self._timer.cancel()
        self._set_timer(_GRACE, self._leave_behind)
        cut: asyncio.CancelledError | None = None
        while self._flying:
            cut = await self._wait() or cut
        return cut

    def _ended(self, task: _Task) -> None:
        begun = not task.cancelled()
        succeeded, value = task.result() if begun else (False, asyncio.CancelledError())
        cut = not succeeded and (self._ending or self.pool.cancelled)
        if succeeded and self._won is None:
            self._won = task
        elif not succeeded and not (cut and isinstance(value, asyncio.CancelledError)):
            self._failures.append(value)
            if self._second is not None:  # it may be no failure of the item's, and the service want to be left alone
                self.pool.judge.heed(value)
        if task is self._second:
            self.usage.uncalled = not begun
        self._is_over(task, cut=cut)

    def _leave_behind(self) -> None:
        """The grace is over, and not all of them have ended."""
        crew = self.pool.crew
        counted = self._worker in crew.abandoned  # it counts as one call, whatever it waited for
        for task in tuple(self._flying):
            task.remove_done_callback(self._ended)
            crew.abandon(task)
            if not counted:
                self.pool.left_behind()
            counted = False
            self._is_over(task, cut=True)

    def _is_over(self, task: _Task, *, cut: bool) -> None:
        del self._flying[task]
        if task is self._second:
            self.leave(cut=cut)
        elif cut and (usage := self.pool.reported.get(self.item)) is not None:
            usage.cut = True
        come = not self._flying or (self._won is not None and not self._ending)
        if come and self._over is not None and not self._over.done():
            self._over.set_result(None)


class HedgingWorker(Worker):
    """A worker that gives its place to a second call before it takes an item."""

    __slots__ = ()

    def _look(self) -> tuple[Item, Awaitable[Any] | None] | None:
        hedges = self.pool.hedges
        if hedges is not None and hedges.wishes:
            hedges.serve(self)
        return None if self.pool.is_crowded(self) else super()._look()

    async def _rest(self) -> bool:
        self.pause()
        if self.pool.is_crowded(self):
            await self.pool.channel.park()
            return False
        return await super()._rest()


class HedgingCachingWorker(HedgingWorker, CachingWorker):
    """One that does both: a result that is kept needs no call, and so no second one."""

    __slots__ = ()
