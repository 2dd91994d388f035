"""What a durable run is made of, as plain data: commits, marks in the input, and the identities of input and job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

__all__ = [
    "BLANK",
    "DEAD_IN_PART",
    "Commit",
    "InputIdentity",
    "InputMark",
    "JobIdentity",
    "LetterPlace",
    "OpenRequest",
    "Resumption",
    "Spend",
    "Totals",
]

DEAD_IN_PART: Final = 4
"""What stands in :attr:`Resumption.done` for a dead record of which some children were written."""

BLANK: Final = 5
"""What stands in :attr:`Resumption.done` for a line that holds no record; records that have settled have less."""


@dataclass(frozen=True, slots=True)
class InputMark:
    """A place in the input, at the start of a line, and what stands before it.

    Args:
        lines: Physical lines before it, blank ones included; the next line has this index.
        bytes: Bytes before it, of the decompressed text where the input is compressed.
        digest: A chain over the marks of a file: SHA-256, in hex, of the digest of the mark before (``""`` for the
            first) followed by the bytes between the two. So the chain can be continued from any mark without reading
            what lies before.
        blank: Indices of blank lines, which will never settle: those found since a mark was last handed out. A line is
            looked at after the mark behind it was made, so some of these may stand before the previous mark, and the
            last ones come with the last mark, which is handed out once more for them.
    """

    lines: int
    bytes: int
    digest: str
    blank: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InputIdentity:
    """A file as the system tells it from others. Sizes in bytes, times in nanoseconds.

    Args:
        codec: How it is read: "plain" and "gz" are text, as it stands and compressed.
        version: What else tells it from others: the tag of an object, a digest of what several files are.
    """

    path: str
    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    codec: str = "plain"
    version: str = ""

    def same_file(self, other: InputIdentity) -> bool:
        """Whether nothing has touched it between the two looks; the name it was called by does not matter."""
        return replace(self, path=other.path) == other


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What of a job decides its results. All values are digests, so nothing of the job can be read out of a ledger.

    Args:
        file: The job as the user calls it, for messages; no part of the identity.
        rest: The job file without its stages and without what only sets the pace.
        stages: Source and version by stage.
        graph: The names of the stages each stage comes after.
        files: The contents of the files that the job declares.
        params: The values of the job's parameters; secret ones are left out.
    """

    file: str
    rest: str
    stages: Mapping[str, str]
    graph: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spend:
    """What the calls of a run have cost, in all its epochs, as :mod:`stageflow.money` counts it.

    Args:
        known: By what they reported.
        unsure: What they may have cost beyond that: calls that reported nothing, and those that are in flight, count
            with the most they may cost.
    """

    known: int = 0
    unsure: int = 0

    @property
    def most(self) -> int:
        return self.known + self.unsure


@dataclass(slots=True)
class Commit:
    """What some settled records came to; it is written as a whole or not at all.

    Args:
        ordinals: The records' indices in the input, in the order in which they settled.
        lines: Their output, record by record: encoded lines for a file, whatever the sink encodes to otherwise.
        line_counts: By ordinal, how many of ``lines`` are its own, where that is not one.
        letters: Their dead letters, record by record.
        letter_counts: By ordinal, how many of ``letters`` are its own, where that is not none.
        marks: Places in the input that were read since the last commit.
        places: By ordinal, the place of each of its lines among the children of the record (see ``Item.path``); only of
            records of which something failed or that are tried again, since more than one commit may hold their lines.
        resolved: Numbers of earlier dead letters that were tried again, whatever came of it.
        replaced: Ordinals whose earlier output these lines take the place of.
        spend: What was spent until now, where that has changed.
    """

    ordinals: list[int] = field(default_factory=list)
    lines: list[Any] = field(default_factory=list)
    line_counts: dict[int, int] = field(default_factory=dict)
    letters: list[Any] = field(default_factory=list)
    letter_counts: dict[int, int] = field(default_factory=dict)
    marks: list[InputMark] = field(default_factory=list)
    places: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    resolved: list[int] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    spend: Spend | None = None


@dataclass(slots=True)
class Totals:
    """Settled input records by what became of them."""

    written: int = 0
    dropped: int = 0
    dead: int = 0

    @property
    def settled(self) -> int:
        return self.written + self.dropped + self.dead


@dataclass(frozen=True, slots=True)
class LetterPlace:
    """Where a dead letter stands: its number, the record it is of, and its bytes in the file of dead letters."""

    number: int
    ordinal: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a run would do, for the ledger to say whether that goes on with what is there.

    Args:
        input: ``None`` where a later run could not read the same input again.
        first_difference: As :meth:`stageflow.protocols.Source.first_difference`.
        job_changes: What of the second job is not as it was in the first, each in words.
        limit: The most records of the input to do, counted from its first.
        fresh: Rename what is there and start anew.
        retry_failed: Do the records of the dead letters again.
        accept_job_change: Go on although the job is not what it was.
    """

    input: InputIdentity | None
    first_difference: Callable[[Sequence[InputMark]], tuple[int, int] | None]
    job: JobIdentity
    job_changes: Callable[[JobIdentity, JobIdentity], list[str]]
    order: Literal["input", "completion"] = "input"
    limit: int | None = None
    fresh: bool = False
    retry_failed: bool = False
    accept_job_change: bool = False


@dataclass(slots=True, kw_only=True)
class Resumption:
    """What the ledger says of earlier runs. Of a fresh one: nothing settled, from the beginning.

    Args:
        run: The identity of the run, kept over all its epochs.
        epoch: How often it was started, from 1.
        done: By ordinal, non-zero where the record has settled or the line is blank; it may end before the input does.
        totals: The records behind ``done``.
        start: Where to begin to read; everything before has settled.
        marks: All that earlier runs noted.
        letters: Dead letters to try again, by ordinal.
        notes: What the user should know, a line each.
        complete: There is nothing to do, and nothing was opened or changed.
        spend: What was spent.
    """

    run: str
    epoch: int = 1
    done: bytearray = field(default_factory=bytearray)
    totals: Totals = field(default_factory=Totals)
    start: InputMark | None = None
    marks: Sequence[InputMark] = ()
    letters: Sequence[LetterPlace] = ()
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    spend: Spend = field(default_factory=Spend)
