"""What a fleet and its replicas say to each other. Plain data, pickled over a pipe between our own processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stageflow.commit import Commit, JobIdentity
from stageflow.errors import StageflowError
from stageflow.events import Event, StageSnapshot
from stageflow.options import Options
from stageflow.replicas.coordinator import Lease
from stageflow.work import JobOrigin, StageAccount

__all__ = [
    "Ask",
    "AskShares",
    "Asked",
    "Beat",
    "Begin",
    "Cancel",
    "Committed",
    "Drained",
    "Entries",
    "Failed",
    "Give",
    "Granted",
    "Lines",
    "NoMore",
    "Open",
    "Read",
    "Ready",
    "Setup",
    "Stop",
    "Stopped",
    "Told",
    "Written",
]


# What is in a shard


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a text, the first of them with this index; the last one of the input may lack its LF."""

    first: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of a source that is no text, and what is tried again: indices and records, each pickled by itself.

    So what can't be read is one record, and no message that nobody can read.
    """

    entries: Sequence[tuple[int, bytes]]


# To a replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first message: all that a replica is told before it has work.

    Args:
        job: Where the job is, with the replica's part of the limits.
        options: What of the run's options concerns a replica.
        loop: ``"uvloop"`` or ``"asyncio"``.
        run: The identity of the run, for idempotency keys.
        path, numbered: Of the source.
        as_lines, letters_as_lines: Output records, and dead letters, are sent as lines; else as they are.
        durable: There is a ledger.
        retrying: Records of dead letters may come.
        of_main: The job's file is the one that the fleet's process was started with, whose classes are pickled by the
            name ``__main__``.
    """

    job: JobOrigin
    options: Options
    loop: str
    run: str
    path: str | None
    numbered: bool
    as_lines: bool
    letters_as_lines: bool
    durable: bool
    retrying: bool
    of_main: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """All replicas are there and of one mind: ask for work.

    Args:
        full: The buckets of rate limits are full: nobody has taken of them yet.
    """

    full: bool = True


@dataclass(frozen=True, slots=True)
class Give:
    """A lease."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class NoMore:
    """There will be no other lease."""


@dataclass(frozen=True, slots=True)
class Written:
    """The commit that was sent is safe."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Shares of the rate limits, by the stage each limit is named after; good for ``seconds`` from when they were asked
    for, which was ``at``, by the replica's clock."""

    shares: Mapping[str, float]
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Read no more, and finish what was admitted."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the attempts, too."""


# From a replica


@dataclass(frozen=True, slots=True)
class Ready:
    """The job is loaded and its resources are open.

    Args:
        job: What the replica made of it.
        module: What the job's module is called there.
    """

    job: JobIdentity
    max_open: int
    module: str


@dataclass(frozen=True, slots=True)
class Open:
    """Records admitted and not settled. ``again``: those of them that are tried again, after they had died."""

    records: int = 0
    again: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """There is room for one more lease."""


@dataclass(frozen=True, slots=True)
class Read:
    """A lease was let in, but for these lines of it, which hold no record."""

    blank: Sequence[int]
    open: Open


@dataclass(frozen=True, slots=True)
class Committed:
    """Records that have settled; the next is sent when this one is written.

    Args:
        open: They are still among these.
        bad: Lines so far that were unreadable, those of the commit included.
    """

    commit: Commit
    open: Open
    bad: int


@dataclass(frozen=True, slots=True)
class AskShares:
    """For shares of the rate limits, by the stage each is named after. ``at``: when, by the replica's clock."""

    at: float
    limits: Mapping[str, Asked]


@dataclass(frozen=True, slots=True)
class Asked:
    """For a share of one limit: the part of the whole that was used since the last asking, and whether calls wait."""

    used: float
    waiting: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """How the replica stands.

    Args:
        peak_open: The most records that were open at a time.
    """

    open: Open
    peak_open: int
    stages: tuple[StageSnapshot, ...]
    accounts: Mapping[str, StageAccount]


@dataclass(frozen=True, slots=True)
class Told:
    """Something the user should hear of."""

    event: Event


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stage, or what was read, stops the run."""

    kind: type[StageflowError]
    exit_code: int
    message: str
    hint: str | None
    where: str | None

    @classmethod
    def of(cls, error: StageflowError) -> Stopped:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == StageflowError.__module__)
        return cls(kind, error.exit_code, error.message, error.hint, error.where)

    def error(self) -> StageflowError:
        error = self.kind(self.message, hint=self.hint, where=self.where)
        error.exit_code = self.exit_code  # type: ignore[misc]  # a signal's differs from its class's
        return error


@dataclass(frozen=True, slots=True)
class Drained:
    """All that was let in has settled and was written. ``why``: what a stage says that stopped the run."""

    last: Beat
    why: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The replica can't go on."""

    error: Stopped | None
    trace: str
