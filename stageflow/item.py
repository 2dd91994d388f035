"""What travels: the item (one record in flight), what became of it, and what of it is kept when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from stageflow.errors import RecordError

__all__ = ["BadRecord", "Failure", "Item", "Note", "Outcome", "ReadOnlyDict"]

Outcome = Literal["ok", "degraded", "skipped"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something out of the ordinary that a stage did with an item; it ends in the output's ``_stageflow``.

    Args:
        outcome: ``"degraded"`` (the result is a stand-in) or ``"skipped"`` (the result is ``None``).
        error: Type and message of the error that led there, or ``None``.
        attempts: How often the handler was called, from 1.
    """

    outcome: Outcome
    error: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item stopped: the stage, the error, and how often it was tried."""

    stage: str | None
    error: BaseException
    attempts: int
    retryable: bool = False


class Item:
    """One record on its way through the graph.

    An item is settled when nothing of it is queued or running any more (``live`` is 0). ``failure`` is set by the
    first stage that gives it up; from then on no further stage is started for it. ``arrived`` counts, for the
    stages with several dependencies, how many of them have finished: a join waits here, in a number, and never in
    a worker, which is why a diamond can't deadlock.

    Attributes:
        index: The record's place in its source, from 0: its identity over attempts and runs.
        record: The input record.
        results: What the stages that have finished returned, by stage name.
        contexts: In the context style, each finished stage's view of the context.
        notes: What was out of the ordinary, by stage name; ``None`` while there is nothing.
    """

    __slots__ = ("aborted", "arrived", "contexts", "failure", "index", "live", "notes", "record", "results")

    def __init__(self, index: int, record: Any, live: int) -> None:
        self.index = index
        self.record = record
        self.live = live
        self.results: dict[str, Any] = {}
        self.contexts: dict[str, Any] | None = None
        self.notes: dict[str, Note] | None = None
        self.arrived: dict[str, int] | None = None
        self.failure: Failure | None = None
        self.aborted = False

    def note(self, stage: str, note: Note) -> None:
        """Remember what was out of the ordinary at ``stage``."""
        if self.notes is None:
            self.notes = {}
        self.notes[stage] = note


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A piece of input that holds no record: it goes to the dead letters as it stands, and nothing is run on it.

    Args:
        error: Why, with line and column where they are known.
        raw: The bytes as read, cut to what a dead letter can hold.
    """

    error: RecordError
    raw: bytes = field(default=b"", repr=False)


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses to be changed; ``json``, ``orjson`` and ``isinstance`` see an ordinary dict."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the input record is read-only; return what you want to add")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[Mapping[str, Any]]]:
        # Copies and pickles are plain dicts: whoever makes one owns it.
        return dict, (dict(self),)
