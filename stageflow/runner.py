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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stageflow.caching import cache_path, check_cache
from stageflow.commit import InputIdentity, OpenRequest, Resumption
from stageflow.counters import RunCounters
from stageflow.ends import NO_JOB, ends_of, look_ahead, source_of, spooled
from stageflow.engine.targets import Elsewhere
from stageflow.errors import StageflowError, StorageError
from stageflow.events import Event, Resumed, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.feeding import EarlierRuns
from stageflow.fingerprint import changes, job_identity, upstream_digests
from stageflow.forecast import forecast
from stageflow.local import LocalWork
from stageflow.money import units
from stageflow.options import Options
from stageflow.placing import placed
from stageflow.plan import Override, Plan
from stageflow.policies.tolerance import Tolerance
from stageflow.pricing import refuse_unreservable
from stageflow.report.stats import Forecast, RunReport, StageReport
from stageflow.work import JobOrigin, StageAccount, Work, WorkRequest

if TYPE_CHECKING:
    from stageflow.cluster.sharded import Sharded

__all__ = ["Run"]

log = logging.getLogger("stageflow")


class Run:
    """One run of a job, from its checks to its report.

    Args:
        source, sink: As for :meth:`stageflow.Pipeline.run`.
        prepare: Makes the job's module importable in a worker process; ``None`` where it is anyway.
        elsewhere: Where another process finds the job, with further settings.
        models: Where stages with ``gpus`` run, if not in processes of this machine.

    Raises:
        RequestError: The source or the sink is nothing that can be read or written, or there is a budget for a job of
            which it can't be said what its calls may cost.
    """

    def __init__(
        self,
        plan: Plan,
        source: Any,
        sink: Any,
        options: Options,
        prepare: Callable[[], object] | None = None,
        elsewhere: Callable[[Sequence[Override]], JobOrigin] | None = None,
        models: Elsewhere | None = None,
    ) -> None:
        if options.budget is not None:
            refuse_unreservable(plan)
        self.plan = plan
        self._prepare = prepare
        self._elsewhere = elsewhere
        self._models = models
        self._options = options
        self._sharded = _sharded(plan, source, sink, options, self.stop)
        if self._sharded is not None:
            self._ends, self._source = self._sharded.ends, self._sharded.source
        else:
            self._ends = ends_of(sink, options, tell=self.warn, failed=self.stop)
            self._source = source_of(spooled(source, sink, options), options, resumable=self._ends.durable)
        self._resumption = Resumption(run="")
        self._before = EarlierRuns(self._resumption)
        self._counters = RunCounters()
        self._work: Work | None = None
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
        check_cache(self.plan, self._options, self.warn)
        if hasattr(self._source, "place") and self._options.processes > 1:
            self._ends = placed(self._ends, self._source.place)
        work = self._work = self._plan_work()
        self._ends.refuse_same_files(self._source)
        complete = False
        try:
            upstream = self._open()
            if self._resumption.complete:
                return self._report()
            work.take_up(self._resumption, upstream)
            async with work:
                await self._do(work)
                complete = self._stopped is None
                assert self._not_done() == 0 or not complete, f"{self._not_done()} records were lost"
                # Before the resources are closed: whatever the job's code does then, the output is whole.
                await self._end(complete)
        except asyncio.CancelledError:
            if work.begun or self._stopped is None:
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

    def _plan_work(self) -> Work:
        request = WorkRequest(
            plan=self.plan,
            source=self._source,
            ends=self._ends,
            options=self._options,
            counters=self._counters,
            clock=self._clock,
            emit=self._emit,
            warn=self.warn,
            stop=self.stop,
            models=self._models,
        )
        if self._sharded is not None:
            return self._sharded.work(request, self._prepare, self._elsewhere)
        if self._options.processes == 1:
            return LocalWork(request, self._prepare)
        assert self._elsewhere is not None, "a job that nobody knows the place of"
        from stageflow.replicas.fleet import Fleet  # not for the many runs that are of one process

        return Fleet(request, self._elsewhere)

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
        if hasattr(source, "recall"):
            source.recall(found.marks)
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
        ended = complete and self._work is not None and self._work.at_end
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

    async def _do(self, work: Work) -> None:
        self._began = self._clock()
        self._emit(RunStarted(self.plan.name, self.snapshot))
        if self._stopped is not None:
            work.stop()
        await work.run()
        if work.damaged is not None and self._stopped is None:
            self._stopped = work.damaged

    # Stopping

    def stop(self, error: StageflowError) -> None:
        """Read no more and finish what was accepted, for at most the grace period. Safe to call again."""
        if self._stopped is not None:
            return
        self._stopped = error
        open_records = 0
        if self._work is not None and self._work.begun:
            self._work.stop()
            open_records = self._work.open
        self._emit(StopRequested(str(error), open_records, self._options.grace))
        self._cutoff = asyncio.get_running_loop().call_later(self._options.grace, self.cancel)

    def cancel(self) -> None:
        """Cancel the attempts too: what has settled is written, the rest is not done."""
        if self._work is not None and self._work.begun:
            self._work.cancel()
        elif self._task is not None:
            self._task.cancel()

    # What others see

    @property
    def work(self) -> Work | None:
        """What does the records."""
        return self._work

    def snapshot(self) -> Snapshot:
        """The run at this moment."""
        counters, work = self._counters, self._work
        return Snapshot(
            seconds=self._clock() - self._began,
            read=counters.read,
            written=counters.written,
            dropped=counters.dropped,
            dead=counters.dead,
            open=work.open if work else 0,
            total=min(self._total, self._options.limit or self._total) if self._total is not None else None,
            stages=work.snapshot() if work else (),
        )

    @property
    def counters(self) -> RunCounters:
        """The account so far."""
        return self._counters

    @property
    def started(self) -> bool:
        """The resources are open, and records are read."""
        return self._work is not None and self._work.begun

    @property
    def durable(self) -> bool:
        """Whether what is done is kept in a ledger."""
        return self._ends.durable

    @property
    def stopped_by(self) -> StageflowError | None:
        """What ended the run before its input did."""
        return self._stopped

    @property
    def sharded(self) -> bool:
        """Whether it is one past one machine."""
        return self._sharded is not None

    @property
    def resumable(self) -> bool:
        """Whether a later run can go on with what this one leaves undone."""
        return self._ends.durable and self._identity is not None

    @property
    def retryable(self) -> bool:
        """Whether a later run can try the dead letters again: the ledger knows of them."""
        return self.resumable and self._ends.dead is None and not self.sharded

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

    def _reason(self, work: Work) -> str:
        """Why the run was stopped, with what is known at its end."""
        tripped = work.why_stopped()
        if tripped is None:
            return str(self._stopped)
        return f"{tripped}; {'none of them' if self._counters.dead else 'nothing'} was dead-lettered"

    def _exit_code(self) -> int:
        if self._stopped is not None:
            return self._stopped.exit_code
        if self._input_changed or (self._work is not None and self._work.given_up):
            return 3
        counters = self._counters
        if not counters.dead:
            return 0
        allowed = self._options.allow_failures
        return 0 if allowed is not None and Tolerance.parse(allowed).allows(counters.dead, counters.read) else 3

    def _report(self) -> RunReport:
        counters, work, complete = self._counters, self._work, self._resumption.complete
        assert work is not None, "a report of a run that did not begin"
        seconds = self._clock() - self._began if work.begun else 0.0
        accounts = work.accounts()
        stages = {name: self._stage_report(name, account, seconds) for name, account in accounts.items()}
        spend = self._resumption.spend
        return RunReport(
            pipeline=self.plan.name,
            read=counters.read,
            blank=self._before.blank_lines(work.blank),
            bad=counters.bad,
            written=counters.written,
            dropped=counters.dropped,
            dead=counters.dead,
            not_done=self._not_done(),
            seconds=seconds,
            stopped=self._reason(work) if self._stopped and work.begun else None,
            exit_code=self._exit_code(),
            peak_open=work.peak_open,
            max_open_records=work.max_open,
            stages=stages,
            earlier=self._earlier - work.retried,
            already_complete=complete,
            cost=units(sum(account.counters.cost for account in accounts.values())),
            cost_unsure=units(sum(account.counters.cost_unsure for account in accounts.values())),
            cost_earlier=units(spend.known),
            cost_unsure_earlier=units(spend.unsure),
            budget=self._options.budget,
            forecast=self._forecast(accounts, seconds),
        )

    def _forecast(self, accounts: Mapping[str, StageAccount], seconds: float) -> Forecast | None:
        """What the whole input would come to, where only its first records were asked for, and they are done."""
        counters, work, total = self._counters, self._work, self._total
        settled = counters.written + counters.dropped + counters.dead - self._earlier
        if self._options.limit is None or self._stopped is not None or work is None or work.at_end:
            return None
        if total is None or total <= counters.read or settled < 1:
            return None
        return forecast(
            self.plan,
            {name: account.counters for name, account in accounts.items()},
            total=total,
            settled=settled,
            seconds=seconds,
            spent=self._resumption.spend.most,
            before=self._earlier,
        )

    def _stage_report(self, name: str, account: StageAccount, seconds: float) -> StageReport:
        stage = self.plan.stages[name]
        caches = stage.cache and cache_path(self.plan, self._options) is not None
        return StageReport.of(
            account.counters,
            name=name,
            max_in_flight=stage.max_in_flight,
            queue_size=stage.queue_size,
            received=account.received,
            peak_depth=account.peak_depth,
            seconds=seconds,
            run=stage.run,
            caches=caches,
        )


def _sharded(
    plan: Plan, source: Any, sink: Any, options: Options, failed: Callable[[StorageError], None]
) -> Sharded | None:
    """The run past one machine that is asked for, if it is."""
    if options.engine == "local":
        return None
    from stageflow.cluster.sharded import Sharded  # not for the many runs that are of one machine

    return Sharded(plan, source, sink, options, failed)


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock; for uvloop's, which stands still within a turn and counts milliseconds, the clock behind it."""
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
