"""One of several runs over the same input that know nothing of each other: each does every n-th shard.

For whatever starts the same command several times and tells each which one it is: an indexed job of Kubernetes, an
array of Slurm, two terminals. Nobody takes over what a lost one leaves: the same command again does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from stageflow.cluster.input import ShardedInput
from stageflow.cluster.messages import ShardCommit, ShardLease
from stageflow.cluster.opening import ShardedOutput, totals_of
from stageflow.cluster.reading import LeasedShards
from stageflow.cluster.writing import ShardOutput
from stageflow.commit import InputMark, OpenRequest, Resumption
from stageflow.errors import RequestError, StageflowError, StorageError
from stageflow.local import LocalWork
from stageflow.options import Options
from stageflow.protocols import Entry
from stageflow.work import WorkRequest

__all__ = ["StaticInput", "StaticOutput", "StaticWork", "parse_place"]


def parse_place(text: str | None) -> tuple[int, int]:
    """Which of how many, from ``"0/4"`` to ``"3/4"``.

    Raises:
        RequestError: There is none, or it is not of that form.
    """
    if not text:
        hint = "for instance --shard 0/4, on one of four machines"
        raise RequestError("--engine static needs --shard I/N", hint=hint)
    number, slash, count = text.partition("/")
    try:
        place = int(number), int(count)
    except ValueError:
        place = -1, 0
    if not slash or not 0 <= place[0] < place[1]:
        raise RequestError(f"--shard {text}: expected I/N, from 0/N to N-1/N", hint="for instance --shard 0/4")
    return place


class _Given:
    """The leases of a run that is given all of them at its beginning."""

    def __init__(self) -> None:
        self._left: deque[ShardLease] = deque()

    def give(self, numbers: Iterable[int]) -> None:
        # No other run, not even one that was told the same place by mistake, may ever try under the same number.
        attempt = secrets.randbits(31) + 1
        self._left.extend(ShardLease(number, attempt) for number in numbers)

    async def next(self) -> ShardLease | None:
        return self._left.popleft() if self._left else None

    def coming(self) -> ShardLease | None:
        return self._left[0] if self._left else None

    def end(self) -> None:
        """Give no more."""
        self._left.clear()

    async def about_to_run(self, number: int, place: int) -> None: ...


class StaticOutput(ShardOutput):
    """Commits every n-th shard; see :class:`~.writing.ShardOutput`.

    Args:
        place: Which one of how many.

    Attributes:
        given: The leases, when it was opened.
    """

    def __init__(self, whole: ShardedOutput, place: tuple[int, int], failed: Callable[[StorageError], None]) -> None:
        super().__init__(whole.commits, "", committed=self._note, failed=failed)
        self.whole = whole
        self.given = _Given()
        self.number, self.count = place

    def open(self, request: OpenRequest) -> Resumption:
        """Make or take up the plan, and take every n-th shard of what is left."""
        self.whole.open(request)
        mine = self._mine()
        done = {each: self.whole.done[each] for each in mine if each in self.whole.done}
        self.given.give(each for each in mine if each not in done)
        return Resumption(
            run=self.whole.plan.run,
            epoch=1 + bool(done),
            totals=totals_of(done),
            complete=len(done) == len(mine) and (len(mine) > 0 or not self.whole.plan.shards),
            notes=self.whole.notes() + self._notes(),
        )

    def _notes(self) -> list[str]:
        shards = len(self.whole.plan.shards)
        return [f"the input is {shards:,} shards: there is none for this run"] if 0 < shards <= self.number else []

    def _mine(self) -> range:
        return range(self.number, len(self.whole.plan.shards), self.count)

    def given_up(self) -> list[int]:
        """Shards of this run of which nothing was made."""
        return self.whole.given_up(self._mine())

    def _note(self, commit: ShardCommit) -> None:
        self.whole.done[commit.number] = commit

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """Wait for the commits; who ends last says that all is done."""
        await super().close(complete=complete, ended=ended)
        if complete and await asyncio.to_thread(self.whole.is_whole):
            await asyncio.to_thread(self.whole.finish)


class StaticInput(ShardedInput):
    """The files of the input, of which the leased shards are read."""

    def __init__(self, source: Any, options: Options) -> None:
        super().__init__(source, options)
        self._strict = options.strict
        self._reading: LeasedShards | None = None
        self.output: StaticOutput

    def estimate(self) -> int | None:
        """About how many records there are in this run's shards."""
        found = super().estimate()
        return None if found is None else round(found / self.output.count)

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield the entries of one shard after the other."""
        output = self.output
        self._reading = LeasedShards(output.whole.plan, output.given, output, strict=self._strict)
        async with contextlib.aclosing(self._reading.read()) as portions:
            async for portion in portions:
                self.blank, self.warnings = self._reading.blank, self._reading.warnings
                yield portion
        self.blank, self.warnings = self._reading.blank, self._reading.warnings

    def locate(self, index: int) -> dict[str, Any]:
        """Where a record stands: its file, its shard, and its place in that."""
        assert self._reading is not None, "a record that was not read"
        return self._reading.locate(index)


class StaticWork(LocalWork):
    """A run in this process that has an even part of each rate limit, and ends with whole shards where it can.

    Args:
        output: Where it writes, and what gives it its shards.
    """

    def __init__(self, request: WorkRequest, prepare: Callable[[], object] | None, output: StaticOutput) -> None:
        super().__init__(replace(request, stop=self._stop_at_once), prepare)
        self._tell_stopped = request.stop
        self._output = output
        self._at_once = False

    async def run(self) -> None:
        """Feed, run and record; what is not committed in the end is not done."""
        for limiter in self.limiters().values():
            limiter.set_share(1.0 / self._output.count)
        try:
            await super().run()
        finally:
            await self._output.all_tried()
            lost, counters = self._output.uncommitted(), self._request.counters
            counters.written -= lost.written
            counters.dropped -= lost.dropped
            counters.dead -= lost.dead

    def stop(self) -> None:
        """Begin no more shards. Those that were begun are done, unless it is them that something is wrong with."""
        self._output.given.end()
        if self._at_once or self._output.broken:
            super().stop()

    def _stop_at_once(self, error: StageflowError) -> None:
        """Something in the records or their stages ends the run."""
        self._at_once = True
        self._tell_stopped(error)
        self.stop()  # where it was being stopped already

    @property
    def given_up(self) -> Sequence[int]:
        """Of this run's shards."""
        return self._output.given_up()
