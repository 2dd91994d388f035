"""The workers of one stage.

A worker receives an item, calls the handler, and sends the item on to every stage that is ready for it. The rules:

* Workers are started when they are needed: whoever takes an item while nobody waits for the next one starts a
  colleague, up to ``max_in_flight``. A stage that keeps up by itself runs with two.
* A worker goes on as long as there are items, without leaving its turn of the loop, unless the handler or a full
  channel makes it wait. That is what makes a stage that does not wait cheap.
* Whether anything of an item is still queued or running is one number, ``item.live``. Whoever brings it to zero
  settles the item.
* An item that was given up in one branch is not started in another.
* The last worker to leave closes the channels below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from stageflow.channel import END, Channel
from stageflow.counters import INSTANT, StageCounters
from stageflow.engine.attempt import GIVEN_UP, Attempts
from stageflow.item import Item
from stageflow.stage import Stage

__all__ = ["Pool"]


class Pool:
    """A stage at work.

    Args:
        channel: Where its items come from.
        attempts: How its handler is called.
        start: Starts a worker task in the run's task group.
        settled: Called with each item of which nothing is queued or running any more.
        clock: Seconds, from any origin.
    """

    def __init__(
        self,
        stage: Stage,
        channel: Channel,
        attempts: Attempts,
        *,
        start: Callable[[Pool], None],
        settled: Callable[[Item], None],
        clock: Callable[[], float],
    ) -> None:
        self.stage = stage
        self.channel = channel
        self.counters = StageCounters()
        self.workers = 0
        self._attempts = attempts
        self._start = start
        self._settled = settled
        self._clock = clock
        self._children: Sequence[Pool] = ()
        self._only: Channel | None = None

    def connect(self, children: Sequence[Pool]) -> None:
        """Say which pools come next; before the first item."""
        self._children = children
        if len(children) == 1 and len(children[0].stage.dependencies) == 1:
            self._only = children[0].channel

    @property
    def received(self) -> int:
        """Items that were taken from the channel, by the channel's own count."""
        return self.channel.sent - sum(item is not END for item in self.channel.items)

    def start_worker(self) -> None:
        self.channel.attended = True
        self.workers += 1
        self._start(self)

    async def work(self) -> None:
        """A worker's life.

        Items that the handler answers at once are counted when the turn ends, many at a time: ``quick`` of them since
        ``mark``. The end of one call is the beginning of the next, so that each costs one look at the clock.
        """
        channel, counters, clock = self.channel, self.counters, self._clock
        try_receive, invoke, settled = channel.try_receive, self._attempts.invoke, self._settled
        only, last = self._only, not self._children
        limit, name = self.stage.max_in_flight, self.stage.name
        quick = 0
        idle = True
        mark = now = 0.0
        channel.attended = False  # it was on this worker's account while it was on its way
        while True:
            item = try_receive()
            if item is None:
                if not idle:
                    counters.count_instant(quick, now - mark)
                    counters.in_flight -= 1
                    idle = True
                item = await channel.receive()
            if item is END:
                break
            if idle:
                self._enter()
                quick, mark, idle = 0, (now := clock()), False
            if not channel.attended:
                if channel.parked:
                    channel.wake()
                elif self.workers < limit:
                    self.start_worker()
            if item.failure is not None:
                counters.cancelled += 1
                self._leave(item)
                continue
            started = now
            try:
                value = await invoke(item)
            except BaseException as error:  # noqa: BLE001 - the handler is foreign code; Attempts.failed sorts it out
                counters.count_instant(quick, started - mark)
                quick, mark = 0, started
                value = await self._failed(item, error, started)
            now = clock()
            if now - started < INSTANT and item.failure is None:
                quick += 1
            else:
                counters.count_instant(quick, started - mark)
                counters.count_call(now - started)
                quick, mark = 0, now
                if item.failure is not None:
                    self._count_end(item, value)
                    self._leave(item)
                    continue
                counters.passed += 1
            item.results[name] = value
            if only is not None:
                if not only.try_send(item):
                    counters.count_instant(quick, now - mark)
                    await self._send_blocked(only, item)
                    quick, mark = 0, (now := clock())
            elif last:
                item.live -= 1
                if not item.live:
                    settled(item)
            else:
                counters.count_instant(quick, now - mark)
                await self._fan(item)
                quick, mark = 0, (now := clock())
        if not idle:
            counters.count_instant(quick, now - mark)
            counters.in_flight -= 1
        await self._end()

    async def _failed(self, item: Item, error: BaseException, started: float) -> object:
        try:
            value = await self._attempts.failed(item, error)
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            self.counters.count_call(self._clock() - started)
            raise
        if value is not GIVEN_UP and item.notes is not None:
            outcome = item.notes[self.stage.name].outcome
            self.counters.degraded += outcome == "degraded"
            self.counters.skipped += outcome == "skipped"
        return value

    def _count_end(self, item: Item, value: object) -> None:
        """The item does not go on: it died here, or in another branch while the handler was at work."""
        died_here = value is GIVEN_UP and item.failure is not None and item.failure.stage == self.stage.name
        if died_here and not item.aborted:
            self.counters.dead += 1
        else:
            self.counters.cancelled += 1

    async def _fan(self, item: Item) -> None:
        """Send an item to each stage below that has all its dependencies now."""
        ready = [pool.channel for pool in self._children if _arrive(item, pool.stage)]
        if not ready:
            self._leave(item)
            return
        item.live += len(ready) - 1
        for channel in ready:
            if not channel.try_send(item):
                await self._send_blocked(channel, item)

    async def _send_blocked(self, channel: Channel, item: Item) -> None:
        counters = self.counters
        counters.in_flight -= 1
        counters.blocked += 1
        started = self._clock()
        try:
            await channel.send(item)
        finally:
            self._enter()
            counters.blocked -= 1
            counters.blocked_seconds += self._clock() - started

    def _enter(self) -> None:
        """A worker turns to its next call. Peaks are at such moments, since within its turn nobody else moves."""
        counters = self.counters
        counters.in_flight += 1
        if counters.in_flight > counters.peak_in_flight:
            counters.peak_in_flight = counters.in_flight

    def _leave(self, item: Item) -> None:
        item.live -= 1
        if item.live == 0:
            self._settled(item)

    async def _end(self) -> None:
        self.channel.leave()
        self.workers -= 1
        if self.workers == 0:
            for pool in self._children:
                await pool.channel.close()


def _arrive(item: Item, stage: Stage) -> bool:
    """One more dependency of ``stage`` has finished for the item: is it the last?"""
    needed = len(stage.dependencies)
    if needed == 1:
        return True
    if item.arrived is None:
        item.arrived = {}
    arrived = item.arrived.get(stage.name, 0) + 1
    item.arrived[stage.name] = arrived
    return arrived == needed
