"""From settled items to what is kept of them: output records, dead letters, and the account of the run."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import datetime
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from stageflow import contexts
from stageflow.counters import RunCounters
from stageflow.engine.attempt import message_of
from stageflow.errors import ContextConflict, RecordError, ResultError
from stageflow.events import Event, RecordDead
from stageflow.item import BadRecord, Failure, Item
from stageflow.plan import Plan
from stageflow.protocols import Entry, Sink

__all__ = ["Recorder", "dead_letter", "output_record"]

_MESSAGE_CHARS: Final = 2048
_TRACE_CHARS: Final = 8192
_OURS: Final = (__file__.rpartition("/")[0], concurrent.futures.__file__.rpartition("/")[0])
"""Frames of these folders tell nobody anything: how the handler was reached."""


def output_record(item: Item, plan: Plan) -> dict[str, Any]:
    """The output of a settled item: the input's fields, the context's, then the results in the order of definition.

    Raises:
        ContextConflict: Branches of the graph that end apart left different values in one field.
    """
    record = item.record
    output = dict(record) if isinstance(record, Mapping) else {"record": record}
    if plan.context is not None:
        assert item.contexts is not None, "a settled item of the context style has contexts"
        output |= contexts.fields_of(contexts.merge([item.contexts[name] for name in plan.last], plan.ancestors).value)
    for name, stage in plan.stages.items():
        # In the context style a stage that returns nothing has said all it had to say in the context.
        if stage.emit and (plan.context is None or item.results[name] is not None):
            output[name] = item.results[name]
    if plan.emitted is not None:
        everything = output | item.results
        output = {name: everything[name] for name in plan.emitted if name in everything}
    if item.notes is not None:
        output["_stageflow"] = {
            stage: {"outcome": note.outcome, "error": note.error, "attempts": note.attempts}
            for stage, note in item.notes.items()
        }
    return output


def dead_letter(item: Item, failure: Failure, *, path: str | None, numbered: bool) -> dict[str, Any]:
    """What is kept of an item that failed: the record as it came, what was known of it, and why it stopped.

    Args:
        path: The file the record stands in.
        numbered: Whether ``line`` (``index`` + 1) means something there.
    """
    error = failure.error
    letter: dict[str, Any] = {
        "index": item.index,
        "line": item.index + 1 if numbered else None,
        "path": path,
        "stage": failure.stage,
    }
    if isinstance(item.record, BadRecord):
        try:
            letter["record"] = item.record.raw.decode()
        except UnicodeDecodeError:
            letter["raw_b64"] = base64.b64encode(item.record.raw).decode()
    else:
        letter["record"] = item.record
    return letter | {
        "results": item.results if item.contexts is None else _context_so_far(item),
        "error": {"type": type(error).__name__, "message": message_of(error)[:_MESSAGE_CHARS], "trace": _trace(error)},
        "attempts": failure.attempts,
        "retryable": failure.retryable,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }


def _context_so_far(item: Item) -> dict[str, Any]:
    """For each stage that finished, the fields of the context that it set."""
    assert item.contexts is not None, "asked for a context that there is not"
    return {
        stage: {
            name: value for name, value in contexts.fields_of(view.value).items() if view.writers.get(name) == stage
        }
        for stage, view in item.contexts.items()
        if stage
    }


def _trace(error: BaseException) -> str:
    """The traceback from the user's first frame on; nothing for an error that stageflow itself found."""
    if isinstance(error, (RecordError, ResultError, ContextConflict)):
        return ""
    summary = traceback.TracebackException.from_exception(error, limit=-32, compact=True)
    for part in (summary, summary.__cause__):
        if part is not None:
            part.stack = traceback.StackSummary.from_list([f for f in part.stack if not f.filename.startswith(_OURS)])
    try:
        text = "".join(summary.format())
    except Exception:  # noqa: BLE001 - an error whose __str__ raises
        text = "(the trace can't be read)"
    return text if len(text) <= _TRACE_CHARS else "...\n" + text[-_TRACE_CHARS:]


class Recorder:
    """Takes settled items on the loop and writes what they came to, in one task, a batch at a time.

    Under a slow sink a batch grows by itself, up to the bound on open records: a record keeps its credit until it has
    been written, and that is how a slow sink holds back the source.

    Args:
        release: Called with a number of records whose outcome has been written.
        emit: Where events go.
        path, numbered: The source's, for dead letters.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        dead: Sink,
        counters: RunCounters,
        *,
        emit: Callable[[Event], None],
        path: str | None,
        numbered: bool,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._dead = dead
        self._counters = counters
        self._emit = emit
        self._path = path
        self._numbered = numbered
        self._settled: deque[Item] = deque()
        self._more = asyncio.Event()
        self._closed = False
        self.release: Callable[[int], None] = lambda count: None

    def settled(self, item: Item) -> None:
        """Take an item whose outcome is final; returns at once."""
        self._settled.append(item)
        if not self._more.is_set():
            self._more.set()

    def close(self) -> None:
        """No item will come any more: :meth:`write` ends when those that came are written."""
        self._closed = True
        self._more.set()

    async def write(self) -> None:
        """Write until closed.

        Raises:
            StorageError: A sink failed.
        """
        while not (self._closed and not self._settled):
            await self._more.wait()
            self._more.clear()
            while self._settled:
                await self._write_batch()

    async def _write_batch(self) -> None:
        settled, counters = self._settled, self._counters
        outputs: list[Entry] = []
        letters: list[Entry] = []
        undone = 0
        count = len(settled)
        for _ in range(count):
            item = settled.popleft()
            if item.failure is None:
                self._finish(item, outputs, letters)
            elif item.aborted:
                undone += 1
            else:
                letters.append((item.index, self._letter(item, item.failure)))
        if outputs:
            await self._sink.write(outputs)
        if letters:
            await self._dead.write(letters)
        counters.written += len(outputs)
        counters.dead += len(letters)
        counters.unfinished += undone
        self.release(count)

    def _finish(self, item: Item, outputs: list[Entry], letters: list[Entry]) -> None:
        try:
            outputs.append((item.index, self._sink.encode(output_record(item, self._plan))))
        except (ContextConflict, ResultError) as error:
            letters.append((item.index, self._letter(item, Failure(self._culprit(item), error, 1))))

    def _culprit(self, item: Item) -> str | None:
        """The first stage whose result has no form in the output."""
        for name in self._plan.order:
            try:
                self._sink.encode({name: item.results[name]})
            except ResultError:
                return name
        return None

    def _letter(self, item: Item, failure: Failure) -> Any:
        letter = dead_letter(item, failure, path=self._path, numbered=self._numbered)
        if isinstance(item.record, BadRecord):
            self._counters.bad += 1
        self._emit(RecordDead(letter))
        return self._dead.encode(letter)
