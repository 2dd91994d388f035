"""The engine of one run: channels from edges, pools in one task group, and the one door through which records enter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from stageflow.channel import Channel
from stageflow.engine.attempt import Attempts, describe
from stageflow.engine.credits import Credits
from stageflow.engine.pool import Pool
from stageflow.engine.processes import ChildSetup
from stageflow.engine.targets import Target, target_of
from stageflow.errors import RunStopped
from stageflow.events import StageSnapshot
from stageflow.item import BadRecord, Failure, Item
from stageflow.plan import Plan

__all__ = ["Engine"]


class Engine:
    """Runs records through a plan. An async context manager: leaving it ends the input and waits for what was accepted.

    Records come in through :meth:`feed`, which waits while the run is full; each one that entered is handed to
    ``settled`` exactly once, unless the run is cancelled, and keeps its credit until :meth:`release`.

    Args:
        resources: What the stages take by the names of resources.
        settled: Called on the loop with each item whose outcome is final; it must not block.
        stopped: Called once when a stage stops the run (``on_error="abort"``).
        max_open_records: The bound on records admitted and not released; default: what workers and channels hold.
        clock: Seconds; default: the running loop's time.
        run_id: The identity of the run, for idempotency keys.
        child_setups: By name what the children of each process stage need.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        resources: Mapping[str, Any],
        settled: Callable[[Item], None],
        stopped: Callable[[RunStopped], None],
        max_open_records: int | None = None,
        clock: Callable[[], float] | None = None,
        run_id: str = "run",
        child_setups: Mapping[str, ChildSetup] | None = None,
    ) -> None:
        self.plan = plan
        self.credits = Credits(max_open_records or plan.max_open_records)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled = settled
        self._stopped = stopped
        self._targets: list[Target] = []
        self._cancelled = False
        clock = clock or asyncio.get_running_loop().time
        self.pools: dict[str, Pool] = {}
        for name in plan.order:
            stage = plan.stages[name]
            target = target_of(stage, (child_setups or {}).get(name))
            self._targets.append(target)
            # A coroutine function is called as it is: a target around it would cost a call per record.
            called = stage.handler if stage.run == "async" else target
            self.pools[name] = Pool(
                stage,
                Channel(stage.queue_size, senders=max(1, len(stage.dependencies))),
                Attempts(stage, plan, resources, called, run=run_id, aborted=self._aborted),
                start=self._start_worker,
                settled=settled,
                clock=clock,
            )
        for name, pool in self.pools.items():
            pool.connect([self.pools[child] for child in plan.children[name]])
        self._first = [self.pools[name].channel for name in plan.first]

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for pool in self.pools.values():
            pool.start_worker()
        return self

    async def feed(self, index: int, record: Any) -> bool:
        """Let a record in: waits for a credit, then for room in the first channels. That wait is the backpressure.

        Args:
            index: The record's place in its source; its identity.
            record: The record. A :class:`BadRecord` settles at once as a failure; it takes a credit like any other.

        Returns:
            False where admission has ended; then the record was not taken.

        A cancellation while it waits for a credit leaves nothing behind. Once the record has a credit the caller must
        let it finish: a record that reached only some of the first stages would never settle.
        """
        if not self.credits.try_take() and not await self.credits.take():
            return False
        first = self._first
        item = Item(index, record, len(first))
        if type(record) is BadRecord:
            item.failure = Failure(None, record.error, 0)
            self._settled(item)
            return True
        for channel in first:
            if not channel.try_send(item):
                await channel.send(item)
        return True

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
        for task in self._tasks:
            task.cancel()

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage at this moment, in execution order."""
        return tuple(
            StageSnapshot(
                name=name,
                max_in_flight=pool.stage.max_in_flight,
                queue_size=pool.stage.queue_size,
                in_flight=pool.counters.in_flight,
                queued=min(pool.channel.qsize(), pool.stage.queue_size),
                blocked=pool.counters.blocked,
                passed=pool.counters.passed,
                dead=pool.counters.dead,
            )
            for name, pool in self.pools.items()
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and not self._cancelled:
                for channel in self._first:
                    self._start(channel.close(), "end of input")
            await self._group.__aexit__(kind, error, trace)
        finally:
            for target in self._targets:
                target.close()

    def _start_worker(self, pool: Pool) -> None:
        self._start(pool.work(), f"{pool.stage.name} worker {pool.workers}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _aborted(self, index: int, stage: str, error: BaseException) -> None:
        self.stop()
        self._stopped(
            RunStopped(
                f'stage "{stage}": record {index} failed: {describe(error)}',
                hint='the stage says on_error="abort"; the record is not done and was not dead-lettered',
            )
        )
