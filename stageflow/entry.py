"""The ways in from Python: a run guarded against our own bugs, a stream, one record; and the loop they run on."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from stageflow.engine.processes import child_setups
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.errors import RequestError, RunFailed, RunStopped, StageflowError
from stageflow.item import Item
from stageflow.output import family, output_record
from stageflow.plan import Plan
from stageflow.protocols import Entry, Sink, unchanged
from stageflow.runner import Run

__all__ = ["execute", "guarded", "run_on_loop", "stream"]

T = TypeVar("T")

log = logging.getLogger("stageflow")


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


async def stream(start: Callable[[Sink], Run]) -> AsyncGenerator[dict[str, Any], None]:
    """See :meth:`stageflow.Pipeline.stream`; ``start`` makes the run that writes to a sink of ours."""
    batches: asyncio.Queue[Sequence[Entry] | None] = asyncio.Queue()
    work = asyncio.create_task(guarded(start(_StreamSink(batches)).execute()), name="stageflow run")
    work.add_done_callback(lambda _: batches.put_nowait(None))
    try:
        while (batch := await batches.get()) is not None:
            for _, record in batch:
                yield record
            batches.task_done()
        report = await work
        if report.stopped is not None:
            raise RunStopped(report.stopped, hint="what came before is whole; the rest was not done")
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class _StreamSink:
    """Hands batches to a consumer, and waits until it has had all of one: that is how it holds back the run."""

    def __init__(self, batches: asyncio.Queue[Sequence[Entry] | None]) -> None:
        self._batches = batches

    def open(self) -> None: ...

    encode = staticmethod(unchanged)  # by which it is known that no call is needed

    async def write(self, batch: Sequence[Entry]) -> None:
        self._batches.put_nowait(batch)
        await self._batches.join()

    async def close(self, *, complete: bool) -> None: ...


async def execute(plan: Plan, record: Any, prepare: Callable[[], object] | None) -> dict[str, Any]:
    """See :meth:`stageflow.Pipeline.execute`."""
    found: list[Item] = []
    async with opened(plan, log.warning) as resources:
        engine = Engine(
            plan,
            resources=resources,
            settled=found.append,
            stopped=lambda error: None,
            run_id=uuid.uuid4().hex[:12],
            child_setups=child_setups(plan, prepare),
        )
        async with engine:
            await engine.feed(0, record)
    (item,) = found
    for each in family(item):
        if each.failure is not None:
            each.failure.error.add_note(f'raised in stage "{each.failure.stage}" of pipeline "{plan.name}"')
            raise each.failure.error
    if plan.context is not None:
        made = output_record(item, plan)
        return {name: value for name, value in made.items() if name not in record or value is not record[name]}
    return {name: value for name in plan.stages for value in _results(item, name, plan)}


def _results(item: Item, name: str, plan: Plan) -> list[Any]:
    """The result of a stage in a list, if it ran; one that ran once per child has the list of its results."""
    level = len(plan.fan_outs[name]) + plan.stages[name].fans_out
    found = [each.results[name] for each in family(item) if len(each.path) == level and name in each.results]
    return [found] if level else found


def run_on_loop(start: Callable[[], Coroutine[Any, Any, T]], loop: str = "auto") -> T:
    """Run the work that ``start`` begins on an event loop of its own.

    Raises:
        RequestError: uvloop was asked for and is not installed.
        RuntimeError: There is a loop running in this thread already: await :meth:`Pipeline.run` there.
    """
    factory = loop_factory(loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(start())


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
