"""What replicas, their coordinator and the driver of a run past one machine say to each other. Plain data.

A replica speaks, and the coordinator answers: :class:`Report` and :class:`Orders`. A replica has one report under way
at a time, and repeats it until it is answered, so that what a report says it holds is all that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stageflow.events import Event, StageSnapshot
from stageflow.replicas.messages import Asked, Beat, Granted, Stopped
from stageflow.work import StageAccount

__all__ = ["Orders", "Progress", "Report", "ShardCommit", "ShardLease"]


@dataclass(frozen=True, slots=True)
class ShardLease:
    """A shard that a replica is to do.

    Args:
        number: Of the shard, from 0, in the order of the input.
        attempt: Which try at it this is, from 1; no two leases of a shard have the same.
        careful: It has killed who worked on it alone: its records are to be done one at a time, each told of before.
        fatal: Places in the shard, from 0, of records that kill whoever works on them: they are to fail, and not to be
            run.
    """

    number: int
    attempt: int
    careful: bool = False
    fatal: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """What was made of a shard, as its commit record has it.

    Args:
        lines: Lines of the input, blank ones included.
        written, dropped, dead: Its records by what became of them.
        out_lines, dead_lines: Lines of output and dead letters; without any there is no object of them.
        bad: Lines that were unreadable; they are among the dead.
        failed: Nothing was made of it: too many replicas died of it. All the rest is 0 then.
    """

    number: int
    attempt: int
    lines: int = 0
    written: int = 0
    dropped: int = 0
    dead: int = 0
    out_lines: int = 0
    dead_lines: int = 0
    bad: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replica says.

    Args:
        who: Its name, which no other replica of the run ever had.
        at: When, in seconds of its own clock. A report that is repeated has the same, and the next one a later one.
        held: The leases that it has, by the number of the shard, with their attempts; not what it has committed.
        asks: Shards that it could take beside those.
        committed: What it has found committed since its last report that was answered, by itself or by others.
        beat: How it stands.
        limits: What it asks of its rate limits, by the first stage under each. What is granted takes the place of the
            shares it has: while an answer fails to come, it has none.
        at_record: In a careful lease, the shard and the place in it of the record that it is about to run.
        told: What the user should hear of, since its last report.
        stopped: Something stops the run.
        leaving: It has done all it had, and asks for no more.
    """

    who: str
    at: float
    held: Mapping[int, int]
    asks: int = 0
    committed: tuple[ShardCommit, ...] = ()
    beat: Beat | None = None
    limits: Mapping[str, Asked] | None = None
    at_record: tuple[int, int] | None = None
    told: tuple[Event, ...] = ()
    stopped: Stopped | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The coordinator's answer.

    Args:
        leases: What it is to do beside what it holds.
        drop: Shards of those it holds that are no longer its own; what it still makes of them comes to nothing.
        granted: Its shares of the rate limits.
        fenced: It was taken for lost: it is to end at once, and what it holds is no longer its own.
        stop: It is to read no more and finish what it has begun. ``cancel``: to end the attempts, too.
        finished: All shards are committed.
    """

    leases: tuple[ShardLease, ...] = ()
    drop: tuple[int, ...] = ()
    granted: Granted | None = None
    fenced: bool = False
    stop: bool = False
    cancel: bool = False
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the driver is told.

    Args:
        commits: Those it was not told of before, by the ``cursor`` it gave. A coordinator that takes the place of
            another one tells all of them once more: the driver knows them by the numbers of their shards.
        cursor: To be given the next time.
        replicas: The names of those that are there: not those that have left, died, or been silent for too long.
        open, peak_open: Records that are admitted and not settled, by what the replicas said last.
        stopped: What stops the run, where a replica said so.
        finished: All shards are committed.
    """

    commits: tuple[ShardCommit, ...]
    cursor: int
    replicas: tuple[str, ...]
    open: int
    peak_open: int
    stages: tuple[StageSnapshot, ...]
    accounts: Mapping[str, StageAccount]
    told: tuple[Event, ...] = ()
    stopped: Stopped | None = None
    finished: bool = False
