"""The work of a run in this process: a feeder, the engine and a recorder, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from stageflow.caching import opened_cache
from stageflow.commit import Resumption
from stageflow.engine.cached import Cache
from stageflow.engine.limiter import Limiter
from stageflow.engine.processes import child_setups
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.engine.watch import hear_stray_tasks
from stageflow.errors import InputDamaged
from stageflow.events import StageSnapshot, StopRequested
from stageflow.feeding import Feeder, retries_of
from stageflow.money import amount_of
from stageflow.policies.budget import Budget
from stageflow.recorder import Recorder, failure_watch, locator
from stageflow.work import StageAccount, WorkRequest

__all__ = ["LocalWork"]

_SPARED = 32
"""The part, one in so many, of the records that may be open which may wait for others before they are written."""


class LocalWork:
    """Records of a source through the engine to an output; see :class:`stageflow.work.Work`.

    Args:
        prepare: Makes the job's module importable in a worker process; ``None`` where it is anyway.

    Raises:
        DefinitionError: A function of a process stage can't be found by its name in another process.
    """

    def __init__(self, request: WorkRequest, prepare: Callable[[], object] | None) -> None:
        self._request = request
        self._children = child_setups(request.plan, prepare)
        self._found = Resumption(run="")
        self._upstream: Mapping[str, str] | None = None
        self._opened = AsyncExitStack()
        self._stopped = False
        self._engine: Engine
        self._recorder: Recorder
        self._feeder: Feeder
        self.begun = False
        self.max_open = 0

    def take_up(self, found: Resumption, upstream: Mapping[str, str] | None) -> None:
        """Say from where to go on."""
        self._found, self._upstream = found, upstream

    async def __aenter__(self) -> Self:
        request = self._request
        async with AsyncExitStack() as opening:
            cache = await opening.enter_async_context(opened_cache(request.plan, request.options, request.warn))
            self._build(await opening.enter_async_context(opened(request.plan, request.warn)), cache)
            self._opened = opening.pop_all()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self._opened.__aexit__(*failure)

    def _build(self, resources: Mapping[str, Any], cache: Cache | None) -> None:
        request, source, ends, options = self._request, self._request.source, self._request.ends, self._request.options
        found, upstream = self._found, self._upstream
        recorder = self._recorder = Recorder(
            request.plan,
            ends.output,
            ends.dead,
            request.counters,
            encode=ends.encode,
            encode_letter=ends.encode_letter,
            sized=ends.durable,
            emit=request.emit,
            path=source.path,
            numbered=source.numbered,
            locate=locator(source),
            in_order=options.order == "input" and not ends.durable,
            retrying=bool(found.letters) or ends.retrying,
            upstream=upstream,
        )
        engine = self._engine = Engine(
            request.plan,
            resources=resources,
            settled=recorder.settled,
            settled_many=recorder.settled_many,
            stopped=request.stop,
            broken=lambda: self._feeder.cancel(),
            warn=request.warn,
            max_retry_after=options.max_retry_after,
            max_open_records=options.max_open_records,
            clock=request.clock,
            run_id=found.run,
            child_setups=self._children,
            elsewhere=request.models,
            debug=options.debug,
            budget=Budget(amount_of(options.budget), found.spend.most) if options.budget is not None else None,
            spent=found.spend,
            cache=cache,
        )
        if ends.durable and request.plan.prices:
            recorder.spend = engine.till.take_spend
            engine.till.changed = recorder.spent
        self.max_open = engine.credits.limit
        recorder.release = engine.release
        recorder.spare = engine.credits.limit // _SPARED
        recorder.verdict = lambda stage: engine.pools[stage].judge.probation
        if hasattr(source, "waits"):
            # There may be no lease before those that were given are whole, with what is held back of them.
            leased: Any = source
            recorder.stalled = lambda: leased.waits and not engine.credits.taken
            leased.began_to_wait = recorder.look
        recorder.watch = failure_watch(options.max_failure_rate, request.stop)
        self._feeder = Feeder(
            source,
            engine,
            recorder,
            request.counters,
            found,
            retries=retries_of(ends.output, found, request.plan, upstream or {}, request.warn),
            options=options,
            plan=request.plan,
            warn=request.warn,
            stop=request.stop,
        )
        self.begun = True

    async def run(self) -> None:
        """Feed, run and record, until all of it has ended."""
        recorder, engine = self._recorder, self._engine
        with hear_stray_tasks(self._request.warn):
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(recorder.write(), name="recorder")
                try:
                    async with engine:
                        if self._stopped:
                            engine.stop()
                        await self._feeder.run()
                finally:
                    recorder.close()
                await writer

    def stop(self) -> None:
        """End admission, and a wait for input."""
        self._stopped = True
        if self.begun:
            self._engine.stop()
            self._feeder.stop()

    def cancel(self) -> None:
        """Cancel every attempt, and a wait for room on a disk."""
        if self.open:
            self._request.emit(StopRequested("cancelled", self.open, 0.0, cancelled=True))
        self._engine.cancel()
        self._request.ends.output.give_up_waiting()
        self._feeder.cancel()

    @property
    def at_end(self) -> bool:
        return self.begun and self._feeder.at_end

    @property
    def damaged(self) -> InputDamaged | None:
        return self._feeder.damaged

    @property
    def given_up(self) -> Sequence[int]:
        """Nothing: whoever works on it is this process."""
        return ()

    @property
    def blank(self) -> int:
        return self._request.source.blank

    @property
    def bad(self) -> int:
        return self._request.counters.bad

    @property
    def retried(self) -> int:
        return self._recorder.retried if self.begun else 0

    @property
    def open(self) -> int:
        return self._engine.credits.taken if self.begun else 0

    @property
    def peak_open(self) -> int:
        return self._engine.credits.peak if self.begun else 0

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage at this moment."""
        return self._engine.snapshot() if self.begun else ()

    def limiters(self) -> dict[str, Limiter]:
        """The rate limits, each by the first stage under it."""
        named: dict[Limiter, str] = {}
        for name, pool in self._engine.pools.items() if self.begun else ():
            if pool.gate.limiter is not None:
                named.setdefault(pool.gate.limiter, name)
        return {name: limiter for limiter, name in named.items()}

    def accounts(self) -> dict[str, StageAccount]:
        """Each stage's account."""
        if not self.begun:
            return {}
        return {
            name: StageAccount(pool.counters, pool.received, pool.channel.peak_depth)
            for name, pool in self._engine.pools.items()
        }

    def why_stopped(self) -> str | None:
        """What the breaker says that stopped the run."""
        return self._engine.tripped if self.begun else None
