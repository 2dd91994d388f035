"""What travels: the item (one record in flight), what became of it, and what of it is kept when it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, final

from stageflow.errors import ItemError, RecordError

__all__ = [
    "BadRecord",
    "Exit",
    "Failure",
    "Item",
    "Lost",
    "Note",
    "Outcome",
    "Part",
    "ReadOnlyDict",
    "PLACES",
    "STAND_INS",
    "Reentry",
    "called",
    "done",
    "drop",
    "items_of",
]

Outcome = Literal["ok", "degraded", "skipped", "done"]

PLACES: Final = 1 << 40
"""More lines than a shard of a run past one machine has: a record's index is its shard's number times this, and its
place among the lines of it. So it is known without counting the lines before, and rises with the input."""


def called(index: int) -> str:
    """How messages call a record."""
    return str(index) if index < PLACES else f"{index % PLACES} of shard {index // PLACES}"


@final
class Exit:
    """What a handler returns to leave the ordinary way: made by :func:`done` and :func:`drop`.

    One class for all ways out, so that a worker asks one question of each result.
    """

    __slots__ = ("kind", "value")

    def __init__(self, kind: Literal["done", "drop", "skip", "gone", "wait", "spread"], value: Any = None) -> None:
        self.kind = kind
        self.value = value

    def __repr__(self) -> str:
        return f"{self.kind}({self.value!r})"


def done(value: Any) -> Any:
    """Return this from a stage to end the record early with ``value`` as the stage's result.

    What depends on the stage is skipped for this record and is absent from its output; other branches finish.
    """
    return Exit("done", value)


def drop(reason: str = "") -> Any:
    """Return this from a stage to let the record leave without an output; it is counted as dropped.

    Nothing more of the record is started. Where another branch fails, the record is a dead letter all the same.
    """
    return Exit("drop", str(reason))


@dataclass(frozen=True, slots=True)
class Note:
    """Something out of the ordinary that a stage did with an item; it ends in the output's ``_stageflow``.

    Args:
        outcome: ``"degraded"`` (the result is a stand-in), ``"skipped"`` (the result is ``None``) or ``"done"`` (what
            depends on the stage was skipped).
        error: Type and message of the error that led there, or ``None``.
        attempts: How often the handler was called; 0 where ``when`` said no.
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
    """One record on its way through the graph, or one child that a fan-out made of it.

    An item is settled when nothing of it is queued, running or waiting for another attempt, nor of its children
    (``live`` is 0). ``closed`` says that no further stage is started for it: it failed, or was dropped.
    A join waits here, in the results that are there and those that are not yet, and never in a worker, which is why a
    diamond can't deadlock.

    Attributes:
        index: The record's place in its source, from 0: its identity over attempts and runs.
        path: For a child its place among its parent's children, after the parent's own path; for a record empty.
        record: The input record.
        results: What the stages that have finished returned, by stage name.
        contexts: In the context style, each finished stage's view of the context.
        notes: What was out of the ordinary, by stage name; ``None`` while there is nothing.
        attempts: How often a handler was called, by stage name, where it was more than once.
        cut: Stages that are not run for this item because ``done`` came before them.
        children: What fan-outs made of it, in the order in which it was yielded.
        yielded: How many children each fan-out has made of it, in earlier runs too.
        resumed: By generator that an earlier run did not bring to its end, how many of its values it made children of.
        broken: The generators that failed after a value of theirs had gone on; what they yielded is kept.
        maker: For a child the stage that yielded it.
        held: The dead letter waits for the verdict on the stage.
        withheld: The failure is left undone rather than made a dead letter: it stops the run.
        reentry: For a record that comes from dead letters, what it came as.
    """

    __slots__ = ("__dict__", "closed", "cut", "index", "live", "notes", "parent", "record", "results")

    # Most items never need these: as class attributes they cost nothing to make, and room only where they are set.
    path: tuple[int, ...] = ()
    contexts: dict[str, Any] | None = None
    attempts: dict[str, int] | None = None
    failure: Failure | None = None
    dropped: tuple[str, str] | None = None
    maker: str | None = None
    children: list[Item] | None = None
    yielded: dict[str, int] | None = None
    resumed: Mapping[str, int] | None = None
    broken: tuple[str, ...] = ()
    reentry: Reentry | None = None
    withheld = False
    held = False

    def __init__(self, index: int, record: Any, live: int) -> None:
        self.index = index
        self.record = record
        self.live = live
        self.results: dict[str, Any] = {}
        self.closed = False
        self.cut: frozenset[str] | None = None
        self.notes: dict[str, Note] | None = None
        self.parent: Item | None = None

    def note(self, stage: str, note: Note) -> None:
        """Remember what was out of the ordinary at ``stage``."""
        if self.notes is None:
            self.notes = {}
        self.notes[stage] = note

    def attempt(self, stage: str) -> int:
        """Which attempt at ``stage`` this is, from 1."""
        return self.attempts.get(stage, 1) if self.attempts is not None else 1

    def close(self) -> None:
        """Start nothing more of this item, nor of the children it has."""
        self.closed = True
        for child in self.children or ():
            child.close()

    def lineage(self) -> Iterator[Item]:
        """The item, its parent, and so on up to the record."""
        item: Item | None = self
        while item is not None:
            yield item
            item = item.parent

    def level(self) -> tuple[str, ...]:
        """The fan-outs that made it, outermost first: the stages with the same ones above them run for it."""
        return tuple(item.maker for item in self.lineage() if item.maker is not None)[::-1]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A piece of input that holds no record: it goes to the dead letters as it stands, and nothing is run on it.

    Args:
        error: Why, with line and column where they are known.
        raw: The bytes as read, cut to what a dead letter can hold.
    """

    error: RecordError
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Part:
    """An item of an earlier run that is done again from the stage at which it failed.

    Args:
        stage: That stage.
        results: What the stages returned that had finished for the item and for those above it.
        path: The item's place; its makers are the fan-outs above ``stage``.
        yielded: By generator that failed after its first yield, how many of its values have become children.
        notes: What was out of the ordinary before, for the item and for those above it.
    """

    stage: str
    results: Mapping[str, Any]
    path: tuple[int, ...] = ()
    yielded: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Note] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reentry:
    """A record that comes in again because of its dead letters; a source hands it over in the place of the record.

    Args:
        record: The input record.
        numbers: The numbers of all dead letters that are settled when it is.
        parts: What of it is done again. None: all of it, from its first stages.
        written: Something of it was written before: results of children whose siblings failed.
    """

    record: Any
    numbers: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    written: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """A record that is not run, since that has failed outside of any stage: it goes to the dead letters as it came.

    Args:
        record: The input record.
        error: Why.
        reentry: What it came as, where it comes from dead letters.
    """

    record: Any
    error: ItemError
    reentry: Reentry | None = None


STAND_INS: Final[frozenset[Any]] = frozenset({BadRecord, Lost, Reentry})
"""What may stand in the place of a record, and does not simply go to the first stages."""

_new_item: Final = Item.__new__


def items_of(entries: Iterable[tuple[int, Any]], live: int) -> list[Item]:
    """Make ``Item(index, record, live)`` of each entry, up to the first with a stand-in for a record.

    As the initializer of :class:`Item` does it, but in one loop: to call that costs as much as all it sets.
    """
    items: list[Item] = []
    for index, record in entries:
        if type(record) is not dict and type(record) in STAND_INS:
            break
        item = _new_item(Item)
        item.index = index
        item.record = record
        item.live = live
        item.results = {}
        item.closed = False
        item.cut = None
        item.notes = None
        item.parent = None
        items.append(item)
    return items


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses to be changed; ``json``, ``orjson`` and ``isinstance`` see an ordinary dict."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the input record is read-only; return what you want to add")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[Mapping[str, Any]]]:
        # Copies and pickles are plain dicts: whoever makes one owns it.
        return dict, (dict(self),)
