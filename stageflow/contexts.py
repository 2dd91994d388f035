"""The context style: one instance of a dataclass per record, filled in by every stage.

Each stage sees what the stages before it wrote and nothing else, so that what it sees does not depend on which of two
parallel branches was faster:

* a stage works on a shallow copy (:func:`fork`); a failed attempt leaves its copy behind and no trace;
* when it succeeds, the fields it changed are noted with its name (:func:`commit`);
* where branches meet, their views are merged field by field (:func:`merge`): the later writer wins where one comes
  before the other in the graph; two writers that are not ordered must agree, or the record is a dead letter.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stageflow.errors import ContextConflict, RecordError

__all__ = ["View", "commit", "fields_of", "fork", "merge", "required_fields", "start"]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A context as one stage left it, and for each changed field the stage that set it last."""

    value: Any
    writers: Mapping[str, str]


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a context and their values, fields that were added to the instance included."""
    named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return named | getattr(value, "__dict__", {})


def required_fields(context: type) -> tuple[str, ...]:
    """The fields of a context class that a record must have: those with no default."""
    missing = dataclasses.MISSING
    return tuple(
        field.name
        for field in dataclasses.fields(context)
        if field.init and field.default is missing and field.default_factory is missing
    )


def start(context: type, record: Any) -> View:
    """The context of a record, before any stage: built from the record's fields of the same names.

    Raises:
        RecordError: The record is no object, or lacks a field that has no default.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"{context.__name__} can't be built from a {type(record).__name__}: the record is no object")
    given = {
        field.name: record[field.name] for field in dataclasses.fields(context) if field.init and field.name in record
    }
    for name in required_fields(context):
        if name not in given:
            raise RecordError(f'the record has no field "{name}"')
    return View(context(**given), {})


def fork(view: View) -> Any:
    """The shallow copy that one attempt may write on."""
    return copy.copy(view.value)


def commit(before: View, after: Any, stage: str) -> View:
    """What a successful attempt of ``stage`` made of ``before``."""
    old = fields_of(before.value)
    unset = object()
    changed = {name: stage for name, value in fields_of(after).items() if old.get(name, unset) is not value}
    return View(after, {**before.writers, **changed})


def merge(views: Sequence[View], above: Mapping[str, frozenset[str]]) -> View:
    """Bring the views of several branches together.

    Args:
        views: One per branch, at least one, all grown from the same start.
        above: For each stage all stages before it in the graph.

    Raises:
        ContextConflict: Two stages, neither before the other, set one field to different values.
    """
    if len(views) == 1:
        return views[0]
    merged = copy.copy(views[0].value)
    writers = dict(views[0].writers)
    for view in views[1:]:
        for name, writer in view.writers.items():
            holder = writers.get(name)
            if holder is None or holder in above[writer]:
                object.__setattr__(merged, name, getattr(view.value, name))  # also where the class is frozen
                writers[name] = writer
            elif writer != holder and writer not in above[holder]:
                _agree(name, holder, getattr(merged, name), writer, getattr(view.value, name))
    return View(merged, writers)


def _agree(name: str, first: str, held: Any, second: str, value: Any) -> None:
    if held is not value and held != value:
        raise ContextConflict(
            f'stages "{first}" and "{second}" both set "{name}" and neither comes before the other; '
            f"let one depend on the other, or set two fields"
        )
