"""The workers of one stage, and what becomes of the items they bring.

* Workers are started when they are needed: whoever takes an item while nobody waits for the next one starts a
  colleague, up to ``max_in_flight``. A stage that keeps up by itself runs with two.
* An item that waits for its next attempt is with the pool's timers and holds no worker. It keeps the channels below
  open.
* An item that was given up in one branch is not started in another.
* The last worker to leave closes the channels below, when no item waits any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from math import inf
from typing import Any

from stageflow.channel import END, Channel
from stageflow.counters import COUNTED_TOGETHER, StageCounters
from stageflow.engine.attempt import GONE, SKIPPED, Attempts
from stageflow.engine.batches import BatchWorker
from stageflow.engine.cached import CachedCalls, CachingWorker
from stageflow.engine.crew import Crew
from stageflow.engine.deadlines import SWALLOW_GRACE, Deadlines
from stageflow.engine.failing import Failing
from stageflow.engine.gate import Gate
from stageflow.engine.hedging import Hedges, HedgingCachingWorker, HedgingWorker
from stageflow.engine.judge import Judge
from stageflow.engine.lodging import Lodging
from stageflow.engine.routing import Router
from stageflow.engine.spending import Report, Spending, Usage
from stageflow.engine.turn import MOST_ALONE, Pace
from stageflow.engine.worker import Worker
from stageflow.item import Exit, Item, Note
from stageflow.stage import Stage

__all__ = ["GONE", "Pool"]


class Pool:
    """A stage at work.

    Args:
        channel: Where its items come from.
        attempts: How its handler is called.
        batch_call: How it is called with lists; for a stage with batches.
        gate: What its calls pass before they start.
        crew: Where its tasks are started.
        clock: Seconds, from any origin.

    Attributes:
        workers: How many there are, abandoned ones not counted. ``busy``: those that have something in hand.
        lodging: Items that were finished here and have no room below.
        only: The channel of the one stage below, where every item goes on to it and to nothing else.
        last: No stage comes after this one.
        judge: Decides what failures mean for the record, the stage and the run. ``failing``: carries it out.
        crew: Where its tasks are.
        turn: Calls the handler for one item of a bulk after the other; see :meth:`Binder.turn`.
        pace: How many such a bulk may have.
        cached: The calls that need not be made; ``None`` where the stage has no cache.
        reported: What handlers have told of their calls, and which of those have money set aside, till it is settled.
        spending: What the calls cost.
        hedges: Where calls that take long are made a second time, those; else ``None``.
    """

    def __init__(
        self,
        stage: Stage,
        channel: Channel,
        attempts: Attempts,
        *,
        batch_call: Callable[[list[Item]], Any] | None,
        gate: Gate,
        router: Router,
        crew: Crew,
        clock: Callable[[], float],
    ) -> None:
        self.stage = stage
        self.name = stage.name
        self.channel = channel
        self.attempts = attempts
        self.batch_call = batch_call
        self.gate = gate
        self.judge: Judge
        self.turn: Callable[[list[Item], Iterator[Item]], Coroutine[Any, Any, Any]]
        self.pace: Pace
        self.router = router
        self.clock = clock
        self.counters = StageCounters()
        self.failing = Failing(self)
        self.workers = 0
        self.busy = 0
        self.hedges: Hedges | None = None
        self.lodging = Lodging(channel, self.counters, clock, self.attend_again)
        self.cached: CachedCalls | None = None
        self.only: Channel | None = None
        self.last = True
        self.crew = crew
        attempts.fenced = lambda: asyncio.current_task() in crew.abandoned
        self._below: dict[str, Pool] = {}
        self._channels: list[Channel] = []
        self._present: dict[Worker, None] = {}  # in the order in which they were started
        self._returning: dict[int, asyncio.TimerHandle] = {}
        self._returned = asyncio.Event()
        self._late = 0
        self.reported: dict[Item, Usage] = {}
        self.spending: Spending
        self._told_late = Usage()
        self._deadlines = Deadlines(stage.timeout, self._present, clock=clock, abandon=self._abandon)

    def connect(self, below: Sequence[Pool], *, straight: bool) -> None:
        """Say which pools come next; before the first item.

        Args:
            straight: Each item goes on to the one stage below and to nothing else, whatever happened.
        """
        self._below = {pool.stage.name: pool for pool in below}
        self._channels = [pool.channel for pool in below]
        self.last = not below
        if straight:
            (child,) = below
            self.only = child.channel

    @property
    def received(self) -> int:
        """Items that were taken from the channel, by the channel's own count."""
        return self.channel.sent - sum(item is not END for item in self.channel.items)

    @property
    def blocked(self) -> int:
        """Items that were finished and have no room below."""
        return self.counters.blocked + len(self.lodging.since)

    @property
    def cancelled(self) -> bool:
        """The run is cancelled: no call may follow."""
        return self.crew.cancelled

    def close(self) -> None:
        """The run is over: what still waits for another attempt is given back."""
        for timer in self._returning.values():
            timer.cancel()
        self.failing.close()
        given_back = len(self._returning) + len(self.channel.again)
        self.counters.cancelled += given_back
        self.counters.waiting -= len(self._returning)
        self._returning.clear()
        self.channel.again.clear()
        self._deadlines.stop()
        self.lodging.close()
        if self.hedges is not None:
            self.hedges.close()
        for item in list(self.reported):  # calls that were cancelled with the run
            self._settle([item], cut=True)
        self.spending.settle([self._told_late])

    # Workers

    def current_worker(self) -> Worker:
        """The worker whose task this is."""
        task = asyncio.current_task()
        return next(worker for worker in self._present if worker.task is task)

    def resume(self, worker: Worker, since: float) -> None:
        """The call of a worker goes on, or begins behind others of the same turn; it counts from ``since``."""
        self._deadlines.resume(worker, since)

    def attend(self) -> None:
        """Whoever took an item sees to it that somebody looks for the next; as many as are busy, where calls take long.

        Who would have to leave again is not called: finished items with no room below take up places. And at a gate
        one comes after the other, so that no stage fills the line before a limit that it shares.
        """
        most = self.stage.max_in_flight
        one = self.pace.brief or self.gate.shut
        wanted = 1 if one else max(1, min(self.busy, len(self.channel.items)))
        wanted = min(wanted, most - self.busy - len(self.lodging.since))
        self.channel.wake(wanted)
        while self.channel.attended < wanted and self.workers < most and not self.channel.parked:
            self.start_worker()

    def is_crowded(self, worker: Worker) -> bool:
        """Whether finished items that have no room below take up the place of this worker."""
        return self.busy + len(self.lodging.since) >= self.stage.max_in_flight + (not worker.idle)

    @property
    def has_place(self) -> bool:
        """Whether there is a place for one more call."""
        return self.busy + len(self.lodging.since) < self.stage.max_in_flight

    def attend_again(self) -> None:
        """A place has become free for a worker: an item has found room below, or a second call is over."""
        channel = self.channel
        if self.workers and (channel.items or channel.again) and not (channel.attended or self.crew.cancelled):
            self.attend()

    def start_worker(self) -> None:
        self.channel.attended += 1
        self.workers += 1
        worker = self._new_worker()
        self._present[worker] = None
        worker.task = self.crew.start(worker.run(), f"{self.stage.name} worker {self.workers}")
        worker.task.add_done_callback(lambda _: self._present.pop(worker, None))

    def _new_worker(self) -> Worker:
        if self.stage.batch is not None:
            return BatchWorker(self)
        if self.hedges is not None:
            return HedgingWorker(self) if self.cached is None else HedgingCachingWorker(self)
        return Worker(self) if self.cached is None else CachingWorker(self)

    def enter(self) -> None:
        """A worker turns to its next call. Peaks are at such moments, since within its turn nobody else moves."""
        counters = self.counters
        counters.in_flight += 1
        if counters.in_flight > counters.peak_in_flight:
            counters.peak_in_flight = counters.in_flight
        self._deadlines.arm()

    async def dismiss(self, worker: Worker) -> bool:
        """A worker has met the end marker: it leaves, unless items have come back for another attempt.

        The last one waits for those that will. When it leaves it closes the channels below.
        """
        self.channel.leave()
        while self.workers == 1 and (self._returning or self._late) and not self.channel.again:
            self._returned.clear()
            await self._returned.wait()
        if self.channel.again:
            return False
        self.workers -= 1
        self._present.pop(worker, None)
        if self.workers == 0:
            self._deadlines.stop()
            for pool in self._below.values():
                await pool.channel.close()
        return True

    def _abandon(self, worker: Worker) -> None:
        """A call has outlived its timeout and its cancellation: give its item up and its place away."""
        assert worker.task is not None, "a worker without a task"
        items = worker.items if isinstance(worker.items, list) else [worker.items]
        worker.abandoned = True
        self.crew.abandon(worker.task)
        self._present.pop(worker, None)
        self.counters.in_flight -= 1
        self.busy -= not worker.idle
        self.workers -= 1
        if self.reported:
            self._settle(items, cut=True)
        self.left_behind()
        if self.crew.cancelled:
            self.counters.cancelled += len(items) + len(worker.rest)
            return
        for item in items:
            self._late += 1
            self.crew.start(self._conclude_late(item), f"{self.stage.name} abandoned")
        for item in worker.rest:
            self.channel.requeue(item)
        self.start_worker()

    def abandon_all(self) -> None:
        """The run was cancelled, and some calls have not ended."""
        for worker in tuple(self._present):
            self._abandon(worker)

    def left_behind(self) -> None:
        """A call did not end although it was cancelled."""
        self.counters.abandoned += 1
        self.judge.abandoned(self.counters.abandoned, SWALLOW_GRACE)

    async def _conclude_late(self, item: Item) -> None:
        try:
            timeout = self.failing.timeout()
            await self.conclude(item, await self.failing.outcome(item, timeout, worker=None))
        finally:
            self._late -= 1
            self._returned.set()

    # Turns

    def reach(self) -> int:
        """How many items the next turn can have: they are there, may pass the gate, and fit below."""
        most = self.pace.size
        if len(self.counters.calls) >= COUNTED_TOGETHER:
            self.counters.count_calls()
        if not self.pace.ever:
            self.pace.alone = MOST_ALONE
            return 0
        for below in self._channels:
            room = below.maxsize - len(below.items)
            if room < most:
                most = room
        if most > 0 and self.gate.shut:
            most = min(most, self.gate.open_for)
        if most > 0:
            return self.channel.reach(most)
        if self.pace.size == 1:
            self.pace.broke_off(0)  # to ask again for each item would cost more than a turn of one could save
        return 0

    def pass_on_all(self, items: list[Item]) -> None:
        """Send on items that a turn has finished; there is room for them."""
        if self.only is not None:
            self.only.put_all(items)
        elif self.last:
            self.router.leave_all(items)
        else:
            for name, ready in self.router.next_of_all(items, self.stage.name):
                if ready:
                    self._below[name].channel.put_all(ready)

    # What becomes of an item

    async def depart(self, item: Item, value: Any) -> None:
        """Deal with an item that does not simply go on; see :class:`Exit`."""
        counters, name = self.counters, self.stage.name
        kind = value.kind if value.__class__ is Exit else "late"
        if kind == "wait":
            return
        if item.failure is not None and item.failure.stage == name and kind == "gone" and not item.withheld:
            counters.dead += 1
        elif kind == "gone" or (item.closed and kind != "spread"):
            counters.cancelled += 1
        elif kind == "drop":
            counters.dropped += 1
            item.dropped = (name, value.value)
            item.close()
        else:
            counters.passed += 1
            await self._depart_onwards(item, kind, value)
            return
        self.router.leave(item)

    async def _depart_onwards(self, item: Item, kind: str, value: Exit) -> None:
        name = self.stage.name
        if kind == "skip":
            self.counters.skipped += 1
            item.note(name, Note("skipped", None, 0))
            if not self.stage.fans_out:
                item.results[name] = None
                await self.pass_on(item)
                return
            value = Exit("spread", [None])
        if kind == "done":
            item.note(name, Note("done", None, item.attempt(name)))
            item.results[name] = value.value
            self.router.cut(item, name)
        if value.kind == "spread":
            # What stands in for a generator's children is its only child, and what is below runs for that.
            for each in value.value or ():
                await self._send_child(item, each)
        self.router.leave(item)

    async def conclude(self, item: Item, value: Any) -> None:
        """Send an item on with the result of its call, or let it leave."""
        if value.__class__ is Exit or item.closed:
            await self.depart(item, value)
            return
        self.counters.passed += 1
        item.results[self.stage.name] = value
        await self.pass_on(item)

    async def pass_on(self, item: Item) -> None:
        """Send an item, and whoever waited for it, to each stage below that is ready."""
        ready = self.router.next(item, self.stage.name)
        self.router.leave(item)
        for each, name in ready:
            channel = self._below[name].channel
            if not channel.try_send(each):
                await self.send_blocked(channel, each)

    async def spread(self, item: Item, value: Any, worker: Worker) -> None:
        """Send on a child that a generator yielded; the time of the generator's call stands still meanwhile."""
        since, worker.since = worker.since, inf
        began = self.clock()
        await self._send_child(item, value)
        self.resume(worker, since + self.clock() - began)

    async def _send_child(self, item: Item, value: Any) -> None:
        child = self.router.child(item, self.stage.name, value)
        if value.__class__ is Exit:
            kind, child.results[self.stage.name] = value.kind, value.value
            if kind == "drop":
                child.dropped = (self.stage.name, value.value)
                child.close()
            else:
                child.note(self.stage.name, Note("done", None, 1))
                self.router.cut(child, self.stage.name)
        if child.closed:
            self.router.leave(child)
        else:
            await self.pass_on(child)

    async def send_blocked(self, channel: Channel, item: Item) -> None:
        counters = self.counters
        counters.in_flight -= 1
        counters.blocked += 1
        started = self.clock()
        place = channel.stand_in_line(item)
        purse = self.spending.purse if self.stage.fans_out else None
        if purse is not None and not any(each in self.reported for each in item.lineage()):
            purse = None
        try:
            if purse is not None:  # a generator's call goes on, and keeps the money that was set aside for it
                purse.hold_up(1)
            await place[1]
        except asyncio.CancelledError:
            if channel.step_out(place):
                raise
        finally:
            if purse is not None:
                purse.hold_up(-1)
            self.enter()
            counters.blocked -= 1
            counters.blocked_seconds += self.clock() - started

    # Attempts after the first

    def count_attempt(self, item: Item) -> None:
        """The item is about to be tried once more."""
        name = self.stage.name
        if item.attempts is None:
            item.attempts = {}
        item.attempts[name] = item.attempts.get(name, 1) + 1
        self.counters.retries += 1

    def return_later(self, item: Item, seconds: float) -> None:
        """The item comes again after so many seconds."""
        self.count_attempt(item)
        self.counters.waiting += 1
        self._returning[id(item)] = asyncio.get_running_loop().call_later(seconds, self._return, item)

    def _return(self, item: Item) -> None:
        del self._returning[id(item)]
        self.counters.waiting -= 1
        self._returned.set()
        self.channel.requeue(item)
        if not (self.channel.attended or self.crew.cancelled) and self.workers < self.stage.max_in_flight:
            self.start_worker()

    # Tokens and money

    def report(self, item: Item, attempt: int, report: Report) -> None:
        """A handler, on whatever thread, tells what its call used. One that was given up may do so when the item is
        tried again already."""
        usage = self._told_late
        if attempt == item.attempt(self.stage.name):
            usage = self.reported.get(item) or self.reported.setdefault(item, Usage())
        usage.reports.append(report)

    def set_aside(self, item: Item) -> None:
        """Money was set aside for the call that begins."""
        self.reported.setdefault(item, Usage()).paid = True

    def settle_tokens(self, worker: Worker, items: Sequence[Item], value: Any = None) -> None:
        """Settle what a call used with what was reserved for it; one that told nothing keeps its estimate of tokens,
        and counts in full for a budget.

        Args:
            value: What it gave.
        """
        if value is SKIPPED and items[0] in self.reported:
            self.reported[items[0]].uncalled = True
        tokens = self._settle(items, cut=worker.timed_out)
        if tokens is not None:
            self.gate.settle(worker.reserved, tokens)

    def _settle(self, items: Sequence[Item], *, cut: bool) -> int | None:
        """Take what is known of a call into the account. Returns the tokens it told of; ``None``: it told nothing."""
        used = [usage for item in items if (usage := self.reported.pop(item, None)) is not None]
        if not used:
            return None
        used[0].cut = used[0].cut or cut
        return self.spending.settle(used)
