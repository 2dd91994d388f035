"""The seam between a run and what does its records: the engine in this process, or several processes with one each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from stageflow.commit import Resumption
from stageflow.counters import RunCounters, StageCounters
from stageflow.ends import Ends
from stageflow.engine.limiter import Limiter
from stageflow.engine.targets import Elsewhere
from stageflow.errors import InputDamaged, StageflowError
from stageflow.events import Event, StageSnapshot
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.protocols import Source

__all__ = ["JobOrigin", "StageAccount", "Work", "WorkRequest"]


@dataclass(frozen=True, slots=True)
class JobOrigin:
    """By which another process finds the same job.

    Args:
        reference: As for ``stageflow run``.
        overrides: The settings from outside, weakest first.
        params: The values of the job's parameters that were given.
    """

    reference: str
    overrides: tuple[Override, ...]
    params: Mapping[str, Any] | None


@dataclass(slots=True)
class StageAccount:
    """What a stage has counted, with what its channel has: items received, and the most that ever waited."""

    counters: StageCounters
    received: int
    peak_depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest:
    """What is to be done, and whom to tell.

    Args:
        counters: The account of the run, which the work adds to.
        clock: Seconds, from any origin.
        emit: Where events go.
        warn: Tells the user something.
        stop: Stops the run.
        models: Where stages with ``gpus`` run, if not in processes of this machine.
    """

    plan: Plan
    source: Source
    ends: Ends
    options: Options
    counters: RunCounters
    clock: Callable[[], float]
    emit: Callable[[Event], None]
    warn: Callable[[str], None]
    stop: Callable[[StageflowError], None]
    models: Elsewhere | None = None


class Work(Protocol):
    """Does the records of a run. As a context manager it holds what the job's stages use.

    Attributes:
        begun: There is something that can be stopped.
        at_end: The end of the input was reached.
        damaged: Why the input ended before it should.
        given_up: Parts of the input of which nothing was made, since whoever worked on them died.
        blank: Blank lines met in the input.
        bad: Lines of it that were unreadable.
        retried: Records of earlier dead letters that were done again.
        open: Records that are admitted and not settled. ``peak_open``: the most there were; ``max_open``: the bound.
    """

    begun: bool
    max_open: int

    @property
    def at_end(self) -> bool: ...
    @property
    def damaged(self) -> InputDamaged | None: ...
    @property
    def given_up(self) -> Sequence[int]: ...
    @property
    def blank(self) -> int: ...
    @property
    def bad(self) -> int: ...
    @property
    def retried(self) -> int: ...
    @property
    def open(self) -> int: ...
    @property
    def peak_open(self) -> int: ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *failure: object) -> None: ...

    def take_up(self, found: Resumption, upstream: Mapping[str, str] | None) -> None:
        """Say from where to go on; before entering.

        Args:
            upstream: By stage a digest of what its results depend on, where a later run can go on with this one.
        """
        ...

    async def run(self) -> None:
        """Do everything that is to be done, until the input ends or the work is stopped.

        Raises:
            StageflowError: The source or the output failed.
        """
        ...

    def stop(self) -> None:
        """Read no more, and finish what was admitted."""
        ...

    def cancel(self) -> None:
        """End the attempts too: what has settled is written, the rest is not done."""
        ...

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage at this moment, in execution order."""
        ...

    def limiters(self) -> Mapping[str, Limiter]:
        """The rate limits that are kept here, each by the first stage under it."""
        ...

    def accounts(self) -> Mapping[str, StageAccount]:
        """Each stage's account, in execution order."""
        ...

    def why_stopped(self) -> str | None:
        """What a stage that stopped the run says of it, with what is known by now."""
        ...
