"""What a settled record comes to: its output lines and its dead letters. Pure: from items to plain dicts."""

from __future__ import annotations

import base64
import concurrent.futures
import datetime
import itertools
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from stageflow import contexts
from stageflow.engine.attempt import MESSAGE_CHARS, message_of
from stageflow.errors import ContextConflict, RecordError, ResultError
from stageflow.item import BadRecord, Failure, Item, Note
from stageflow.plain import is_plain
from stageflow.plan import Plan
from stageflow.policies.redact import redact
from stageflow.protocols import unchanged

__all__ = ["bulk_maker", "dead_letter", "family", "output_record", "output_records"]

_TRACE_CHARS: Final = 8192
_OURS: Final = (__file__.rpartition("/")[0], concurrent.futures.__file__.rpartition("/")[0])
"""Frames of these folders tell nobody anything: how the handler was reached."""


def output_records(record: Item, plan: Plan, *, on_partial: str = "keep") -> Iterator[Item]:
    """The items of a settled record that make an output line: those that no fan-out has made children of, in order.

    An item makes one if nothing has closed it: it and everything above it went all the way. What a generator yielded
    before it failed is whole: its failure does not count against its children, unless ``on_partial="drop"``, when
    nothing is written.
    """
    if on_partial == "drop" and any(item.failure is not None for item in family(record)):
        return
    yield from _leaves(record, plan)


def _leaves(item: Item, plan: Plan) -> Iterator[Item]:
    if item.closed:
        return
    if not any(stage.fans_out and _reaches(item, stage.name, plan) for stage in plan.stages.values()):
        yield item
    for child in item.children or ():
        yield from _leaves(child, plan)


def _reaches(item: Item, fan_out: str, plan: Plan) -> bool:
    """Whether a fan-out ran for the item: it is of the item's level, and nothing before it ended the item."""
    cut = any(each.cut is not None and fan_out in each.cut for each in item.lineage())
    return plan.fan_outs[fan_out] == item.level() and not cut


def family(item: Item) -> Iterator[Item]:
    """The item and all that fan-outs made of it."""
    yield item
    for child in item.children or ():
        yield from family(child)


def output_record(item: Item, plan: Plan) -> dict[str, Any]:
    """The output of a settled item: the input's fields, the context's, then the results in the order of definition.

    Raises:
        ContextConflict: Branches of the graph that end apart left different values in one field.
    """
    record = item.record
    output = dict(record) if isinstance(record, Mapping) else {"record": record}
    results, notes = _results_of(item), _notes_of(item)
    if plan.context is not None:
        assert item.contexts is not None, "a settled item of the context style has contexts"
        ends = [item.contexts[name] for name in _ends(item, plan)]
        output |= contexts.fields_of(contexts.merge(ends, plan.ancestors).value)
    for name, stage in plan.stages.items():
        # In the context style a stage that returns nothing has said all it had to say in the context.
        if stage.emit and name in results and (plan.context is None or results[name] is not None):
            output[name] = results[name]
    if plan.emitted is not None:
        everything = output | results
        output = {name: everything[name] for name in plan.emitted if name in everything}
    if notes:
        output["_stageflow"] = _written(notes)
    return output


def _results_of(item: Item) -> dict[str, Any]:
    """What the stages returned that finished for the item, or for those above it."""
    results = item.results
    for above in item.lineage():
        if above is not item:
            results = {**above.results, **results}
    return results


def _notes_of(item: Item) -> Mapping[str, Note]:
    """What was out of the ordinary for the item, or for those above it."""
    notes = item.notes or {}
    for above in item.lineage():
        if above is not item and above.notes:
            notes = {**above.notes, **notes}
    return notes


def _written(notes: Mapping[str, Note]) -> dict[str, Any]:
    return {
        stage: {"outcome": note.outcome, "error": note.error, "attempts": note.attempts}
        for stage, note in notes.items()
    }


def bulk_maker(plan: Plan, encode: Callable[[Any], Any], *, sized: bool) -> Callable[..., int]:
    """Compile what makes the lines of many settled items: :func:`output_record` without its loops, and ``encode``.

    Returns:
        A function of an iterator of items, a list of indices and a list of lines to add to, and the most bytes that
        these should have together. It stops behind the first item that is not the ordinary one (it failed, left, has
        notes, lacks a result, or is not encoded), which it leaves to others, and where there are as many bytes; it
        answers with the bytes. As in :mod:`stageflow.engine.binding`, the text holds names of stages only, which are
        identifiers.
    """
    names = list(plan.stages)
    if plan.context is not None or plan.emitted is not None:
        made = "line = output_record(item, plan)"
    elif _is_chain(plan):
        made = "line = item.record | results"
    else:
        # One store after another: a display such as {**record, "a": ...} makes a second dict of the rest.
        stores = [f"line[{name!r}] = results[{name!r}]" for name in names if plan.stages[name].emit]
        made = "; ".join(["line = item.record.copy()", *stores])
    known: dict[str, Any] = {
        "output_record": output_record,
        "plan": plan,
        "encode": encode,
        "Refusal": (ContextConflict, ResultError),
    }
    encoded = "" if encode is unchanged else "line = encode(line)"
    counted = "size += len(line)\n            if size > most: break" if sized else ""
    exec(_BULK.format(stages=len(names), made=made, encoded=encoded, counted=counted), known)
    compiled: Callable[..., int] = known["bulk"]
    return compiled


def _is_chain(plan: Plan) -> bool:
    """Whether stages end in the order of their definition, always, and all results are written."""
    stages = list(plan.stages.values())
    return all(stage.emit for stage in stages) and all(
        above.name in below.dependencies for above, below in itertools.pairwise(stages)
    )


_BULK: Final = """
def bulk(items, indices, lines, most):
    size = 0
    try:
        for item in items:
            results = item.results
            if item.notes is not None or item.closed or len(results) != {stages} or type(item.record) is not dict:
                break
            {made}
            {encoded}
            lines.append(line)
            indices.append(item.index)
            {counted}
    except Refusal:
        pass
    return size
"""


def _ends(item: Item, plan: Plan) -> list[str]:
    """The stages that ran and after which none ran."""
    assert item.contexts is not None, "asked for the ends of an item without contexts"
    ran = item.contexts
    return [name for name in plan.order if name in ran and not any(child in ran for child in plan.children[name])]


def dead_letter(
    item: Item,
    failure: Failure,
    *,
    path: str | None,
    numbered: bool,
    secrets: Collection[str] = (),
    plan: Plan | None = None,
    upstream: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What is kept of an item that failed: the record as it came, what was known of it, and why it stopped.

    Args:
        path: The file the record stands in.
        numbered: Whether ``line`` (``index`` + 1) means something there.
        secrets: Texts that may not appear in it.
        plan: The job; without it the letter does not say where a later run could go on.
        upstream: By stage a digest of all that decides the results of the stages before it.
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
        "results": _results_of(item) if item.contexts is None else _context_so_far(item),
        "error": {
            "type": type(error).__name__,
            "message": redact(message_of(error), secrets, limit=MESSAGE_CHARS),
            "trace": redact(_trace(error), secrets, limit=_TRACE_CHARS, tail=True),
        },
        "attempts": failure.attempts,
        "retryable": failure.retryable,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "retry": None if plan is None else _retry(item, failure.stage, plan, upstream or {}),
    }


def _retry(item: Item, stage: str | None, plan: Plan, upstream: Mapping[str, str]) -> dict[str, Any] | None:
    """Where a later run can go on with the item; ``None`` where that is at its source only."""
    if stage is None or isinstance(item.record, BadRecord) or plan.context is not None or plan.on_partial != "keep":
        return None
    if any(above.closed for above in item.lineage() if above is not item):
        return None  # nothing of it was written, and more than this item is missing
    if item.closed and item.children:
        return None  # its children were given up with it, and their results are not kept
    results = _results_of(item)
    if stage in results or not all(map(is_plain, results.values())):
        return None
    retry: dict[str, Any] = {"from": stage, "upstream": upstream.get(stage, "")}
    if item.path:
        retry["child"] = list(item.path)
    yielded = {name: (item.yielded or {}).get(name, 0) for name in item.broken or item.resumed or ()}
    if yielded:
        retry["yielded"] = yielded
    notes = _notes_of(item)
    if notes:
        retry["notes"] = _written(notes)
    return retry


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
    return text
