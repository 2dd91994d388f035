"""The life of a replica: a whole run of its own, whose source is leased shards and whose output commits them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable

from stageflow.cluster.commits import Commits
from stageflow.cluster.engines import ReplicaSetup
from stageflow.cluster.leasing import Leases
from stageflow.cluster.messages import Orders, Report
from stageflow.cluster.plan import ShardPlan
from stageflow.cluster.reading import LeasedShards
from stageflow.cluster.writing import ShardOutput
from stageflow.engine.targets import Elsewhere
from stageflow.engine.watch import watch_loop
from stageflow.entry import guarded
from stageflow.errors import RequestError, RunStopped, StageflowError, StorageError
from stageflow.events import Event, RecordDead, RunStarted, StopRequested, Warned
from stageflow.fingerprint import changes, job_identity
from stageflow.loader import load
from stageflow.replicas.messages import Beat, Open, Stopped
from stageflow.runner import Run
from stageflow.stores import store_of

__all__ = ["Fenced", "run_replica"]


class Fenced(RunStopped):
    """The replica was taken for lost: what it had is somebody else's by now."""


async def run_replica(
    setup: ReplicaSetup, name: str, ask: Callable[[Report], Awaitable[Orders]], models: Elsewhere | None = None
) -> None:
    """Run until there is no more to do, or the coordinator says so.

    Args:
        name: Its own, which no other replica of the run ever had.
        ask: Brings a report to the coordinator and its answer back. It bears with a coordinator that is away for a
            while, and raises where that is over.
        models: Where stages with ``gpus`` run; default: in processes of this machine.

    Raises:
        StageflowError: What stops the whole run: the job can't be loaded, say. The coordinator was told.
        Fenced: It was taken for lost.
    """
    os.environ.update(setup.env)
    await _Replica(setup, name, ask, models).run()


class _Replica:
    """Between the coordinator and the run."""

    def __init__(
        self, setup: ReplicaSetup, name: str, ask: Callable[[Report], Awaitable[Orders]], models: Elsewhere | None
    ) -> None:
        store = store_of(setup.store)
        shards = ShardPlan.read(store)
        if shards is None:
            raise RequestError(f"there is no plan in {setup.store}", hint="can every machine reach it?")
        job = load(setup.job.reference)
        plan = job.pipeline.plan(setup.job.overrides, setup.job.params)
        if different := changes(shards.job, job_identity(plan)):
            raise RequestError(
                f"the job is another one on the machine of a replica: {', '.join(different)}",
                hint="every machine needs the same files and the same Python",
            )
        self._leases = Leases(
            name, ask, beat_seconds=setup.beat_seconds, beat=self._state, dropped=self._drop, ordered=self._obey
        )
        self._output = ShardOutput(
            Commits(store), shards.run, committed=self._leases.committed, failed=lambda error: self._run.stop(error)
        )
        options = dataclasses.replace(setup.options, listeners=(self,))
        source = LeasedShards(shards, self._leases, self._output, strict=options.strict)
        self._run = Run(plan, source, self._output.ends(), options, job.pipeline._prepare, models=models)
        self._talking: asyncio.Task[None] | None = None
        self._fenced = False

    async def run(self) -> None:
        """Run, and say goodbye."""
        failure: StageflowError | None = None
        try:
            try:
                with watch_loop(self._run.warn, lambda: self._run.started):
                    await guarded(self._run.execute())
            except StageflowError as error:
                failure = error
            self._tell_stopped(failure or self._run.stopped_by)
            await self._leave()
        finally:
            if self._talking is not None:
                self._talking.cancel()
                await asyncio.gather(self._talking, return_exceptions=True)
        if self._fenced:
            raise Fenced("it was taken for lost")
        if failure is not None:
            raise failure

    async def _leave(self) -> None:
        if self._talking is not None:
            await self._leases.fall_silent(self._talking)
        if not self._fenced:
            await self._leases.report(leaving=True)

    def _tell_stopped(self, error: StageflowError | None) -> None:
        """What ends the run here ends it everywhere, unless it came from there."""
        if error is not None and not isinstance(error, _AskedToStop) and not self._fenced:
            self._leases.stop(Stopped.of(error))

    async def _talk(self) -> None:
        try:
            await self._leases.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises: there is nobody to work for
            self._fenced = True
            self._run.stop(StorageError(f"the coordinator is gone: {error}"))
            self._run.cancel()

    def on_event(self, event: Event) -> None:
        """What happens in the run, for whoever started it."""
        if isinstance(event, RunStarted):
            assert self._run.work is not None, "a run that has started has work"
            self._leases.limit(self._run.work.limiters())
            self._talking = asyncio.create_task(self._talk(), name="coordinator")
        elif isinstance(event, StopRequested):
            self._tell_stopped(self._run.stopped_by)
            self._leases.end()
        elif isinstance(event, Warned):
            self._leases.tell(event)
        elif isinstance(event, RecordDead):
            told = {name: value for name, value in event.letter.items() if name not in ("record", "results", "retry")}
            self._leases.tell(RecordDead(told))

    def _drop(self, number: int) -> None:
        self._output.forget(number)

    def _obey(self, orders: Orders) -> None:
        if orders.fenced and not self._fenced:
            self._fenced = True
            self._leases.end()
            self._run.stop(Fenced("it was taken for lost"))
            self._run.cancel()
        elif orders.cancel and self._run.stopped_by is None:
            self._run.stop(_AskedToStop("stopped"))
            self._run.cancel()

    def _state(self) -> Beat | None:
        work = self._run.work
        if work is None or not work.begun:
            return None
        return Beat(Open(work.open), work.peak_open, work.snapshot(), work.accounts())


class _AskedToStop(RunStopped):
    """The driver has asked the run to stop."""
