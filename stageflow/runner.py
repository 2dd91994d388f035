"""The composition root: a pipeline, a source and sinks, a loop and listeners become a run and its report.

The order of a run: everything that can be refused is refused (job, input, fields); the sinks are opened; resources are
opened; records are fed while one task records what settles; the input ends or the run is stopped; what was accepted is
finished; resources are closed; sinks are made final. A stop ends admission only. A cancellation ends the attempts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from stageflow.counters import RunCounters
from stageflow.ends import log_letter, look_ahead, refuse_same_files, sink_of, source_of
from stageflow.engine.attempt import describe
from stageflow.engine.processes import ChildSetup, child_setups
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.engine.watch import hear_stray_tasks
from stageflow.errors import RunStopped, SourceFailed, StageflowError
from stageflow.events import Event, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.item import BadRecord
from stageflow.options import Options
from stageflow.plan import Plan
from stageflow.policies.tolerance import FailureRate, Tolerance
from stageflow.protocols import Entry, Sink
from stageflow.recorder import Recorder
from stageflow.report.stats import RunReport, StageReport

__all__ = ["Run"]

log = logging.getLogger("stageflow")


class Run:
    """One run, from its checks to its report.

    Args:
        plan: The job.
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
        self._source = source_of(source)
        self._sink = sink_of(sink, options, dead=False)
        self._dead = self._dead_sink(sink)
        self._counters = RunCounters()
        self._engine: Engine | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._waiting_for_input = False
        self._stopped: StageflowError | None = None
        self._ended = False
        self._cutoff: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._began = 0.0
        self._total: int | None = None

    def _dead_sink(self, sink: Any) -> Sink:
        dead = self._options.dead
        if dead is None and isinstance(sink, (str, os.PathLike)) and str(sink) != "-":
            dead = f"{sink}.dead.jsonl"
        return sink_of(log_letter if dead is None else dead, self._options, dead=True)

    async def execute(self) -> RunReport:
        """Run it.

        Returns:
            The account, also where the run was stopped by policy or by :meth:`stop`.
        """
        self._clock = _clock_of(asyncio.get_running_loop())
        self._task = asyncio.current_task()
        self._source.check()
        self._total = self._source.estimate()
        look_ahead(self.plan, self._source)
        children = child_setups(self.plan, self._prepare)
        refuse_same_files(self._source, self._sink, self._dead)
        self._dead.open()
        self._sink.open()
        complete = False
        try:
            async with opened(self.plan, self.warn) as resources:
                await self._process(resources, children)
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

    async def _end(self, complete: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._emit(RunEnded())
        try:
            await self._sink.close(complete=complete)
        finally:
            await self._dead.close(complete=complete)

    async def _process(self, resources: Mapping[str, Any], children: Mapping[str, ChildSetup]) -> None:
        source, counters = self._source, self._counters
        recorder = self._recorder = Recorder(
            self.plan,
            self._sink,
            self._dead,
            counters,
            emit=self._emit,
            path=source.path,
            numbered=source.numbered,
            in_order=self._options.order == "input" and not getattr(self._sink, "sorts", False),
        )
        engine = self._engine = Engine(
            self.plan,
            resources=resources,
            settled=recorder.settled,
            stopped=self._stop_by_policy,
            broken=self._cancel_feeder,
            warn=self.warn,
            max_retry_after=self._options.max_retry_after,
            max_open_records=self._options.max_open_records,
            clock=self._clock,
            run_id=uuid.uuid4().hex[:12],
            child_setups=children,
            debug=self._options.debug,
        )
        recorder.release = engine.release
        recorder.verdict = lambda stage: engine.pools[stage].judge.probation
        recorder.watch = self._watch_failures()
        self._began = self._clock()
        self._emit(RunStarted(self.plan.name, self.snapshot))
        with hear_stray_tasks(self.warn):
            await self._process_with(engine, recorder)

    async def _process_with(self, engine: Engine, recorder: Recorder) -> None:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(recorder.write(), name="recorder")
            try:
                async with engine:
                    if self._stopped is not None:
                        engine.stop()
                    self._feeder = asyncio.create_task(self._feed(engine), name="feeder")
                    await self._fed()
            finally:
                recorder.close()
            await writer

    async def _fed(self) -> None:
        """Wait for the feeder; that it was cancelled while it waited for input is how a stop ends it."""
        assert self._feeder is not None, "nothing feeds"
        try:
            await self._feeder
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self._feeder.cancel()
                raise

    async def _feed(self, engine: Engine) -> None:
        counters, limit, expect = self._counters, self._options.limit, self._recorder.expect
        stop_at_bad = self._options.on_bad_input == "stop"
        look_at = {stage.name for stage in self.plan.stages.values() if stage.emit and self.plan.context is None}
        async with contextlib.aclosing(self._source.read()) as portions:
            while (portion := await self._next(portions)) is not None:
                for index, record in self._guarded(portion):
                    if stop_at_bad and type(record) is BadRecord:
                        self._stop_by_policy(self._bad_input(index, record))
                        return
                    if look_at and record.__class__ is dict and not look_at.isdisjoint(record):
                        self._overwrites(record, look_at)
                    expect(index)
                    if not engine.try_feed(index, record) and not await engine.feed(index, record):
                        return
                    counters.read += 1
                    if counters.read == limit:
                        return

    async def _next(self, portions: AsyncIterator[Iterable[Entry]]) -> Iterable[Entry] | None:
        self._waiting_for_input = True
        try:
            return await anext(portions, None)
        except StageflowError:
            raise
        except Exception as error:
            raise SourceFailed(f"the source failed: {describe(error)}") from error
        finally:
            self._waiting_for_input = False

    def _guarded(self, portion: Iterable[Entry]) -> Iterator[Entry]:
        """The entries of a portion; what the caller's own iterable raises is told as its failure."""
        try:
            yield from portion
        except StageflowError:
            raise
        except Exception as error:
            raise SourceFailed(f"the source failed: {describe(error)}") from error

    def _bad_input(self, index: int, record: BadRecord) -> RunStopped:
        where = f"{self._source.path}:{index + 1}" if self._source.numbered else None
        return RunStopped(str(record.error), hint="run with --on-bad-input dead to set such lines aside", where=where)

    def _overwrites(self, record: Mapping[str, Any], look_at: set[str]) -> None:
        """Tell once of each input field that bears the name of a stage."""
        for name in sorted(look_at & record.keys()):
            look_at.discard(name)
            self.warn(f'the input field "{name}" is overwritten by the result of stage "{name}"')

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
        if self._waiting_for_input and self._feeder is not None:
            self._feeder.cancel()
        self._emit(StopRequested(str(error), open_records, self._options.grace))
        self._cutoff = asyncio.get_running_loop().call_later(self._options.grace, self.cancel)

    def cancel(self) -> None:
        """Cancel the attempts too: what has settled is written, the rest is not done."""
        if self._engine is not None:
            open_records = self._engine.credits.taken
            if open_records:
                self._emit(StopRequested("cancelled", open_records, 0.0, cancelled=True))
            self._engine.cancel()
        elif self._task is not None:
            self._task.cancel()
        self._cancel_feeder()

    def _cancel_feeder(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()

    def _watch_failures(self) -> Callable[[int, int], None]:
        """What is told how many of how many settled records failed, for ``--max-failure-rate``."""
        limit = self._options.max_failure_rate
        if limit is None:
            return lambda dead, settled: None
        rate = FailureRate(limit)

        def watch(dead: int, settled: int) -> None:
            if sum(rate.settled(place < dead) for place in range(settled)):
                self._stop_by_policy(
                    RunStopped(rate.reason(), hint="see the dead letters; raise --max-failure-rate to go on")
                )

        return watch

    def _stop_by_policy(self, error: RunStopped) -> None:
        self.stop(error)

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

    def warn(self, message: str) -> None:
        self._emit(Warned(message))

    def _emit(self, event: Event) -> None:
        if not self._options.listeners and isinstance(event, Warned):
            log.warning(event.message)
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
        counters = self._counters
        if not counters.dead:
            return 0
        allowed = self._options.allow_failures
        return 0 if allowed is not None and Tolerance.parse(allowed).allows(counters.dead, counters.read) else 3

    def _report(self) -> RunReport:
        counters, engine = self._counters, self._engine
        assert engine is not None, "a report of a run that did not begin"
        seconds = self._clock() - self._began
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
            for name, pool in engine.pools.items()
        }
        return RunReport(
            pipeline=self.plan.name,
            read=counters.read,
            blank=self._source.blank,
            bad=counters.bad,
            written=counters.written,
            dropped=counters.dropped,
            dead=counters.dead,
            not_done=self._not_done(),
            seconds=seconds,
            stopped=self._reason(engine) if self._stopped else None,
            exit_code=self._exit_code(),
            peak_open=engine.credits.peak,
            max_open_records=engine.credits.limit,
            stages=stages,
        )


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock; for uvloop's, which stands still within a turn and counts milliseconds, the clock behind it."""
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
