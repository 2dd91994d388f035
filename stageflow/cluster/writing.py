"""The output of a replica's run: what its shards came to, each committed as a whole when all of it has settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.cluster.messages import ShardCommit, ShardLease
from stageflow.cluster.plan import shard_of
from stageflow.commit import Commit, LetterPlace, OpenRequest, Resumption, Totals
from stageflow.ends import Ends
from stageflow.errors import StorageError

if TYPE_CHECKING:
    from stageflow.cluster.commits import Commits

__all__ = ["ShardOutput"]

_AT_ONCE: Final = 16
"""Shards that are being committed; while there are as many, nothing more is taken."""


_LAST_SECONDS: Final = 5.0
"""How long commits may take when the run is cancelled."""


class _Open:
    """A shard that is being worked on.

    Attributes:
        lines, letters: Of its records by their indices, those of one record together.
        out_lines, dead_lines: How many there are of them.
        expected: How many records it has, when that is known. ``read``: lines, and those of them that were unreadable.
        last: The index of the record that settled last.
    """

    def __init__(self, lease: ShardLease) -> None:
        self.lease = lease
        self.lines: dict[int, bytes] = {}
        self.letters: dict[int, bytes] = {}
        self.out_lines = self.dead_lines = 0
        self.dropped = 0
        self.expected: int | None = None
        self.read = 0, 0
        self.settled: set[int] = set()
        self.last = -1

    def take(self, index: int, lines: list[bytes], letters: list[bytes]) -> None:
        """What a record came to, the first time: one of a shard that was dropped, and has come back, settles twice."""
        if index in self.settled:
            return
        if lines:
            self.lines[index] = b"".join(lines)
        if letters:
            self.letters[index] = b"".join(letters)
        self.out_lines += len(lines)
        self.dead_lines += len(letters)
        self.dropped += not lines and not letters
        self.settled.add(index)
        self.last = index

    def take_plain(self, indices: list[int], lines: list[bytes]) -> None:
        """The same of records that came to a line each."""
        if not self.settled.isdisjoint(indices):
            for index, line in zip(indices, lines, strict=True):
                self.take(index, [line], [])
            return
        self.lines.update(zip(indices, lines, strict=True))
        self.out_lines += len(lines)
        self.settled.update(indices)
        self.last = indices[-1]

    def commit(self) -> ShardCommit:
        lines, bad = self.read
        return ShardCommit(
            number=self.lease.number,
            attempt=self.lease.attempt,
            lines=lines,
            written=len(self.lines.keys() - self.letters.keys()),
            dropped=self.dropped,
            dead=len(self.letters),
            out_lines=self.out_lines,
            dead_lines=self.dead_lines,
            bad=bad,
        )


class ShardOutput:
    """Takes commits of records and makes of them commits of shards; see :class:`stageflow.ends.RunOutput`.

    Args:
        run: The identity of the run.
        committed: Told what was found committed for a shard of ours, by us or by others who were faster.
        failed: Told that the store failed, while nobody waits for it.

    Attributes:
        broken: It did.
    """

    def __init__(
        self,
        commits: Commits,
        run: str,
        *,
        committed: Callable[[ShardCommit], None],
        failed: Callable[[StorageError], None],
    ) -> None:
        self._commits = commits
        self._run = run
        self._committed = committed
        self._failed = failed
        self._open: dict[int, _Open] = {}
        self._due: dict[int, _Open] = {}
        self._committing: set[asyncio.Task[None]] = set()
        self._awaited: tuple[int, asyncio.Future[None]] | None = None
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._gave_up = False
        self.broken = False
        # Threads of its own: the loop's are as few as there are processors, and one that the store holds up is not
        # waited for at exit.
        self._threads = ThreadPoolExecutor(_AT_ONCE, "stageflow-commit")

    def ends(self) -> Ends:
        """The end of a run that is here."""
        return Ends(
            output=self,
            dead=None,
            encode=encode_strictly,
            encode_letter=_letter_in_shard,
            durable=True,
            notes=(),
            paths={},
        )

    # As the source has it

    def begin(self, lease: ShardLease) -> None:
        """Records of a shard are about to be let in."""
        self._open[lease.number] = _Open(lease)

    def wants(self, number: int) -> bool:
        """Whether a shard that was begun is still ours to do."""
        return number in self._open

    def read_whole(self, number: int, *, lines: int, records: int, bad: int) -> None:
        """All of a shard was let in."""
        if (shard := self._open.get(number)) is not None:
            shard.expected, shard.read = records, (lines, bad)
            self._commit_if_whole(shard)

    async def settled(self, index: int) -> None:
        """Wait until a record has settled, before which no other one of its shard is let in."""
        shard = self._open.get(shard_of(index))
        if shard is None or shard.last == index:
            return
        self._awaited = index, asyncio.get_running_loop().create_future()
        try:
            await self._awaited[1]
        finally:
            self._awaited = None

    def forget(self, number: int) -> None:
        """A shard is no longer ours: what still comes of it goes nowhere."""
        self._open.pop(number, None)

    # As the run has it

    def open(self, request: OpenRequest) -> Resumption:
        """There is nothing to go on with: what is committed is not leased."""
        return Resumption(run=self._run)

    async def write(self, commit: Commit) -> None:
        """Take what some records came to."""
        first, last = min(commit.ordinals, default=0), max(commit.ordinals, default=-1)
        numbers = range(shard_of(first), shard_of(last) + 1) if commit.ordinals else range(0)
        if len(numbers) == 1 and not commit.line_counts and not commit.letter_counts:
            # Nearly always; and a look at each record would be a third of what it costs to write it.
            if (shard := self._open.get(numbers[0])) is not None:
                shard.take_plain(commit.ordinals, commit.lines)
        else:
            self._take_each(commit)
        if self._awaited is not None and self._awaited[0] in commit.ordinals and not self._awaited[1].done():
            self._awaited[1].set_result(None)
        for shard in [shard for number in numbers if (shard := self._open.get(number)) is not None]:
            self._commit_if_whole(shard)
        async with self._room:  # a store that is slow holds back the records
            pass

    def _take_each(self, commit: Commit) -> None:
        line = letter = 0
        for index in commit.ordinals:
            lines = line + commit.line_counts.get(index, 1)
            letters = letter + commit.letter_counts.get(index, 0)
            if (shard := self._open.get(shard_of(index))) is not None:
                shard.take(index, commit.lines[line:lines], commit.letters[letter:letters])
            line, letter = lines, letters

    def _commit_if_whole(self, shard: _Open) -> None:
        if len(shard.settled) == shard.expected:
            self._open.pop(shard.lease.number)
            self._due[shard.lease.number] = shard
            task = asyncio.create_task(self._commit(shard), name=f"commit of shard {shard.lease.number}")
            self._committing.add(task)
            task.add_done_callback(self._committing.discard)

    async def _commit(self, shard: _Open) -> None:
        async with self._room:
            if self._gave_up:
                return
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(self._threads, self._commit_now, shard)
            except StorageError as error:
                self.broken = True
                self._failed(error)
            else:
                self._due.pop(shard.lease.number, None)
                self._committed(found)

    def _commit_now(self, shard: _Open) -> ShardCommit:
        return self._commits.commit(shard.commit(), _in_order(shard.lines), _in_order(shard.letters))

    def read_letter(self, place: LetterPlace) -> bytes:
        raise AssertionError("shards are done again as a whole")

    def give_up_waiting(self) -> None:
        """After a moment, in which a store answers that is well, the threads alone wait for it.

        What they commit all the same is whole.
        """
        asyncio.get_running_loop().call_later(_LAST_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._gave_up = True
        for task in self._committing:
            task.cancel()

    async def all_tried(self) -> None:
        """Wait for the commits that are under way."""
        while self._committing:
            await asyncio.wait(self._committing)

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """Wait for the commits that are under way."""
        await self.all_tried()
        self._threads.shutdown(wait=False)

    def uncommitted(self) -> Totals:
        """What was written here, and is not known to be committed: it will be done again."""
        lost = Totals()
        for shard in (*self._open.values(), *self._due.values()):
            commit = shard.commit()
            lost.written += commit.written
            lost.dropped += commit.dropped
            lost.dead += commit.dead
        return lost


def _in_order(found: Mapping[int, bytes]) -> bytes:
    return b"".join(found[index] for index in sorted(found))


def _letter_in_shard(letter: dict[str, Any]) -> bytes:
    """A dead letter. Its shard is told by where it is written; its place in the input is known when all is merged."""
    return encode_leniently({name: value for name, value in letter.items() if name != "shard"})
