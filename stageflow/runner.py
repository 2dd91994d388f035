"""The composition root: a pipeline, a source and outputs, a loop and listeners become a run and its report.

The order of a run: everything that can be refused is refused (job, input, fields, what earlier runs left); resources
are opened; records that have not settled are fed while one task records what settles; the input ends or the run is
stopped; what was accepted is finished; the output is made final; resources are closed. A stop ends admission only. A
cancellation ends the attempts too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from stageflow.commit import DEAD_IN_PART, InputIdentity, OpenRequest, Resumption
from stageflow.counters import RunCounters
from stageflow.ends import NO_JOB, ends_of, look_ahead, source_of, spooled
from stageflow.engine.processes import ChildSetup, child_setups
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.engine.watch import hear_stray_tasks
from stageflow.errors import StageflowError
from stageflow.events import Event, Resumed, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.feeding import EarlierRuns, Feeder, retries_of
from stageflow.fingerprint import changes, job_identity, upstream_digests
from stageflow.options import Options
from stageflow.plan import Plan
from stageflow.policies.tolerance import Tolerance
from stageflow.recorder import Recorder, failure_watch
from stageflow.report.stats import RunReport, StageReport

__all__ = ["Run"]

log = logging.getLogger("stageflow")


class Run:
    """One run of a job, from its checks to its report.

    Args:
        source, sink: As for :meth:`stageflow.Pipeline.run`.
        prepare: Makes the job's module importable in a worker process; ``None`` where it is anyway.

    Raises:
        RequestError: The source or the sink is nothing that can be read or written.
    """

    def __init__(
        self, plan: Plan, source: Any, sink: Any, options: Options, prepare: Callable[[], object] | None = None
    ) -> None:
        self.plan = plan
        self._prepare = prepare
        self._options = options
        self._source = source_of(spooled(source, sink, options), options)
        self._ends = ends_of(sink, options, tell=self.warn, failed=self.stop)
        self._resumption = Resumption(run="")
        self._before = EarlierRuns(self._resumption)
        self._counters = RunCounters()
        self._recorder: Recorder | None = None
        self._engine: Engine | None = None
        self._feeder: Feeder | None = None
        self._stopped: StageflowError | None = None
        self._input_changed = False
        self._identity: InputIdentity | None = None
        self._opened = self._dead_opened = False
        self._ended = False
        self._cutoff: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._began = 0.0
        self._total: int | None = None
        self._earlier = 0

    async def execute(self) -> RunReport:
        """Run it.

        Returns:
            The account, also where the run was stopped by policy or by :meth:`stop`, and where there was nothing to do.
        """
        self._clock = _clock_of(asyncio.get_running_loop())
        self._task = asyncio.current_task()
        self._source.check()
        self._total = self._source.estimate()
        look_ahead(self.plan, self._source)
        children = child_setups(self.plan, self._prepare)
        self._ends.refuse_same_files(self._source)
        complete = False
        try:
            upstream = self._open()
            if self._resumption.complete:
                return self._report()
            async with opened(self.plan, self.warn) as resources:
                await self._process(resources, children, upstream)
                complete = self._stopped is None
                assert self._not_done() == 0 or not complete, f"{self._not_done()} records were lost"
                # Before the resources are closed: whatever the job's code does then, the output is whole.
                await self._end(complete)
        except asyncio.CancelledError:
            if self._engine is not None or self._stopped is None:
                raise
            raise self._stopped from None  # cancelled by :meth:`cancel`, before there was anything to run
        except BaseExceptionGroup as group:
            error = _first(group)
            if not isinstance(error, StageflowError):
                raise
            raise error from error.__cause__
        finally:
            await self._end(complete)
            if self._cutoff is not None:
                self._cutoff.cancel()
        return self._report()

    def _open(self) -> Mapping[str, str] | None:
        """Open the outputs, and take over what earlier runs did.

        Returns:
            For a run that can be continued, by stage a digest of what its results depend on.

        Raises:
            RequestError, StorageError: It can't be written, or is not what this run could go on with.
        """
        options, source, ends = self._options, self._source, self._ends
        if ends.dead is not None:
            ends.dead.open()
            self._dead_opened = True
        self._identity = source.identity()
        job = job_identity(self.plan) if ends.durable else NO_JOB
        request = OpenRequest(
            input=self._identity,
            first_difference=source.first_difference,
            job=job,
            job_changes=changes,
            order=options.order or "input",
            limit=options.limit,
            fresh=options.fresh,
            retry_failed=options.retry_failed,
            accept_job_change=options.accept_job_change or options.retry_failed,
        )
        found = self._resumption = ends.output.open(request)
        self._opened = not found.complete
        self._before = EarlierRuns(found)
        counters, totals = self._counters, found.totals
        self._earlier = totals.settled  # now, for the ledger goes on adding to them
        counters.read, counters.written = totals.settled, totals.written
        counters.dropped, counters.dead = totals.dropped, totals.dead
        if not found.complete:
            self._tell_resumed(found)
        return upstream_digests(job, self.plan) if ends.durable else None

    def _tell_resumed(self, found: Resumption) -> None:
        notes = [*found.notes, *self._ends.notes]
        if found.letters:
            notes.append(f"dead letters to be tried again: {len(found.letters):,}")
        if self._ends.durable and not self.resumable:
            path = self._source.path
            notes.append(f"{'stdin' if path == '-' else path or 'the input'} cannot be resumed")
        if notes or found.epoch > 1:
            self._emit(Resumed(found.epoch, found.totals.settled, tuple(notes)))

    async def _end(self, complete: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if self._opened:
            self._emit(RunEnded())
        ended = complete and self._feeder is not None and self._feeder.at_end
        if complete and self._source.changed():
            # What was read is whole; but there may be more of it by now.
            self._input_changed, ended = True, False
            self.warn(f"{self._source.path} was changed while it was read")
        try:
            if self._opened:
                await self._ends.output.close(complete=complete, ended=ended)
        finally:
            if self._ends.dead is not None and self._dead_opened:
                await self._ends.dead.close(complete=complete)

    async def _process(
        self, resources: Mapping[str, Any], children: Mapping[str, ChildSetup], upstream: Mapping[str, str] | None
    ) -> None:
        source, ends, found = self._source, self._ends, self._resumption
        recorder = self._recorder = Recorder(
            self.plan,
            ends.output,
            ends.dead,
            self._counters,
            encode=ends.encode,
            encode_letter=ends.encode_letter,
            sized=ends.durable,
            emit=self._emit,
            path=source.path,
            numbered=source.numbered,
            in_order=self._options.order == "input" and not ends.durable,
            retrying=bool(found.letters),
            in_part=lambda index: found.done[index] == DEAD_IN_PART,
            upstream=upstream,
        )
        engine = self._engine = Engine(
            self.plan,
            resources=resources,
            settled=recorder.settled,
            settled_many=recorder.settled_many,
            stopped=self.stop,
            broken=self._cancel_feeder,
            warn=self.warn,
            max_retry_after=self._options.max_retry_after,
            max_open_records=self._options.max_open_records,
            clock=self._clock,
            run_id=found.run,
            child_setups=children,
            debug=self._options.debug,
        )
        recorder.release = engine.release
        recorder.verdict = lambda stage: engine.pools[stage].judge.probation
        recorder.watch = failure_watch(self._options.max_failure_rate, self.stop)
        self._feeder = Feeder(
            source,
            engine,
            recorder,
            self._counters,
            found,
            retries=retries_of(ends.output, found, self.plan, upstream or {}, self.warn),
            options=self._options,
            plan=self.plan,
            warn=self.warn,
            stop=self.stop,
        )
        self._began = self._clock()
        self._emit(RunStarted(self.plan.name, self.snapshot))
        with hear_stray_tasks(self.warn):
            await self._process_with(engine, recorder, self._feeder)
        if self._feeder.damaged is not None and self._stopped is None:
            self._stopped = self._feeder.damaged

    async def _process_with(self, engine: Engine, recorder: Recorder, feeder: Feeder) -> None:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(recorder.write(), name="recorder")
            try:
                async with engine:
                    if self._stopped is not None:
                        engine.stop()
                    await feeder.run()
            finally:
                recorder.close()
            await writer

    # Stopping

    def stop(self, error: StageflowError) -> None:
        """Read no more and finish what was accepted, for at most the grace period. Safe to call again."""
        if self._stopped is not None:
            return
        self._stopped = error
        open_records = 0
        if self._engine is not None:
            self._engine.stop()
            open_records = self._engine.credits.taken
        if self._feeder is not None:
            self._feeder.stop()
        self._emit(StopRequested(str(error), open_records, self._options.grace))
        self._cutoff = asyncio.get_running_loop().call_later(self._options.grace, self.cancel)

    def cancel(self) -> None:
        """Cancel the attempts too: what has settled is written, the rest is not done."""
        if self._engine is not None:
            open_records = self._engine.credits.taken
            if open_records:
                self._emit(StopRequested("cancelled", open_records, 0.0, cancelled=True))
            self._engine.cancel()
            self._ends.output.give_up_waiting()
        elif self._task is not None:
            self._task.cancel()
        self._cancel_feeder()

    def _cancel_feeder(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()

    # What others see

    def snapshot(self) -> Snapshot:
        """The run at this moment."""
        counters, engine = self._counters, self._engine
        return Snapshot(
            seconds=self._clock() - self._began,
            read=counters.read,
            written=counters.written,
            dropped=counters.dropped,
            dead=counters.dead,
            open=engine.credits.taken if engine else 0,
            total=min(self._total, self._options.limit or self._total) if self._total is not None else None,
            stages=engine.snapshot() if engine else (),
        )

    @property
    def started(self) -> bool:
        """The resources are open, and records are read."""
        return self._engine is not None

    @property
    def durable(self) -> bool:
        """Whether what is done is kept in a ledger."""
        return self._ends.durable

    @property
    def stopped_by(self) -> StageflowError | None:
        """What ended the run before its input did."""
        return self._stopped

    @property
    def resumable(self) -> bool:
        """Whether a later run can go on with what this one leaves undone."""
        return self._ends.durable and self._identity is not None

    @property
    def retryable(self) -> bool:
        """Whether a later run can try the dead letters again: the ledger knows of them."""
        return self.resumable and self._ends.dead is None

    def warn(self, message: str) -> None:
        self._emit(Warned(message))

    def _emit(self, event: Event) -> None:
        if not self._options.listeners and isinstance(event, (Warned, Resumed)):
            for message in (event.message,) if isinstance(event, Warned) else event.notes:
                log.warning(message)
        for listener in self._options.listeners:
            try:
                listener.on_event(event)
            except Exception:
                log.exception("a listener failed on %s", type(event).__name__)

    def _not_done(self) -> int:
        counters = self._counters
        return counters.read - counters.written - counters.dropped - counters.dead

    def _reason(self, engine: Engine) -> str:
        """Why the run was stopped, with what is known at its end."""
        tripped = engine.tripped
        if tripped is None:
            return str(self._stopped)
        return f"{tripped}; {'none of them' if self._counters.dead else 'nothing'} was dead-lettered"

    def _exit_code(self) -> int:
        if self._stopped is not None:
            return self._stopped.exit_code
        if self._input_changed:
            return 3
        counters = self._counters
        if not counters.dead:
            return 0
        allowed = self._options.allow_failures
        return 0 if allowed is not None and Tolerance.parse(allowed).allows(counters.dead, counters.read) else 3

    def _report(self) -> RunReport:
        counters, engine, complete = self._counters, self._engine, self._resumption.complete
        assert engine is not None or complete, "a report of a run that did not begin"
        seconds = self._clock() - self._began if engine is not None else 0.0
        stages = {
            name: StageReport.of(
                pool.counters,
                name=name,
                max_in_flight=pool.stage.max_in_flight,
                queue_size=pool.stage.queue_size,
                received=pool.received,
                peak_depth=pool.channel.peak_depth,
                seconds=seconds,
                run=pool.stage.run,
            )
            for name, pool in (engine.pools.items() if engine is not None else ())
        }
        retried = self._recorder.retried if self._recorder is not None else 0
        return RunReport(
            pipeline=self.plan.name,
            read=counters.read,
            blank=self._before.blank_lines(self._source),
            bad=counters.bad,
            written=counters.written,
            dropped=counters.dropped,
            dead=counters.dead,
            not_done=self._not_done(),
            seconds=seconds,
            stopped=self._reason(engine) if self._stopped and engine is not None else None,
            exit_code=self._exit_code(),
            peak_open=engine.credits.peak if engine is not None else 0,
            max_open_records=engine.credits.limit if engine is not None else 0,
            stages=stages,
            earlier=self._earlier - retried,
            already_complete=complete,
        )


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock; for uvloop's, which stands still within a turn and counts milliseconds, the clock behind it."""
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
