"""From settled items to commits, and the account of the run."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any, Final

from stageflow.commit import Commit, InputMark, Spend
from stageflow.counters import RunCounters
from stageflow.errors import ContextConflict, ItemError, ResultError, RunStopped
from stageflow.events import Event, RecordDead
from stageflow.item import BadRecord, Failure, Item
from stageflow.output import bulk_maker, dead_letter, family, output_record, output_records
from stageflow.plan import Plan
from stageflow.policies.redact import secrets_of
from stageflow.policies.tolerance import FailureRate
from stageflow.protocols import Entry, Output, Sink, Source

__all__ = ["Recorder", "failure_watch", "locator"]

_COMMIT_RECORDS: Final = 256
_COMMIT_BYTES: Final = 1024 * 1024
"""A commit is cut when it has so much: what is lost of it in a crash is done again, and a retry reads whole ones."""

_WORTHWHILE: Final = 64
"""Records for which it is not worth while to wait for more of them."""

_PATIENCE: Final = 16
"""Turns of the loop in which to wait for those."""

_MOMENT: Final = 0.005
"""Seconds between the beginnings of two commits, where few records settle meanwhile."""

_QUIET_TURNS: Final = 8
"""Turns of the loop without one more record after which a commit for a ledger is as large as it will be."""


class Recorder:
    """Takes settled items on the loop and writes what they came to, in one task, a commit at a time.

    One commit is being written at a time; what settles meanwhile is the next one. So at low rates every record is
    written at once, and under a slow output commits grow by themselves. Where very many calls are in progress some end
    in every turn of the loop, and a commit for each turn would cost as much as the calls do: then there is a moment
    between two commits. A record keeps its credit until its commit has
    been written, and that is how a slow output holds back the source. Only one that failed and waits for the verdict on
    its stage gives its credit back before: it would hold back the very records by which that is reached.

    Args:
        output: Where commits go.
        dead: Where dead letters go, after the commit that counts them; ``None``: they travel in the commit.
        encode: Makes the line of an output record, or whatever the output takes for one.
        encode_letter: The same for a dead letter.
        sized: Lines and letters have a length, which bounds a commit.
        emit: Where events go.
        path, numbered: The source's, for dead letters.
        locate: The parts of a letter that say where its record stands, in place of the two, where a source is several.
        in_order: Write in the order in which records were let in.
        retrying: Records of earlier dead letters come in, too.
        upstream: By stage a digest of all that decides the results of the stages before it, for dead letters; ``None``
            where none of them will be tried again.

    Attributes:
        spare: Fewer records than that may wait a moment for more to be written with.
    """

    def __init__(
        self,
        plan: Plan,
        output: Output,
        dead: Sink | None,
        counters: RunCounters,
        *,
        encode: Callable[[Any], Any],
        encode_letter: Callable[[Any], Any],
        sized: bool,
        emit: Callable[[Event], None],
        path: str | None,
        numbered: bool,
        locate: Callable[[int], Mapping[str, Any]] | None = None,
        in_order: bool = False,
        retrying: bool = False,
        upstream: Mapping[str, str] | None = None,
    ) -> None:
        self._plan = plan
        self._output = output
        self._dead = dead
        self._counters = counters
        self._encode = encode
        self._encode_letter = encode_letter
        self._sized = sized
        self._emit = emit
        self._path = path
        self._numbered = numbered
        self._locate = locate
        self._upstream = upstream
        self._settled: deque[Item] = deque()
        self._expected: deque[int] | None = deque() if in_order else None
        self._early: dict[int, Item] = {}
        self._more = asyncio.Event()
        self._closed = False
        self._enough = 1
        self._began_at = -inf
        self._make_all = bulk_maker(plan, encode, sized=sized)
        # A record that has children, or is tried again, is never the ordinary one: those are told apart once, here.
        self._unusual = retrying or any(stage.fans_out for stage in plan.stages.values())
        self._held: list[tuple[Item, Sequence[Item]]] = []
        self._marks: list[InputMark] = []
        self._secrets = secrets_of(os.environ)
        self.retried = 0
        self.spare = 0
        self.release: Callable[[int], None] = lambda count: None
        self.watch: Callable[[int, int], None] = lambda dead, settled: None
        self.verdict: Callable[[str], str] = lambda stage: "cleared"
        self.stalled: Callable[[], bool] = lambda: False
        self.spend: Callable[[], Spend | None] = lambda: None
        self._spent = False

    def mark(self, marks: Iterable[InputMark]) -> None:
        """The input was read up to there: that goes into the next commit."""
        self._marks += marks

    def expect(self, entries: Iterable[Entry]) -> None:
        """These are about to be let in."""
        if self._expected is not None:
            self._expected.extend([index for index, _ in entries])

    def settled(self, item: Item) -> None:
        """Take an item whose outcome is final; returns at once.

        In order, it waits here until all that were let in before it have settled: it keeps its credit meanwhile, so
        that no more wait than may be open.
        """
        if self._expected is None:
            self._settled.append(item)
        else:
            self._early[item.index] = item
            while self._expected and self._expected[0] in self._early:
                self._settled.append(self._early.pop(self._expected.popleft()))
        if len(self._settled) >= self._enough and not self._more.is_set():
            self._more.set()

    def settled_many(self, items: Sequence[Item]) -> None:
        """As :meth:`settled` for each of them."""
        if self._expected is not None:
            for item in items:
                self.settled(item)
        elif items:
            self._settled.extend(items)
            self._more.set()

    def look(self) -> None:
        """Whether it is :attr:`stalled` may have changed: nothing more will come before what is held back is decided.

        There is no verdict to wait for then. At the end of the input it is the same.
        """
        self._more.set()

    def spent(self) -> None:
        """Money was spent, which :attr:`spend` tells: that is written, also where no record settles."""
        self._spent = True
        self._more.set()

    def close(self) -> None:
        """No item will come any more: :meth:`write` ends when those that came are written."""
        self._closed = True
        # Of a cancelled run some never settle; what came after them is written all the same.
        self._settled.extend(self._early.pop(index) for index in sorted(self._early))
        self._more.set()

    async def write(self) -> None:
        """Write until closed.

        Raises:
            StorageError: The output failed.
        """
        while not (self._closed and not self._settled):
            await self._more.wait()
            self._more.clear()
            while self._settled or self._spent or (self._held and self.stalled()):
                if not await self._wait_a_moment():
                    await self._gather()
                self._began_at = asyncio.get_running_loop().time()
                await self._write_commit()
        await self._write_commit()  # what waited for a verdict until now, and the last marks

    async def _wait_a_moment(self) -> bool:
        """Where the last commit has only just begun, let a few records wait for more. True where they did."""
        loop, until = asyncio.get_running_loop(), self._began_at + _MOMENT
        if self._closed or self._spent or len(self._settled) >= self.spare or loop.time() >= until:
            return False
        self._more.clear()
        self._enough = self.spare
        timer = loop.call_at(until, self._more.set)
        try:
            await self._more.wait()
        finally:
            self._enough = 1
            timer.cancel()
        return True

    async def _gather(self) -> None:
        """Let others run while they settle more: a commit costs several times what a turn of the loop does.

        One that a thread writes costs most while the loop has work, too, for then both want the interpreter's lock. So
        it is put off until it is full or nothing has settled for some turns, but never for long.
        """
        most, patience = (_COMMIT_RECORDS, _QUIET_TURNS) if self._sized else (_WORTHWHILE, 1)
        count, quiet = len(self._settled), 0
        for _ in range(_PATIENCE):
            if quiet == patience or count >= most or self._closed:
                return
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._settled) == count else 0
            count = len(self._settled)

    async def _write_commit(self) -> None:
        batch = self._next_batch()
        commit, counters = batch.commit, self._counters
        self.watch(batch.dead, batch.taken)
        commit.spend, self._spent = self.spend(), False
        if commit.ordinals or commit.marks or commit.spend is not None:
            await self._output.write(commit)
        if batch.letters and self._dead is not None:
            await self._dead.write(batch.letters)
        counters.written += batch.written
        counters.dropped += batch.dropped
        counters.dead += batch.dead - batch.retried
        self.retried += batch.retried
        self.release(batch.taken)

    def _next_batch(self) -> _Batch:
        """What has settled so far, up to the bounds of a commit."""
        settled, batch = self._settled, _Batch()
        lines, ordinals = batch.commit.lines, batch.commit.ordinals
        items = list(islice(settled, _COMMIT_RECORDS)) if self._sized else list(settled)
        each = iter(items)
        taken = size = 0
        while taken < len(items) and size <= _COMMIT_BYTES:
            if not self._unusual:
                before = len(lines)
                size += self._make_all(each, ordinals, lines, _COMMIT_BYTES - size)
                made = len(lines) - before
                batch.written += made
                taken += made
            if taken < len(items) and size <= _COMMIT_BYTES:
                size += self._sort(items[taken], batch)
                taken += 1
        if taken == len(settled):
            settled.clear()
        else:
            for _ in range(taken):
                settled.popleft()
        batch.taken = taken
        self._review(batch)
        batch.commit.marks, self._marks = self._marks, []
        return batch

    def _sort(self, record: Item, batch: _Batch) -> int:
        """A record of which something failed, left, was made more of or is tried again. Returns its bytes."""
        failed = [item for item in family(record) if item.failure is not None]
        if any(item.withheld for item in failed):
            return 0
        if any(item.held for item in failed):
            self._held.append((record, failed))
            return 0
        return self._judged(record, failed, batch)

    def _judged(self, record: Item, failed: Sequence[Item], batch: _Batch) -> int:
        commit = batch.commit
        lines, letters = len(commit.lines), len(batch.letters)
        places = []
        for item in output_records(record, self._plan, on_partial=self._plan.on_partial):
            try:
                commit.lines.append(self._encode(output_record(item, self._plan)))
            except (ContextConflict, ResultError) as error:
                self._refuse(item, error, batch)
            else:
                places.append(item.path)
        reentry = record.reentry
        whole = reentry is not None and not reentry.parts
        # What earlier runs wrote of it stays where nothing takes its place; gone on with, it would be written again.
        placed = not (whole and len(commit.lines) == lines and reentry is not None and reentry.written)
        for item in failed:
            if item.failure is not None:
                self._letter(item, item.failure, batch, placed=placed)
        made, died = len(commit.lines) - lines, len(batch.letters) - letters
        commit.ordinals.append(record.index)
        if made != 1:
            commit.line_counts[record.index] = made
        if died:
            commit.letter_counts[record.index] = died
            batch.dead += 1
        elif made:
            batch.written += 1
        else:
            batch.dropped += 1
        if made and (died or record.reentry is not None):
            commit.places[record.index] = places
        if record.reentry is not None:
            batch.retried += 1
            commit.resolved += record.reentry.numbers
            if whole and (made or not died):
                commit.replaced.append(record.index)
        if not self._sized:
            return 0
        return sum(map(len, commit.lines[lines:])) + sum(len(letter) for _, letter in batch.letters[letters:])

    def _review(self, batch: _Batch) -> None:
        """Decide on the failures that waited for the verdict on their stage, where there is one."""
        if not self._held:
            return
        held, self._held = self._held, []
        undecided = not (self._closed and not self._settled) and not self.stalled()
        for record, failed in held:
            stages = [item.failure.stage for item in failed if item.held and item.failure is not None]
            verdicts = {self.verdict(stage) for stage in stages if stage is not None}
            if "tripped" in verdicts:
                continue
            if "pending" in verdicts and undecided:
                self._held.append((record, failed))
            else:
                self._judged(record, failed, batch)

    def _refuse(self, item: Item, error: ItemError, batch: _Batch) -> None:
        """A settled item has no form in the output."""
        stage = None
        if isinstance(error, ResultError):
            stage, error = self._culprit(item, error)
        self._letter(item, Failure(stage, error, 1), batch)

    def _culprit(self, item: Item, error: ResultError) -> tuple[str | None, ResultError]:
        """The first stage whose result has no form in the output, and the error with its path within that result."""
        written = self._plan.emitted or [name for name, stage in self._plan.stages.items() if stage.emit]
        found = [(name, each.results[name]) for each in item.lineage() for name in written if name in each.results]
        for name, value in found:
            for whole in (value, {name: value}):  # what is nested too deep may be so by its place in the record alone
                try:
                    self._encode(whole)
                except ResultError as refusal:
                    return name, ResultError(f"result of stage {name} is {refusal}")
        return None, error

    def _letter(self, item: Item, failure: Failure, batch: _Batch, *, placed: bool = True) -> None:
        """``placed``: with the place at which a later run can go on."""
        letter = dead_letter(
            item,
            failure,
            path=self._path,
            numbered=self._numbered,
            secrets=self._secrets,
            plan=self._plan if self._upstream is not None and placed else None,
            upstream=self._upstream,
        )
        if self._locate is not None:
            letter.update(self._locate(item.index))
        if isinstance(item.record, BadRecord):
            if letter["line"] is None:  # a record over several lines knows its own
                letter["line"] = item.record.error.line
            self._counters.bad += 1
        self._emit(RecordDead(letter))
        encoded = self._encode_letter(letter)
        batch.letters.append((item.index, encoded))
        if self._dead is None:
            batch.commit.letters.append(encoded)


def locator(source: Source) -> Callable[[int], Mapping[str, Any]] | None:
    """What tells where a record of a source stands, as a dead letter says it; ``None``: its path and its index do."""
    if hasattr(source, "locate"):  # a record of a shard, with its place in that
        return source.locate  # type: ignore[no-any-return]
    if not hasattr(source, "place"):
        return None
    place: Callable[[int], tuple[str | None, int | None]] = source.place
    return lambda index: dict(zip(("path", "line"), place(index), strict=True))


def failure_watch(limit: float | None, stop: Callable[[RunStopped], None]) -> Callable[[int, int], None]:
    """What is told how many of how many settled records failed, and stops the run above a rate."""
    if limit is None:
        return lambda dead, settled: None
    rate = FailureRate(limit)

    def watch(dead: int, settled: int) -> None:
        if sum(rate.settled(place < dead) for place in range(settled)):
            stop(RunStopped(rate.reason(), hint="see the dead letters; raise --max-failure-rate to go on"))

    return watch


class _Batch:
    """A commit, its dead letters with their indices, and the records behind it by what became of them."""

    __slots__ = ("commit", "dead", "dropped", "letters", "retried", "taken", "written")

    def __init__(self) -> None:
        self.commit = Commit()
        self.letters: list[Entry] = []
        self.taken = 0
        self.written = 0
        self.dropped = 0
        self.dead = 0
        self.retried = 0
