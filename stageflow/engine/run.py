"""The engine of one run: channels from edges, pools of workers, and the one door through which records enter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Any, Self

from stageflow.channel import Channel
from stageflow.commit import Spend
from stageflow.engine import garbage
from stageflow.engine.attempt import Attempts, asked_for, describe
from stageflow.engine.binding import Binder
from stageflow.engine.cached import AskingGate, Cache, CachedCalls
from stageflow.engine.credits import Credits
from stageflow.engine.crew import Crew
from stageflow.engine.fanout import fan_out
from stageflow.engine.gate import Gate
from stageflow.engine.hedging import Hedges
from stageflow.engine.judge import Judge
from stageflow.engine.limiter import Limiter, limiters_of
from stageflow.engine.pool import Pool
from stageflow.engine.processes import ChildSetup
from stageflow.engine.reentry import reenter
from stageflow.engine.routing import Router
from stageflow.engine.spending import Report, Spending, Till
from stageflow.engine.targets import Elsewhere, Target, target_of
from stageflow.engine.turn import Pace
from stageflow.errors import DefinitionError, RunStopped
from stageflow.events import StageSnapshot
from stageflow.item import STAND_INS, BadRecord, Failure, Item, Lost, Reentry, items_of
from stageflow.plan import Plan
from stageflow.policies.budget import Budget
from stageflow.protocols import Entry
from stageflow.stage import Stage

__all__ = ["Engine"]


class Engine:
    """Runs records through a plan. An async context manager: leaving it ends the input and waits for what was accepted.

    Records come in through :meth:`feed`, which waits while the run is full, and :meth:`feed_many`, which does not. Each
    one that entered is handed to ``settled`` exactly once, unless the run is cancelled, and keeps its credit until
    :meth:`release`.

    Args:
        resources: What the stages take by the names of resources.
        settled: Called on the loop with each record whose outcome is final; it must not block.
        settled_many: The same for several at once; where it is given, some come this way.
        stopped: Called when a stage stops the run; the first call counts.
        broken: Called when a task of the engine fails; whoever feeds must be ended.
        warn: Tells the user something.
        max_open_records: The bound on records admitted and not released; default: what workers and channels hold.
        max_retry_after: Seconds; a service that asks to be left alone for longer stops the run.
        clock: Seconds; default: the running loop's time.
        run_id: The identity of the run, for idempotency keys.
        random: For jitter.
        debug: Tell of handlers that change values they share.
        child_setups: By name what the children of each process stage need.
        elsewhere: Where stages with ``gpus`` run, if not here.
        budget: The money that calls may cost; ``None``: any amount. ``spent``: what earlier runs have spent.
        cache: Results of earlier calls; ``None``: each call is made.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        resources: Mapping[str, Any],
        settled: Callable[[Item], None],
        settled_many: Callable[[list[Item]], None] | None = None,
        stopped: Callable[[RunStopped], None],
        broken: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda message: None,
        max_open_records: int | None = None,
        max_retry_after: float = 600.0,
        clock: Callable[[], float] | None = None,
        run_id: str = "run",
        random: Random | None = None,
        child_setups: Mapping[str, ChildSetup] | None = None,
        elsewhere: Elsewhere | None = None,
        debug: bool = False,
        budget: Budget | None = None,
        spent: Spend | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.plan = plan
        self.credits = Credits(max_open_records or plan.max_open_records)
        self.crew = Crew(broken)
        self.crew.overdue = self._abandon_all
        self._settled = settled
        self._stopped = stopped
        self._warn = warn
        self._max_retry_after = max_retry_after
        self._clock = clock or asyncio.get_running_loop().time
        self._random = random or Random()
        self._run_id = run_id
        self._resources = resources
        self._child_setups = child_setups or {}
        self._elsewhere = elsewhere
        self._cancelled = False
        self._debug = debug
        self._cache = cache
        self._targets: list[Target] = []
        self._router = Router(plan, settled, settled_many)
        self.till = Till(plan, budget=budget, before=spent, stop=self._stop_by_policy, warn=warn)
        limiters = limiters_of({name: stage.rate_limit for name, stage in plan.stages.items()}, self._clock)
        self.pools = {name: self._pool(plan.stages[name], limiters.get(name)) for name in plan.order}
        for name, pool in self.pools.items():
            pool.connect([self.pools[child] for child in plan.children[name]], straight=self._is_straight(name))
            splits = pool.only is None and not pool.last
            # Where items make others ready that are not they themselves, what a turn sends on is not known before.
            stage = plan.stages[name]
            alone = stage.fans_out or stage.hedge is not None or pool.cached is not None
            pool.pace = Pace(ever=not (alone or (splits and self._router.levels)))
        self._first = [self.pools[name].channel for name in plan.first]

    def _pool(self, stage: Stage, limiter: Limiter | None) -> Pool:
        setup = self._child_setups.get(stage.name)
        target = target_of(stage, setup, lambda: pool.left_behind(), self._elsewhere)
        self._targets.append(target)
        # An async function is called as it is: a target around it would cost a call per record.
        called = stage.handler if stage.run == "async" or stage.fans_out else target
        purse = self.till.purses.get(stage.name)
        has_cache = self._cache is not None and stage.name in self._cache.digests
        gate = (AskingGate if has_cache else Gate)(limiter, self._clock, purse)
        binder = self._binder(stage, gate, lambda *told: pool.report(*told))
        attempts = Attempts(stage, self.plan, binder, called)
        pool = Pool(
            stage,
            Channel(stage.queue_size, senders=max(1, len(stage.dependencies))),
            attempts,
            batch_call=binder.batch_call(called) if stage.batch is not None else None,
            gate=gate,
            router=self._router,
            crew=self.crew,
            clock=self._clock,
        )
        if self._cache is not None and has_cache:
            pool.cached = CachedCalls(stage, self._cache, attempts, binder.given(), self._warn)
        pool.spending = Spending(stage, self.till, pool.counters)
        pool.spending.bar = gate.bar
        if purse is not None:
            purse.bar = gate.bar
        pool.judge = Judge(
            stage,
            counters=pool.counters,
            gate=gate,
            random=self._random,
            stop=self._stop_by_policy,
            warn=self._warn,
            clock=self._clock,
            max_retry_after=self._max_retry_after,
        )
        if stage.fans_out:
            attempts.invoke = fan_out(pool, binder.call(called), target.step)
        if stage.hedge is not None:
            again = self._binder(stage, gate, lambda *told: hedges.report(*told))
            hedges = Hedges(pool, stage.hedge, first=attempts.call, second=again.call(called))
            pool.hedges, attempts.call = hedges, hedges.call
        if self._debug:
            attempts.invoke = attempts.watched(attempts.invoke, self._warn)
            if pool.batch_call is not None:
                pool.batch_call = attempts.watched(pool.batch_call, self._warn)
        pool.turn = binder.turn(called) if attempts.is_plain else binder.turn_of(attempts.invoke)
        return pool

    def _binder(self, stage: Stage, gate: Gate, reported: Callable[[Item, int, Report], None]) -> Binder:
        return Binder(stage, self.plan, self._resources, run=self._run_id, reported=reported, limited=gate.heed)

    def _is_straight(self, name: str) -> bool:
        """Whether every item goes on to the one stage below, whatever happened to it elsewhere."""
        children = self.plan.children[name]
        return (
            len(children) == 1
            and len(self.plan.stages[children[0]].dependencies) == 1
            and not self.plan.stages[name].fans_out
        )

    async def __aenter__(self) -> Self:
        for pool, target in zip(self.pools.values(), self._targets, strict=True):
            try:
                await target.check()
            except BaseException as error:
                for each in self._targets:
                    each.close()
                if asked_for(error):
                    raise
                stage = pool.stage
                raise DefinitionError(
                    f'stage "{stage.name}": its worker process could not be set up: {describe(error)}',
                    hint="nothing was read and no output was made",
                    where=stage.where,
                ) from error
        for pool in self.pools.values():
            pool.start_worker()
        garbage.quieten(sum(stage.max_in_flight for stage in self.plan.stages.values()))
        return self

    @property
    def room(self) -> int:
        """How many records can be let in without waiting."""
        room = self.credits.there
        for channel in self._first:
            room = min(room, channel.maxsize - len(channel.items))
        return room

    def try_feed(self, index: int, record: Any) -> bool:
        """Let one record in if that can be done without waiting; else :meth:`feed` it."""
        return bool(self.feed_many([(index, record)]))

    def feed_many(self, entries: Sequence[Entry]) -> int:
        """Let in as many entries as that can be done for without waiting, from the first on; :meth:`feed` the next.

        Returns:
            How many were let in.
        """
        items = items_of(entries[: self.room], len(self._first))
        if items:
            self.credits.take_at_once(len(items))
            for channel in self._first:
                channel.put_all(items)
        return len(items)

    async def wait_for_room(self) -> bool:
        """Wait until several records can be let in, if it is the channels that are full; who feeds does so alone.

        Returns:
            False where there is a credit to wait for, which :meth:`feed` does.
        """
        if not self.credits.there:
            return False
        for channel in self._first:
            await channel.wait_for_room()
        return True

    async def feed(self, index: int, record: Any) -> bool:
        """Let a record in: waits for a credit, then for room in the first channels. That wait is the backpressure.

        Args:
            index: The record's place in its source; its identity.
            record: The record. A :class:`BadRecord` or :class:`Lost` one settles at once as a failure; a
                :class:`Reentry` goes to the stages it is ready for. Each takes a credit like any other.

        Returns:
            False where admission has ended; then the record was not taken.

        A cancellation while it waits for a credit leaves nothing behind. Once the record has a credit the caller must
        let it finish: a record that reached only some of the first stages would never settle.
        """
        if not self.credits.try_take() and not await self.credits.take():
            return False
        if record.__class__ in STAND_INS:
            for item, channel in self._entries(index, record):
                await channel.send(item)
            return True
        first = self._first
        item = Item(index, record, len(first))
        for channel in first:
            if not channel.try_send(item):
                await channel.send(item)
        return True

    def _entries(self, index: int, record: BadRecord | Lost | Reentry) -> list[tuple[Item, Channel]]:
        """What is to be sent where for that which stands in the place of a record."""
        if isinstance(record, BadRecord):
            self._fail(Item(index, record, 0), Failure(None, record.error, 0))
            return []
        if isinstance(record, Lost):
            item = Item(index, record.record, 0)
            item.reentry = record.reentry
            self._fail(item, Failure(None, record.error, 0, retryable=True))
            return []
        if record.parts:
            ready = reenter(index, record, self.plan, self._router)
            return [(item, self.pools[stage].channel) for item, stage in ready]
        item = Item(index, record.record, len(self._first))
        item.reentry = record
        return [(item, channel) for channel in self._first]

    def _fail(self, item: Item, failure: Failure) -> None:
        item.failure = failure
        item.closed = True
        self._settled(item)

    def release(self, count: int = 1) -> None:
        """The outcomes of ``count`` records have been written: as many may enter."""
        self.credits.give(count)

    def stop(self) -> None:
        """Let nothing more in; what was accepted is finished."""
        self.credits.close()

    def cancel(self) -> None:
        """Cancel every attempt. What has not settled stays as it is: not done. Nothing may be fed any more."""
        self._cancelled = True
        self.credits.close()
        self.crew.cancel()

    @property
    def tripped(self) -> str | None:
        """Why a stage's breaker stopped the run, with what is known by now."""
        reasons = (pool.judge.breaker.reason() for pool in self.pools.values())
        found = next((reason for reason in reasons if reason), None)
        return found

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage at this moment, in execution order."""
        return tuple(
            StageSnapshot(
                name=name,
                max_in_flight=pool.stage.max_in_flight,
                queue_size=pool.stage.queue_size,
                in_flight=pool.counters.in_flight,
                queued=min(pool.channel.qsize(), pool.stage.queue_size),
                blocked=pool.blocked,
                passed=pool.counters.passed,
                dead=pool.counters.dead,
                waiting=pool.counters.waiting,
                paused=max(0.0, pool.gate.paused_until - self._clock()),
            )
            for name, pool in self.pools.items()
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.cancel()
            elif not self._cancelled:
                for channel in self._first:
                    self.crew.start(channel.close(), "end of input")
            await self.crew.join()
        finally:
            garbage.restore()
            self.crew.disown()
            for pool in self.pools.values():
                pool.close()
            for target in self._targets:
                target.close()

    def _abandon_all(self) -> None:
        for pool in self.pools.values():
            pool.abandon_all()

    def _stop_by_policy(self, error: RunStopped) -> None:
        self.stop()
        self._stopped(error)
