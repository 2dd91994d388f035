"""The one output of several processes: their commits are joined, put in order where that is asked for, and written."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stageflow.commit import Commit, InputMark, Spend
from stageflow.counters import RunCounters
from stageflow.ends import Ends
from stageflow.engine.attempt import describe
from stageflow.errors import StorageError
from stageflow.protocols import Entry
from stageflow.replicas.coordinator import Coordinator
from stageflow.replicas.order import InputOrder, merged
from stageflow.replicas.wire import unpickled

__all__ = ["Writing"]


class Writing:
    """Writes what is committed, in one task.

    One commit is being written at a time; what comes meanwhile is joined to the next one. A process goes on when what
    it has sent is written, so that a slow output holds back all of them.

    Args:
        order: Holds back what is before its turn; ``None``: the output puts itself in order, or nobody asks for it.
        watch: Told how many of how many settled records failed, before they are written.
        retried: The indices of the records that are tried again.
        renamed: Modules by what they are called where results are pickled.
        spend: What was spent, where that is news.

    Attributes:
        marks: Places in the input that were read, to stand before what is written next.
        again: Records written so far that were tried again.
    """

    def __init__(
        self,
        ends: Ends,
        coordinator: Coordinator,
        counters: RunCounters,
        *,
        order: InputOrder | None,
        watch: Callable[[int, int], None],
        retried: Collection[int],
        renamed: Mapping[str, str],
        spend: Callable[[], Spend | None],
    ) -> None:
        self._ends = ends
        self._coordinator = coordinator
        self._counters = counters
        self._order = order
        self._watch = watch
        self._retried = retried
        self._renamed = renamed
        self._spend = spend
        self._commits: list[tuple[Commit, Callable[[], None]]] = []
        self._more = asyncio.Event()
        self._closed = False
        self.marks: list[InputMark] = []
        self.again = 0

    def take(self, commit: Commit, written: Callable[[], None]) -> None:
        """Take a commit; ``written`` is called when it is safe."""
        if self._order is not None:
            counts, lines = commit.line_counts, iter(commit.lines)
            for index in commit.ordinals:
                own = list(itertools.islice(lines, counts.get(index, 1)))
                self._order.hold(self._coordinator.shard_of(index), index, own)
        self._coordinator.settled(commit.ordinals)
        self._commits.append((commit, written))
        self._more.set()

    def bear(self, mark: InputMark) -> None:
        """Write a mark, whether or not there is anything else to be written."""
        self.marks.append(mark)
        self._more.set()

    def close(self) -> None:
        """Nothing will come any more."""
        self._closed = True
        self._more.set()

    async def run(self) -> None:
        """Write until closed.

        Raises:
            StorageError: The output failed.
        """
        while not self._closed:
            await self._more.wait()
            self._more.clear()
            while self._commits:
                await self._write_commits()
        await self._write_commits()
        if self._order is not None:
            await self._ends.output.write(self._as_taken(self._order.rest()))

    async def _write_commits(self) -> None:
        taken, self._commits = self._commits, []
        commit = merged(commit for commit, _ in taken)
        # A mark stands before every commit of what was read before it; and what is leased was read before.
        commit.marks, self.marks = self.marks, []
        commit.spend = self._spend()
        tally = _Tally.of(commit, self._retried)
        self._watch(tally.dead, len(commit.ordinals))
        await self._write(commit)
        counters = self._counters
        counters.written += tally.written
        counters.dropped += tally.dropped
        counters.dead += tally.dead - tally.retried
        self.again += tally.retried
        for _, written in taken:
            written()

    async def _write(self, commit: Commit) -> None:
        dead = self._ends.dead
        letters = self._letters(commit) if dead is not None else []
        done, self._coordinator.done = self._coordinator.done, []
        if self._order is not None:
            commit = self._order.release(done)
        if commit.ordinals or commit.marks or commit.spend is not None:
            await self._ends.output.write(self._as_taken(commit))
        if letters and dead is not None:
            await dead.write(letters)

    def _as_taken(self, commit: Commit) -> Commit:
        """With its lines as the output takes them."""
        if not self._ends.as_lines:
            commit.lines = [self._ends.encode(self._unpickled(line)) for line in commit.lines]
        return commit

    def _letters(self, commit: Commit) -> list[Entry]:
        owners = [index for index in commit.ordinals for _ in range(commit.letter_counts.get(index, 0))]
        letters, commit.letters, commit.letter_counts = commit.letters, [], {}
        if not self._ends.letters_as_lines:
            letters = [self._ends.encode_letter(self._unpickled(letter)) for letter in letters]
        return list(zip(owners, letters, strict=True))

    def _unpickled(self, data: bytes) -> Any:
        try:
            return unpickled(data, self._renamed)
        except Exception as error:
            raise StorageError(
                f"a result of another process can't be read in this one: {describe(error)}",
                hint="define its class where both can import it, or run with processes=1",
            ) from error


@dataclass(frozen=True, slots=True)
class _Tally:
    """The records of a commit by what became of them; ``retried`` are among those."""

    written: int
    dropped: int
    dead: int
    retried: int

    @classmethod
    def of(cls, commit: Commit, retried: Collection[int]) -> _Tally:
        dead = len(commit.letter_counts)
        without = sum(not lines and index not in commit.letter_counts for index, lines in commit.line_counts.items())
        again = sum(index in retried for index in commit.ordinals) if retried else 0
        return cls(len(commit.ordinals) - dead - without, without, dead, again)
