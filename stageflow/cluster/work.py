"""The work of a run past one machine, as its driver sees it: an engine is started, asked how it goes, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, Self

from stageflow.adapters.jsonl.encode import encode_strictly
from stageflow.cluster.engines import CoordinatorSetup, Engine, ReplicaSetup
from stageflow.cluster.messages import Progress, ShardCommit
from stageflow.cluster.opening import ShardedOutput, blank_in, totals_of
from stageflow.commit import Commit, LetterPlace, OpenRequest, Resumption
from stageflow.ends import Ends
from stageflow.engine.limiter import Limiter
from stageflow.errors import InputDamaged
from stageflow.events import StageSnapshot, StopRequested, Warned
from stageflow.recorder import failure_watch
from stageflow.work import StageAccount, WorkRequest

__all__ = ["ClusterWork", "DriverOutput"]

_LOOK_SECONDS: Final = 0.25
_LOCK_SECONDS: Final = 10.0


class DriverOutput:
    """The output of a run whose replicas write it; see :class:`stageflow.ends.RunOutput`."""

    def __init__(self, whole: ShardedOutput) -> None:
        self.whole = whole

    def open(self, request: OpenRequest) -> Resumption:
        """Make or take up the plan."""
        self.whole.open(request)
        done = self.whole.done
        return Resumption(
            run=self.whole.plan.run,
            epoch=1 + bool(done),
            totals=totals_of(done),
            complete=len(done) == len(self.whole.plan.shards),
            notes=self.whole.notes(),
        )

    async def write(self, commit: Commit) -> None:
        raise AssertionError("replicas write")

    def read_letter(self, place: LetterPlace) -> bytes:
        raise AssertionError("shards are done again as a whole")

    def give_up_waiting(self) -> None:
        """It waits for nothing."""

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """All is done, or as much as there will be."""
        if complete and await asyncio.to_thread(self.whole.is_whole):
            await asyncio.to_thread(self.whole.finish)
        await asyncio.to_thread(self.whole.unlock)

    def ends(self) -> Ends:
        """The end of a run that is elsewhere."""
        return Ends(
            output=self,
            dead=None,
            encode=encode_strictly,
            encode_letter=encode_strictly,
            durable=True,
            notes=(),
            paths={},
        )


class ClusterWork:
    """Replicas on other machines; see :class:`stageflow.work.Work`.

    Args:
        coordinator, replica: What each begins with.
        replicas: How many there are to be.
    """

    def __init__(
        self,
        request: WorkRequest,
        engine: Engine,
        whole: ShardedOutput,
        *,
        coordinator: CoordinatorSetup,
        replica: ReplicaSetup,
        replicas: int,
    ) -> None:
        self._request = request
        self._engine = engine
        self._whole = whole
        self._coordinator = coordinator
        self._replica = replica
        self._replicas = replicas
        self._cursor = 0
        self._order: Literal["", "stop", "cancel"] = ""
        self._ordered = asyncio.Event()
        self._last: Progress | None = None
        self._before = Resumption(run="")
        self._known: set[int] = set()
        self._watch = failure_watch(request.options.max_failure_rate, request.stop)
        self._warned: set[str] = set()
        self._locked = 0.0
        self.begun = False
        self.blank = 0
        self.retried = 0
        self.max_open = 0
        self.damaged: InputDamaged | None = None

    def take_up(self, found: Resumption, upstream: Mapping[str, str] | None) -> None:
        """Say from where to go on."""
        self._before = found
        self._known = set(self._whole.done)
        self.blank = sum(map(blank_in, self._whole.done.values()))

    async def __aenter__(self) -> Self:
        """Start the engine."""
        await asyncio.to_thread(self._whole.lock, self._request.warn)
        coordinator = replace(self._coordinator, shards=len(self._whole.plan.shards))
        await self._engine.start(coordinator, self._replica, self._replicas)
        self.begun = True
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._engine.close()

    async def run(self) -> None:
        """Look at it from time to time until all is committed, or nobody works any more."""
        clock = self._request.clock
        self._locked = clock()
        while not self._apply(await self._engine.observe(self._cursor, self._order)):
            if clock() - self._locked > _LOCK_SECONDS:
                self._locked = clock()
                await asyncio.to_thread(self._whole.keep_lock)
            self._ordered.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._ordered.wait()
            except TimeoutError:
                pass
        for commit in (await asyncio.to_thread(self._whole.commits.all)).values():
            self._take(commit)  # of what a replica could not tell any more
        self._count_read(0)

    def _apply(self, progress: Progress) -> bool:
        """Take what is new into the account. True at the end."""
        self._last, self._cursor = progress, progress.cursor
        for commit in progress.commits:
            self._take(commit)
        self._count_read(progress.open)
        for event in (*progress.told, *self._engine.events()):
            if not isinstance(event, Warned):
                self._request.emit(event)
            elif event.message not in self._warned:
                self._warned.add(event.message)
                self._request.emit(event)
        if progress.stopped is not None:
            self._request.stop(progress.stopped.error())
        return progress.finished or bool(self._order and not progress.replicas)

    def _count_read(self, open_records: int) -> None:
        counters = self._request.counters
        counters.read = counters.written + counters.dropped + counters.dead + open_records

    def _take(self, commit: ShardCommit) -> None:
        if commit.number in self._known:
            return
        self._known.add(commit.number)
        self._whole.done[commit.number] = commit
        counters = self._request.counters
        counters.written += commit.written
        counters.dropped += commit.dropped
        counters.dead += commit.dead
        counters.bad += commit.bad
        self.blank += blank_in(commit)
        if commit.failed:
            self._request.warn(f"shard {commit.number} was given up: whoever worked on it died")
        self._watch(commit.dead, commit.written + commit.dropped + commit.dead)

    def stop(self) -> None:
        """Lease out no more, and let the replicas finish the shards that they have begun."""
        self._order = self._order or "stop"
        self._ordered.set()

    def cancel(self) -> None:
        """End the attempts, too."""
        if self.open:
            self._request.emit(StopRequested("cancelled", self.open, 0.0, cancelled=True))
        self._order = "cancel"
        self._ordered.set()

    # What others see

    @property
    def at_end(self) -> bool:
        return self._last is not None and self._last.finished

    @property
    def given_up(self) -> list[int]:
        """In this run and the earlier ones."""
        return self._whole.given_up()

    @property
    def bad(self) -> int:
        return self._request.counters.bad

    @property
    def open(self) -> int:
        return self._last.open if self._last is not None else 0

    @property
    def peak_open(self) -> int:
        return self._last.peak_open if self._last is not None else 0

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage in all replicas."""
        return self._last.stages if self._last is not None else ()

    def limiters(self) -> dict[str, Limiter]:
        """None: they are kept by the replicas."""
        return {}

    def accounts(self) -> dict[str, StageAccount]:
        """Each stage's account in all replicas, and in those that were lost."""
        return dict(self._last.accounts) if self._last is not None else {}

    def why_stopped(self) -> str | None:
        """What a stage says is among what the replica said that stopped the run."""
        return None
