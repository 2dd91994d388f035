"""The composition root: a pipeline, a source and sinks, a loop and listeners become a run and its report.

The order of a run: everything that can be refused is refused (job, input, fields); the sinks are opened; resources are
opened; records are fed while one task records what settles; the input ends or the run is stopped; what was accepted is
finished; resources are closed; sinks are made final. A stop ends admission only. A cancellation ends the attempts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeVar

from stageflow.counters import RunCounters
from stageflow.engine.processes import ChildSetup
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.errors import DefinitionError, RequestError, RunFailed, RunStopped, StageflowError, StorageError
from stageflow.events import Event, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.graph import nearest
from stageflow.item import BadRecord, Item
from stageflow.pipeline import Pipeline
from stageflow.plan import Override, Plan
from stageflow.protocols import Entry, Listener, Sink, Source
from stageflow.recorder import Recorder, output_record
from stageflow.report.stats import RunReport, StageReport

__all__ = ["Options", "Run", "execute", "guarded", "look_ahead", "run", "run_on_loop", "source_of", "stream"]

T = TypeVar("T")
Amounts = int | Mapping[str, int]

LOOKED_AT: Final = 100
"""Records looked at before a run starts, for fields that none of them has."""

log = logging.getLogger("stageflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run from Python can be told; the command line has the same names.

    Args:
        params: Values for the job's parameters.
        max_in_flight, queue_size: A number for every stage, or one by stage name.
        settings: Other settings, ``{"generate": {"on_error": "skip"}}``.
        dead: Where dead letters go: a path, a list or a function. Default: ``OUT.dead.jsonl`` where the sink is a path;
            else each is logged as a warning.
        order: ``"input"`` (default for a file) or ``"completion"`` (default otherwise).
        limit: Read at most so many records, >= 1.
        fresh: Rename existing output files rather than refuse to run.
        on_bad_input: ``"dead"`` makes an unreadable line a dead letter; ``"stop"`` stops the run at it.
        max_open_records: The most records admitted and not yet written; default: the sum of all ``max_in_flight`` and
            ``queue_size``.
        grace: Seconds in which a stopped run may finish what it has accepted.
        listeners: Hear of every event.
    """

    params: Mapping[str, Any] | None = None
    max_in_flight: Amounts | None = None
    queue_size: Amounts | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    overrides: Sequence[Override] = ()
    dead: Any = None
    order: Literal["input", "completion"] | None = None
    limit: int | None = None
    fresh: bool = False
    on_bad_input: Literal["dead", "stop"] = "dead"
    max_open_records: int | None = None
    grace: float = 20.0
    listeners: Sequence[Listener] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check what a caller gave.

        Raises:
            RequestError: An option is unknown, or out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = nearest(name, known)
                raise RequestError(
                    f'unknown option "{name}"',
                    hint=f'did you mean "{near}"?' if near else "see stageflow.runner.Options",
                )
        options = cls(**given)
        for name in ("limit", "max_open_records"):
            value = getattr(options, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} must be a positive integer, not {value!r}")
        if options.order not in (None, "input", "completion"):
            raise RequestError(f'order must be "input" or "completion", not {options.order!r}')
        if options.on_bad_input not in ("dead", "stop"):
            raise RequestError(f'on_bad_input must be "dead" or "stop", not {options.on_bad_input!r}')
        return options

    def all_overrides(self) -> tuple[Override, ...]:
        """The settings given from outside the job, weakest first."""
        found = list(self.overrides)
        for setting, amounts in (("max_in_flight", self.max_in_flight), ("queue_size", self.queue_size)):
            if isinstance(amounts, Mapping):
                found += [Override(stage, setting, value, f"{setting}=") for stage, value in amounts.items()]
            elif amounts is not None:
                found.append(Override(None, setting, amounts, f"{setting}="))
        for stage, settings in (self.settings or {}).items():
            found += [Override(stage, name, value, "settings=") for name, value in settings.items()]
        return tuple(found)


class Run:
    """One run, from its checks to its report.

    Args:
        pipeline: The job; its plan is made here, so a wrong one is refused by the constructor.

    Raises:
        DefinitionError, RequestError: The job or an option is wrong.
    """

    def __init__(self, pipeline: Pipeline, source: Any, sink: Any, options: Options) -> None:
        self.plan = pipeline.plan(options.all_overrides(), options.params)
        self._prepare = pipeline._prepare
        self._options = options
        self._source = source_of(source)
        self._sink = sink_of(sink, options, dead=False)
        self._dead = self._dead_sink(sink)
        self._counters = RunCounters()
        self._engine: Engine | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._waiting_for_input = False
        self._stopped: StageflowError | None = None
        self._clock: Callable[[], float] = time.monotonic
        self._began = 0.0
        self._total: int | None = None
        self._overwritten: set[str] = set()

    def _dead_sink(self, sink: Any) -> Sink:
        dead = self._options.dead
        if dead is None and isinstance(sink, str) and sink != "-":
            dead = f"{sink}.dead.jsonl"
        return sink_of(_log_letter if dead is None else dead, self._options, dead=True)

    async def execute(self) -> RunReport:
        """Run it.

        Returns:
            The account, also where the run was stopped by policy or by :meth:`stop`.
        """
        self._clock = _clock_of(asyncio.get_running_loop())
        self._source.check()
        self._total = self._source.estimate()
        look_ahead(self.plan, self._source)
        children = self._child_setups()
        _refuse_same_files(self._source, self._sink, self._dead)
        self._sink.open()
        complete = False
        try:
            self._dead.open()
            async with opened(self.plan, self._warn) as resources:
                await self._process(resources, children)
            complete = self._stopped is None
        except* StorageError as group:
            raise _first(group) from None
        except* DefinitionError as group:
            raise _first(group) from None
        except* RequestError as group:
            raise _first(group) from None
        finally:
            self._emit(RunEnded())
            await self._close(complete)
        return self._report()

    async def _close(self, complete: bool) -> None:
        try:
            await self._sink.close(complete=complete)
        finally:
            await self._dead.close(complete=complete)

    async def _process(self, resources: Mapping[str, Any], children: Mapping[str, ChildSetup]) -> None:
        source, counters = self._source, self._counters
        recorder = Recorder(
            self.plan, self._sink, self._dead, counters, emit=self._emit, path=source.path, numbered=source.numbered
        )
        engine = self._engine = Engine(
            self.plan,
            resources=resources,
            settled=recorder.settled,
            stopped=self._stop_by_policy,
            max_open_records=self._options.max_open_records,
            clock=self._clock,
            run_id=uuid.uuid4().hex[:12],
            child_setups=children,
        )
        recorder.release = engine.release
        self._began = self._clock()
        self._emit(RunStarted(self.plan.name, self.snapshot))
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
        counters, limit = self._counters, self._options.limit
        stop_at_bad = self._options.on_bad_input == "stop"
        async with contextlib.aclosing(self._source.read()) as portions:
            while True:
                self._waiting_for_input = True
                portion = await anext(portions, None)
                self._waiting_for_input = False
                if portion is None:
                    return
                for index, record in portion:
                    if stop_at_bad and type(record) is BadRecord:
                        self._stop_by_policy(self._bad_input(index, record))
                        return
                    if counters.read < LOOKED_AT:
                        self._look_at(record)
                    if not await engine.feed(index, record):
                        return
                    counters.read += 1
                    if counters.read == limit:
                        return

    def _bad_input(self, index: int, record: BadRecord) -> RunStopped:
        where = f"{self._source.path}:{index + 1}" if self._source.numbered else None
        return RunStopped(str(record.error), hint="run with --on-bad-input dead to set such lines aside", where=where)

    # What comes before the first record

    def _look_at(self, record: Any) -> None:
        if not isinstance(record, Mapping):
            return
        for name, stage in self.plan.stages.items():
            if stage.emit and name in record and name not in self._overwritten and self.plan.context is None:
                self._overwritten.add(name)
                self._warn(f'the input field "{name}" is overwritten by the result of stage "{name}"')

    def _child_setups(self) -> dict[str, ChildSetup]:
        """What the children of each process stage need.

        Raises:
            DefinitionError: A function can't be found by its name in another process.
        """
        setups = {}
        for stage in self.plan.stages.values():
            if stage.run != "process":
                continue
            takes = tuple(p.name for p in stage.parameters if p.kind == "resource")
            resources = [(r.name, r.function, r.uses) for r in self.plan.resources.values() if r.scope == "process"]
            try:
                handler, openers = pickle.dumps(stage.handler), pickle.dumps(resources)
            except Exception as error:
                raise DefinitionError(
                    f'stage "{stage.name}" runs in processes, and a function of it can\'t be found there: {error}',
                    hint="define it at the top level of the job file",
                    where=stage.where,
                ) from error
            setups[stage.name] = ChildSetup(self._prepare, handler, openers, self.plan.params, takes)
        return setups

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
        asyncio.get_running_loop().call_later(self._options.grace, self.cancel)

    def cancel(self) -> None:
        """Cancel the attempts too: what has settled is written, the rest is not done."""
        if self._engine is not None:
            open_records = self._engine.credits.taken
            if open_records:
                self._emit(StopRequested("cancelled", open_records, 0.0, cancelled=True))
            self._engine.cancel()
        if self._feeder is not None:
            self._feeder.cancel()

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

    def _warn(self, message: str) -> None:
        self._emit(Warned(message))

    def _emit(self, event: Event) -> None:
        if not self._options.listeners and isinstance(event, Warned):
            log.warning(event.message)
        for listener in self._options.listeners:
            try:
                listener.on_event(event)
            except Exception:
                log.exception("a listener failed on %s", type(event).__name__)

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
            not_done=counters.read - counters.written - counters.dropped - counters.dead,
            seconds=seconds,
            stopped=str(self._stopped) if self._stopped else None,
            exit_code=self._stopped.exit_code if self._stopped else 3 if counters.dead else 0,
            peak_open=engine.credits.peak,
            max_open_records=engine.credits.limit,
            stages=stages,
        )


# The Python API


async def run(pipeline: Pipeline, source: Any, sink: Any, **given: Any) -> RunReport:
    """See :meth:`stageflow.Pipeline.run`."""
    return await guarded(Run(pipeline, source, sink, Options.of(given)).execute())


async def guarded(work: Coroutine[Any, Any, T]) -> T:
    """Await the work of a run; what is no error of the user's comes out as one :class:`RunFailed`."""
    try:
        return await work
    except StageflowError:
        raise
    except BaseExceptionGroup as group:
        bugs, rest = group.split(Exception)
        if rest is not None or bugs is None:
            raise
        raise RunFailed("stageflow failed; this is a bug, please report it", bugs.exceptions) from None


async def stream(pipeline: Pipeline, source: Any, **given: Any) -> AsyncIterator[dict[str, Any]]:
    """See :meth:`stageflow.Pipeline.stream`."""
    batches: asyncio.Queue[Sequence[Entry] | None] = asyncio.Queue()
    work = asyncio.create_task(run(pipeline, source, _StreamSink(batches), **given), name="stageflow run")
    work.add_done_callback(lambda _: batches.put_nowait(None))
    try:
        while (batch := await batches.get()) is not None:
            for _, record in batch:
                yield record
            batches.task_done()
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class _StreamSink:
    """Hands batches to a consumer, and waits until it has had all of one: that is how it holds back the run."""

    def __init__(self, batches: asyncio.Queue[Sequence[Entry] | None]) -> None:
        self._batches = batches

    def open(self) -> None: ...

    def encode(self, record: Any) -> Any:
        return record

    async def write(self, batch: Sequence[Entry]) -> None:
        self._batches.put_nowait(batch)
        await self._batches.join()

    async def close(self, *, complete: bool) -> None: ...


async def execute(pipeline: Pipeline, record: Any, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """See :meth:`stageflow.Pipeline.execute`."""
    found: list[Item] = []
    single = Run(pipeline, [record], [], Options(params=params, dead=[]))
    plan = single.plan
    async with opened(plan, single._warn) as resources:
        engine = Engine(
            plan,
            resources=resources,
            settled=found.append,
            stopped=lambda error: None,
            run_id=uuid.uuid4().hex[:12],
            child_setups=single._child_setups(),
        )
        async with engine:
            await engine.feed(0, record)
    (item,) = found
    if item.failure is not None:
        error = item.failure.error
        error.add_note(f'raised in stage "{item.failure.stage}" of pipeline "{plan.name}"')
        raise error
    if plan.context is not None:
        made = output_record(item, plan)
        return {name: value for name, value in made.items() if name not in record or value is not record[name]}
    return {name: item.results[name] for name in plan.stages if name in item.results}


def run_on_loop(work: Coroutine[Any, Any, T], loop: str = "auto") -> T:
    """Run ``work`` on an event loop of its own.

    Raises:
        RequestError: uvloop was asked for and is not installed.
    """
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(work)


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory for ``"uvloop"``, ``"asyncio"`` or ``"auto"``: uvloop where it is installed.

    Raises:
        RequestError: The kind is unknown, or uvloop is not installed.
    """
    if kind not in ("auto", "uvloop", "asyncio"):
        raise RequestError(f'the loop is "auto", "uvloop" or "asyncio", not {kind!r}')
    if kind == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if kind == "uvloop":
            raise RequestError(
                "uvloop is not installed", hint="pip install uvloop, or run with --loop asyncio"
            ) from None
        return None
    return uvloop.new_event_loop


# Helpers


def look_ahead(plan: Plan, source: Source) -> int:
    """Refuse a run whose first records all lack a field that a stage requires.

    Returns:
        How many records were looked at; 0 for a source that can't be looked into.

    Raises:
        RequestError: With the nearest name among the stages, resources and fields there are.
    """
    records = [record for _, record in source.peek(LOOKED_AT) if isinstance(record, Mapping)]
    seen = dict.fromkeys(name for record in records for name in record)
    for name, owner in plan.required.items():
        if name in seen or not records:
            continue
        near = nearest(name, [*seen, *plan.stages, *plan.resources])
        hint = f'did you mean "{near}"?' if near else "fields are: " + ", ".join(seen)
        raise RequestError(f'{owner} takes "{name}", which none of the first {len(records)} records has', hint=hint)
    return len(records)


def source_of(source: Any) -> Source:
    """A source from what a caller gave: a path, an iterable or async iterable, or a source."""
    if hasattr(source, "read") and hasattr(source, "peek"):
        return source  # type: ignore[no-any-return]
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        from stageflow.adapters.jsonl import JsonlSource

        return JsonlSource(str(source))
    if isinstance(source, (Iterable, AsyncIterable)):
        from stageflow.adapters.memory import IterableSource

        return IterableSource(source)
    raise RequestError(f"can't read records from {source!r}", hint="give a path, an iterable or an async iterable")


def sink_of(sink: Any, options: Options, *, dead: bool) -> Sink:
    """A sink from what a caller gave: a path, a list, a function, or a sink."""
    if hasattr(sink, "write") and hasattr(sink, "encode"):
        return sink  # type: ignore[no-any-return]
    if isinstance(sink, str) or hasattr(sink, "__fspath__"):
        from stageflow.adapters.jsonl import JsonlSink

        if dead:
            return JsonlSink(
                str(sink), order="completion", fresh=options.fresh, mode=0o600, lenient=True, partial=False
            )
        order = options.order or ("completion" if str(sink) == "-" else "input")
        return JsonlSink(str(sink), order=order, fresh=options.fresh)
    from stageflow.adapters.memory import CallableSink, ListSink

    if isinstance(sink, list):
        return ListSink(sink)
    if callable(sink):
        return CallableSink(sink)
    raise RequestError(f"can't write records to {sink!r}", hint="give a path, a list or a function")


def _refuse_same_files(source: Source, sink: Sink, dead: Sink) -> None:
    """Refuse a run that would write over its own input, or two outputs into one.

    Raises:
        RequestError: By name, by a link or by a hard link, two of them are one file.
    """
    named = {"input": source, "output": sink, "dead letters": dead}
    paths = {what: path for what, end in named.items() if (path := getattr(end, "path", None)) not in (None, "-")}
    for (one, first), (other, second) in itertools.combinations(paths.items(), 2):
        if _same_file(first, second):
            raise RequestError(f"{other} and {one} are the same file", hint=f"{second}: choose another name")


def _same_file(first: str, second: str) -> bool:
    if os.path.realpath(first) == os.path.realpath(second):
        return not os.path.exists(first) or os.path.isfile(first)
    try:
        return os.path.isfile(first) and os.path.samefile(first, second)
    except OSError:
        return False


def _log_letter(letter: Mapping[str, Any]) -> None:
    error = letter["error"]
    log.warning("record %s failed at %s: %s: %s", letter["index"], letter["stage"], error["type"], error["message"])


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock; for uvloop's, which stands still within a turn and counts milliseconds, the clock behind it."""
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time


def _first(group: BaseExceptionGroup[StageflowError]) -> StageflowError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StageflowError), "only such are in this group"
    return error
