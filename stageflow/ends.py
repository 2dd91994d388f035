"""The two ends of a run: sources and sinks from what a caller gave, and what is refused about them."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, Final

from stageflow.errors import RequestError
from stageflow.graph import nearest
from stageflow.options import Options
from stageflow.plan import Plan
from stageflow.protocols import Sink, Source

__all__ = ["LOOKED_AT", "log_letter", "look_ahead", "refuse_same_files", "sink_of", "source_of"]

LOOKED_AT: Final = 100
"""Records looked at before a run starts, for fields that none of them has."""

log = logging.getLogger("stageflow")


def look_ahead(plan: Plan, source: Source) -> int:
    """Refuse a run whose first records all lack a field that a stage requires, or that the job emits.

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
    known = [*seen, *plan.stages, *plan.context_fields]
    for name in plan.emitted or ():
        if records and name not in known:
            near = nearest(name, known)
            hint = f'did you mean "{near}"?' if near else "fields are: " + ", ".join(known)
            raise RequestError(
                f'the job emits "{name}", which is no stage and no field of its first records', hint=hint
            )
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


def refuse_same_files(source: Source, sink: Sink, dead: Sink) -> None:
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


def log_letter(letter: Mapping[str, Any]) -> None:
    error = letter["error"]
    log.warning("record %s failed at %s: %s: %s", letter["index"], letter["stage"], error["type"], error["message"])
