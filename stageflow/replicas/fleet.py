"""The work of a run in several processes, of which this one reads, leases out and writes, and runs no stage.

* Each process runs the whole pipeline over the shards it is leased, under its part of every limit.
* It sends what has settled, commit by commit, and goes on when that is written: here, by the one output, so that the
  files, the account and what a later run goes on with are those of a run in one process.
* Of a process that dies nothing is lost but time: what it held is leased again, to the one that takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from stageflow.commit import Commit, InputMark, Resumption
from stageflow.engine.gate import Limiter
from stageflow.errors import InputDamaged, RequestError, RunStopped
from stageflow.events import Event, StageSnapshot, StopRequested, Warned
from stageflow.feeding import EarlierRuns, retries_of
from stageflow.fingerprint import job_identity
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.protocols import Entry
from stageflow.recorder import failure_watch
from stageflow.replicas.accounts import behind, beside, closed, total_snapshot
from stageflow.replicas.coordinator import Coordinator
from stageflow.replicas.member import Member, failure_of
from stageflow.replicas.messages import (
    Ask,
    Beat,
    Begin,
    Cancel,
    Committed,
    Drained,
    Failed,
    Give,
    Granted,
    NoMore,
    Read,
    Setup,
    Stop,
    Stopped,
    Told,
    Written,
)
from stageflow.replicas.order import InputOrder, merged
from stageflow.replicas.sharding import Sharder
from stageflow.replicas.shares import Shares
from stageflow.work import JobOrigin, StageAccount, WorkRequest

__all__ = ["Fleet"]

_SHARE_SECONDS: Final = 1.0
"""How long a share of a rate limit is good for: four times the time between two beats."""

_WINDOW: Final = 16
"""Shards for each process between the oldest that is not done and the newest that is leased, where results wait for
their order in memory."""

_FRUITLESS: Final = 3
"""Processes that die one after another without having been given anything to do: it is not what they were given."""

_NEVER_SECONDS: Final = 1e8

_LAST_SECONDS: Final = 30.0
"""For a process to close its resources when its work is done; and, cancelled, to end its calls."""


class Fleet:
    """Several processes; see :class:`stageflow.work.Work`.

    Args:
        elsewhere: Where another process finds the job with further settings, if they suit it.

    Raises:
        RequestError: A limit can't be divided among so many, or the results can't be sent over as the sink takes them.
        DefinitionError: With its part of the limits the job is wrong.
    """

    def __init__(self, request: WorkRequest, elsewhere: Callable[[Sequence[Override]], JobOrigin]) -> None:
        self._request = request
        self._count = request.options.processes
        _refuse_small_limits(request.plan, self._count)
        self._origins = [elsewhere(_divided(request.plan, self._count, place)) for place in range(self._count)]
        self._job = job_identity(request.plan)
        in_order = request.options.order == "input" and not request.ends.durable
        self._order = InputOrder() if in_order else None
        self._coordinator = Coordinator(window=_WINDOW * self._count if in_order else None)
        self._failures = failure_watch(request.options.max_failure_rate, request.stop)
        self._found = Resumption(run="")
        self._upstream: Mapping[str, str] = {}
        self._sharder: Sharder
        self._shares: dict[str, Shares] = {}
        self._members: dict[int, Member] = {}
        self._last: dict[int, list[Beat]] = {place: [] for place in range(self._count)}  # of those that were lost
        self._names = itertools.count()
        self._fruitless = 0
        self._commits: list[tuple[Member, Commit]] = []
        self._marks: list[InputMark] = []
        self._newest: InputMark | None = None
        self._told: set[str] = set()
        self._warned = 0
        self._to_write = asyncio.Event()
        self._to_read = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False
        self._over = False
        self._before = request.counters.read
        self.begun = False
        self.blank = 0
        self.retried = 0
        self.peak_open = 0
        self.max_open = 0

    # From its beginning to its end

    def take_up(self, found: Resumption, upstream: Mapping[str, str] | None) -> None:
        """Say from where to go on."""
        self._found, self._upstream = found, upstream or {}

    async def __aenter__(self) -> Self:
        """Start all processes, and wait until they are of one mind about the job."""
        request, found = self._request, self._found
        starting = [asyncio.create_task(self._start(place)) for place in range(self._count)]
        try:
            for place, task in enumerate(starting):
                self._members[place] = await task
        except BaseException:
            for task in starting:
                task.cancel()
            for started in await asyncio.gather(*starting, return_exceptions=True):
                if isinstance(started, Member):
                    await started.end()
            raise
        self.blank = EarlierRuns(found).ahead  # what is known of is not told of again
        self.max_open = sum(member.ready.max_open for member in self._members.values())
        self._sharder = Sharder(
            request.source,
            found=found,
            retries=retries_of(request.ends.output, found, request.plan, self._upstream, request.warn),
            limit=request.options.limit,
            replicas=self._count,
            read=self._pass_on,
            stop=request.stop,
        )
        self.begun = True
        return self

    async def _start(self, place: int) -> Member:
        member = await Member.start(f"process {next(self._names)}", place, self._setup(place), self._tell)
        if member.ready.job != self._job:
            await member.end()
            raise RequestError("the job was changed while the run started", hint="run it again")
        self._coordinator.join(member.name)
        for shares in self._shares.values():
            shares.join(member.name, self._request.clock())
        return member

    def _setup(self, place: int) -> Setup:
        request, options, ends = self._request, self._request.options, self._request.ends
        own = Options(
            order="completion",
            strict=options.strict,
            on_bad_input=options.on_bad_input,
            max_open_records=_part(options.max_open_records, self._count, place),
            max_retry_after=options.max_retry_after,
            debug=options.debug,
            grace=_NEVER_SECONDS,  # it is this process that gives up waiting
        )
        return Setup(
            job=self._origins[place],
            options=own,
            loop="uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio",
            run=self._found.run,
            path=request.source.path,
            numbered=request.source.numbered,
            as_lines=ends.as_lines,
            letters_as_lines=ends.letters_as_lines,
            durable=ends.durable,
            retrying=bool(self._found.letters),
        )

    async def run(self) -> None:
        """Read, lease out and write, until all processes have drained."""
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(), name="output")
                self._reader = group.create_task(self._read(), name="input")
                try:
                    async with asyncio.TaskGroup() as members:
                        for member in self._members.values():
                            members.create_task(self._attend(member), name=member.name)
                            member.send(Begin())
                finally:
                    self._over = True
                    self._reader.cancel()
                    self._to_write.set()
                await writing
        except BaseException:
            for member in self._members.values():
                member.kill()
            raise
        assert self._stopping or self._coordinator.finished, "processes have ended before their work was done"

    async def __aexit__(self, *failure: object) -> None:
        patience = 0.0 if failure[0] is not None else _LAST_SECONDS
        for ended in await asyncio.gather(*(member.end(patience) for member in self._members.values())):
            if not ended and patience:
                self._request.warn(f"a process had not closed its resources after {patience:g} s, and was ended")

    def stop(self) -> None:
        """Lease out no more, and let all processes finish what they have begun."""
        self._stopping = True
        if self._reader is not None:
            self._reader.cancel()
        self._send_all(Stop())

    def cancel(self) -> None:
        """Cancel the attempts of all processes; one that does not end then is ended."""
        if self.open:
            self._request.emit(StopRequested("cancelled", self.open, 0.0, cancelled=True))
        self._stopping = True
        self._request.ends.output.give_up_waiting()
        self._send_all(Cancel())
        asyncio.get_running_loop().call_later(_LAST_SECONDS, self._kill_all)

    def _send_all(self, message: Any) -> None:
        for member in self._members.values():
            member.send(message)

    def _kill_all(self) -> None:
        for member in self._members.values():
            if not member.drained:
                member.kill()

    # Reading

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(self._sharder.shards()) as shards:
                async for shard in shards:
                    self._coordinator.add(shard)
                    self._give()
                    while self._coordinator.ready >= 2 * self._count:
                        self._to_read.clear()
                        await self._to_read.wait()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return
        self._coordinator.closed = True
        self._give()

    def _pass_on(self) -> None:
        """What the source says beside its records."""
        marks = self._request.source.take_marks()
        if marks:
            self._newest = marks[-1]
            self._marks += marks
        warnings = self._request.source.warnings
        for message in warnings[self._warned :]:
            self._tell(Warned(message))
        self._warned = len(warnings)

    def _give(self) -> None:
        """Give leases to whoever has asked; and say so where there will be no more."""
        for member in self._members.values():
            while member.asks and not self._stopping and (lease := self._coordinator.lease(member.name)) is not None:
                member.asks -= 1
                member.send(Give(lease))
            if member.asks and self._coordinator.given_out and not member.told_end:
                member.told_end = True
                member.send(NoMore())
        self._to_read.set()

    # What the processes say

    async def _attend(self, member: Member) -> None:
        """Listen to a process, and to whatever takes its place, until one has drained."""
        while True:
            try:
                while not member.drained:
                    self._hear(member, await member.receive())
                return
            except EOFError:
                pass
            replaced = await self._replace(member)
            if replaced is None:
                return
            member = replaced

    def _hear(self, member: Member, message: Any) -> None:
        match message:
            case Ask():
                member.asks += 1
                self._give()
            case Read():
                self._let_in(message)
            case Committed():
                self._take(member, message.commit)
            case Beat():
                self._note(member, message)
                self._grant(member, message)
            case Told():
                self._tell(message.event)
            case Stopped():
                self._request.stop(message.error())
            case Drained():
                self._note(member, message.last)
                member.drained, member.why = True, message.why
            case Failed():
                raise failure_of(message)

    def _let_in(self, message: Read) -> None:
        blank = message.blank
        if blank:
            self.blank += len(blank)
            self._coordinator.settled(blank)
            if self._newest is not None:  # it is written once more, to bear them
                self._marks.append(dataclasses.replace(self._newest, blank=tuple(blank)))
                self._to_write.set()
            self._give()

    def _note(self, member: Member, beat: Beat) -> None:
        member.beat = beat
        self.peak_open = max(self.peak_open, self.open)
        self._count_read()

    def _count_read(self) -> None:
        counters = self._request.counters
        # What is tried again is among the dead until it has settled once more.
        new = sum(member.beat.open - member.beat.again for member in self._members.values() if member.beat is not None)
        counters.read = counters.written + counters.dropped + counters.dead + new
        counters.bad = sum(beat.bad for beats in self._beats() for beat in beats)

    def _grant(self, member: Member, beat: Beat) -> None:
        if beat.limits:
            now = self._request.clock()
            granted = {
                name: self._shares_of(name).ask(member.name, now, used=asked.used, waiting=asked.waiting)
                for name, asked in beat.limits.items()
            }
            member.send(Granted(granted, _SHARE_SECONDS))

    def _shares_of(self, name: str) -> Shares:
        if name not in self._shares:
            limit = self._request.plan.stages[name].rate_limit
            assert limit is not None, "a share of no limit"
            rate = limit.rate_per_second
            smallest, turn = (min(1.0, 1.0 / rate), 2.0 / rate) if rate is not None else (0.0, 0.0)
            shares = self._shares[name] = Shares(lifetime=_SHARE_SECONDS, smallest=smallest, turn=turn)
            for member in self._members.values():
                shares.join(member.name, self._request.clock())
        return self._shares[name]

    def _tell(self, event: Event) -> None:
        """Each warning once, whoever gives it."""
        if isinstance(event, Warned):
            if event.message in self._told:
                return
            self._told.add(event.message)
        self._request.emit(event)

    # What becomes of a process

    async def _replace(self, member: Member) -> Member | None:
        """A process is gone: what it held is leased again, to another one in its place."""
        how = await member.how_it_ended()
        held = self._coordinator.lost(member.name)
        for shares in self._shares.values():
            shares.leave(member.name)
        if member.beat is not None:
            self._last[member.place].append(_closed(member.beat))
            member.beat = None
        await member.end()
        del self._members[member.place]
        self._count_read()
        if self._stopping or self._coordinator.finished:
            return None
        self._fruitless = 0 if held else self._fruitless + 1
        if self._fruitless >= _FRUITLESS:
            raise RunStopped(f"processes of the run end by themselves: {how}", hint="run with --processes 1 to see why")
        self._tell(Warned(f"a process of the run died ({how}): another one goes on with what it had"))
        new = self._members[member.place] = await self._start(member.place)
        new.send(Begin())
        return new

    # Writing

    def _take(self, member: Member, commit: Commit) -> None:
        if self._order is not None:
            counts, lines = commit.line_counts, iter(commit.lines)
            for index in commit.ordinals:
                own = list(itertools.islice(lines, counts.get(index, 1)))
                self._order.hold(self._coordinator.shard_of(index), index, own)
        self._coordinator.settled(commit.ordinals)
        self._commits.append((member, commit))
        self._to_write.set()
        self._give()

    async def _write(self) -> None:
        while not self._over:
            await self._to_write.wait()
            self._to_write.clear()
            while self._commits:
                await self._write_commits()
        await self._write_commits()
        if self._order is not None:
            await self._request.ends.output.write(self._written(self._order.rest()))

    async def _write_commits(self) -> None:
        taken, self._commits = self._commits, []
        commit = merged(commit for _, commit in taken)
        # A mark stands before every commit of what was read before it; and what is leased was read before.
        commit.marks, self._marks = self._marks, []
        tally = _Tally.of(commit, self._sharder.retried)
        self._failures(tally.dead, len(commit.ordinals))
        await self._write_out(commit)
        counters = self._request.counters
        counters.written += tally.written
        counters.dropped += tally.dropped
        counters.dead += tally.dead - tally.retried
        self.retried += tally.retried
        for member, _ in taken:
            member.send(Written())

    async def _write_out(self, commit: Commit) -> None:
        ends = self._request.ends
        letters = self._letters(commit) if ends.dead is not None else []
        if self._order is not None:
            done, self._coordinator.done = self._coordinator.done, []
            commit = self._order.release(done)
        else:
            self._coordinator.done.clear()
        if commit.ordinals or commit.marks:
            await ends.output.write(self._written(commit))
        if letters and ends.dead is not None:
            await ends.dead.write(letters)

    def _written(self, commit: Commit) -> Commit:
        if not self._request.ends.as_lines:
            commit.lines = [self._request.ends.encode(pickle.loads(line)) for line in commit.lines]
        return commit

    def _letters(self, commit: Commit) -> list[Entry]:
        owners = [index for index in commit.ordinals for _ in range(commit.letter_counts.get(index, 0))]
        letters, commit.letters, commit.letter_counts = commit.letters, [], {}
        if not self._request.ends.letters_as_lines:
            letters = [self._request.ends.encode_letter(pickle.loads(letter)) for letter in letters]
        return list(zip(owners, letters, strict=True))

    # What others see

    @property
    def at_end(self) -> bool:
        return self.begun and self._sharder.at_end

    @property
    def damaged(self) -> InputDamaged | None:
        return self._sharder.damaged

    @property
    def bad(self) -> int:
        return self._request.counters.bad

    @property
    def open(self) -> int:
        return sum(member.beat.open for member in self._members.values() if member.beat is not None)

    def _beats(self) -> Iterator[list[Beat]]:
        """What was said last in each place, by those that were lost there and the one that is there."""
        for place, lost in self._last.items():
            member = self._members.get(place)
            yield [*lost, member.beat] if member is not None and member.beat is not None else lost

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage in all processes."""
        beats = [member.beat.stages for member in self._members.values() if member.beat is not None]
        return tuple(total_snapshot(each) for each in zip(*beats, strict=True))

    def limiters(self) -> dict[str, Limiter]:
        """None: they are kept in the processes."""
        return {}

    def accounts(self) -> dict[str, StageAccount]:
        """Each stage's account in all processes, and in those that were lost."""
        places = [[beat.accounts for beat in beats] for beats in self._beats() if beats]
        if not places:
            return {}
        return {
            name: beside(behind(accounts[name] for accounts in each) for each in places)
            for name in self._request.plan.order
        }

    def why_stopped(self) -> str | None:
        """What the stages say that have stopped the run."""
        return next((member.why for member in self._members.values() if member.why), None)


@dataclasses.dataclass(frozen=True, slots=True)
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


def _refuse_small_limits(plan: Plan, count: int) -> None:
    for stage in plan.stages.values():
        if stage.max_in_flight < count:
            raise RequestError(
                f'--processes {count}: stage "{stage.name}" has max_in_flight {stage.max_in_flight}, '
                "which is not one for each process",
                hint=f"run with --processes {stage.max_in_flight}, or with --max-in-flight {stage.name}={count}",
            )


def _divided(plan: Plan, count: int, place: int) -> list[Override]:
    """The part of all limits that belongs to one of ``count`` processes; rate limits are divided as they are used."""
    return [
        Override(stage.name, setting, _part(getattr(stage, setting), count, place), "--processes")
        for stage in plan.stages.values()
        for setting in ("max_in_flight", "queue_size")
    ]


def _part(whole: int | None, count: int, place: int) -> Any:
    return None if whole is None else max(1, whole // count + (place < whole % count))


def _closed(beat: Beat) -> Beat:
    """The last word of a process that is lost: what it had in hand was given back."""
    return dataclasses.replace(beat, accounts={name: closed(account) for name, account in beat.accounts.items()})
