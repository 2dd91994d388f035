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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from stageflow.commit import Commit, InputMark, Resumption, Spend
from stageflow.engine.limiter import Limiter
from stageflow.errors import InputDamaged, RunStopped
from stageflow.events import Event, StageSnapshot, StopRequested, Warned
from stageflow.feeding import EarlierRuns, retries_of
from stageflow.plan import Override
from stageflow.recorder import failure_watch
from stageflow.replicas.accounts import Standing
from stageflow.replicas.coordinator import Coordinator
from stageflow.replicas.dividing import origins
from stageflow.replicas.member import Member, failure_of
from stageflow.replicas.messages import (
    Ask,
    AskShares,
    Beat,
    Begin,
    Cancel,
    Committed,
    Drained,
    Failed,
    Give,
    NoMore,
    Open,
    Read,
    Stop,
    Stopped,
    Told,
    Written,
)
from stageflow.replicas.order import InputOrder
from stageflow.replicas.rates import Rates
from stageflow.replicas.roster import Roster
from stageflow.replicas.sharding import Sharder
from stageflow.replicas.writing import Writing
from stageflow.work import JobOrigin, StageAccount, WorkRequest

__all__ = ["Fleet"]

_WINDOW: Final = 16, 1024
"""Shards between the oldest that is not done and the newest that is leased, where results wait for their order in
memory: at least so many for each process, and at most so many in all. Between the two, one for each record that may be
open: so a record that is slow holds up the others no sooner than in one process."""

_FRUITLESS: Final = 3
"""Processes that die one after another without having been given anything to do: it is not what they were given."""

_LAST_SECONDS: Final = 30.0
"""For a process to close its resources when its work is done; and, cancelled, to end its calls."""

_DEAF_SECONDS: Final = 3.0
"""One that says nothing for so long after it was cancelled is ended: it can't have heard of it."""


class Fleet:
    """Several processes; see :class:`stageflow.work.Work`.

    Args:
        elsewhere: Where another process finds the job with further settings, if they suit it.

    Raises:
        RequestError: A limit can't be divided among so many, or the job not be found by another process.
        DefinitionError: With its part of the limits the job is wrong.
    """

    def __init__(self, request: WorkRequest, elsewhere: Callable[[Sequence[Override]], JobOrigin]) -> None:
        self._request = request
        self._count = request.options.processes
        places = origins(request.plan, request.options, elsewhere)
        self._members = Roster(request, places, tell=self._tell, joined=self._join)
        in_order = request.options.order == "input" and not request.ends.durable
        self._order = InputOrder() if in_order else None
        self._coordinator = Coordinator(window=self._window if in_order else None)
        self._found = Resumption(run="")
        self._upstream: Mapping[str, str] = {}
        self._sharder: Sharder
        self._writing: Writing
        stages = request.plan.stages.items()
        limits = {name: limit.rate_per_second for name, stage in stages if (limit := stage.rate_limit) is not None}
        self._rates = Rates(limits, request.clock, lambda: [member.name for member in self._members])
        self._standing = Standing()
        self._bad: dict[str, int] = {}
        self._fruitless = 0
        self._newest: InputMark | None = None
        self._spent = Spend()
        self._told: set[str] = set()
        self._warned = 0
        self._to_read = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False
        self._closing = False
        self.begun = False
        self.given_up: Sequence[int] = ()
        self.blank = 0
        self.max_open = 0

    @property
    def _window(self) -> int:
        allowed = self._request.options.max_open_records or self._request.plan.max_open_records
        return max(_WINDOW[0] * self._count, min(allowed, _WINDOW[1]))

    # From its beginning to its end

    def take_up(self, found: Resumption, upstream: Mapping[str, str] | None) -> None:
        """Say from where to go on."""
        self._found, self._upstream = found, upstream or {}
        self._spent = found.spend

    async def __aenter__(self) -> Self:
        """Start all processes, and wait until they are of one mind about the job."""
        request, found = self._request, self._found
        await self._members.start(found.run, retrying=bool(found.letters))
        self.blank = EarlierRuns(found).ahead  # what is known of is not told of again
        self.max_open = sum(member.ready.max_open for member in self._members)
        self._sharder = Sharder(
            request.source,
            found=found,
            retries=retries_of(request.ends.output, found, request.plan, self._upstream, request.warn),
            limit=request.options.limit,
            replicas=self._count,
            in_order=self._order is not None,
            strict=request.options.strict,
            read=self._pass_on,
            warn=request.warn,
            stop=request.stop,
        )
        self._writing = Writing(
            request.ends,
            self._coordinator,
            request.counters,
            order=self._order,
            watch=failure_watch(request.options.max_failure_rate, request.stop),
            retried=self._sharder.retried,
            renamed=self._members.renamed,
            spend=self._take_spend,
        )
        self.begun = True
        return self

    def _join(self, member: Member) -> None:
        self._coordinator.join(member.name)
        self._rates.join(member.name)

    async def run(self) -> None:
        """Read, lease out and write, until all processes have drained."""
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._writing.run(), name="output")
                self._reader = group.create_task(self._read(), name="input")
                listening = group.create_task(self._members.watch(), name="silence")
                try:
                    async with asyncio.TaskGroup() as members:
                        for member in self._members:
                            members.create_task(self._attend(member), name=member.name)
                            member.send(Begin())
                finally:
                    self._writing.close()
                    self._reader.cancel()
                    listening.cancel()
                await writing
        except BaseException:
            self._members.kill()
            raise
        assert self._stopping or self._coordinator.finished, "processes have ended before their work was done"

    async def __aexit__(self, *failure: object) -> None:
        self._closing = True
        await self._members.see_off(0.0 if failure[0] is not None else _LAST_SECONDS, self._listen)

    def stop(self) -> None:
        """Lease out no more, and let all processes finish what they have begun."""
        self._stopping = True
        if self._reader is not None:
            self._reader.cancel()
        self._members.replace_no_more()
        self._members.send(Stop())

    def cancel(self) -> None:
        """Cancel the attempts of all processes; one that does not end then is ended."""
        if self.open:
            self._request.emit(StopRequested("cancelled", self.open, 0.0, cancelled=True))
        self._stopping = True
        self._members.replace_no_more()
        self._request.ends.output.give_up_waiting()
        self._members.send(Cancel())
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._closing:
            self._members.kill()
        loop.call_later(_DEAF_SECONDS, self._members.kill, lambda member: not member.drained and member.heard < now)
        loop.call_later(_LAST_SECONDS, self._members.kill, lambda member: not member.drained)

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
            self._writing.marks += marks
        warnings = self._request.source.warnings
        for message in warnings[self._warned :]:
            self._tell(Warned(message))
        self._warned = len(warnings)

    def _give(self) -> None:
        """Give leases to those that have asked, to the one with the least to do first; and say where there is no more.

        Whoever was told so reads nothing more: what is lost later is for the one that takes the place of who lost it.
        """
        while not self._stopping and self._give_one():
            pass
        for member in self._members:
            if member.asks and not member.told_end and self._coordinator.given_out:
                member.told_end = True
                member.send(NoMore())
        self._to_read.set()

    def _give_one(self) -> bool:
        asking = (member for member in self._members if member.asks and not member.told_end)
        for member in sorted(asking, key=lambda member: member.leased):
            if (lease := self._coordinator.lease(member.name)) is not None:
                member.asks -= 1
                member.leased += len(lease.indices)
                member.send(Give(lease))
                return True
        return False

    # What the processes say

    async def _attend(self, member: Member) -> None:
        """Listen to a process, and to whatever takes its place, until one has drained."""
        while True:
            with contextlib.suppress(EOFError):
                await self._listen(member, until_drained=True)
                return
            if (replaced := await self._replace(member)) is None:
                return
            member = replaced

    async def _listen(self, member: Member, *, until_drained: bool = False) -> None:
        """Hear what a process says until it hangs up, which raises EOFError."""
        while not (until_drained and member.drained):
            self._hear(member, await member.receive())

    def _hear(self, member: Member, message: Any) -> None:
        match message:
            case Ask():
                member.asks += 1
                self._give()
            case Read():
                member.open = message.open
                member.leased -= len(message.blank)
                self._let_in(message)
            case Committed():
                member.open, self._bad[member.name] = message.open, message.bad
                self._take(member, message.commit)
            case Beat():
                self._note(member, message)
            case AskShares():
                member.send(self._rates.granted(member.name, message))
            case Told():
                self._tell(message.event)
            case Stopped():
                self._request.stop(message.error())
            case Drained():
                self._note(member, message.last)
                member.drained, member.why = True, message.why
                self._rates.drained(member.name)
            case Failed():
                raise failure_of(message)
        self._count_read()

    def _let_in(self, message: Read) -> None:
        blank = message.blank
        if blank:
            self.blank += len(blank)
            self._coordinator.settled(blank)
            if self._newest is not None:  # it is written once more, to bear them
                self._writing.bear(dataclasses.replace(self._newest, blank=tuple(blank)))
            self._give()

    def _take(self, member: Member, commit: Commit) -> None:
        records, again = len(commit.ordinals), len(self._sharder.retried.intersection(commit.ordinals))

        def written() -> None:
            member.open = Open(member.open.records - records, member.open.again - again)
            member.send(Written())

        member.leased -= records
        self._writing.take(commit, written)
        self._give()

    def _note(self, member: Member, beat: Beat) -> None:
        member.open = beat.open
        self._standing.note(member.place, beat)

    def _count_read(self) -> None:
        counters = self._request.counters
        # What is tried again is among the dead until it has settled once more.
        new = sum(member.open.records - member.open.again for member in self._members)
        counters.read = counters.written + counters.dropped + counters.dead + new
        counters.bad = sum(self._bad.values())

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
        held, member.open = self._coordinator.lost(member.name), Open()
        self._rates.leave(member.name)
        self._standing.lost(member.place)
        self._count_read()
        if self._stopping or self._coordinator.finished:
            await self._members.remove(member)
            return None
        self._fruitless = 0 if held else self._fruitless + 1
        if self._fruitless >= _FRUITLESS:
            raise RunStopped(f"processes of the run end by themselves: {how}", hint="run with --processes 1 to see why")
        self._tell(Warned(f"a process of the run died ({how}): another one goes on with what it had"))
        new = await self._members.replace(member)
        if new is not None:
            new.send(Begin(full=False))
        return new

    def _take_spend(self) -> Spend | None:
        """What was spent by what the processes have said last, where that is news."""
        if not (self._request.plan.prices and self._request.ends.durable):
            return None
        counters = [account.counters for account in self._standing.accounts().values()]
        known, unsure = self._found.spend.known, self._found.spend.unsure
        now = Spend(known + sum(c.cost for c in counters), unsure + sum(c.cost_unsure for c in counters))
        if now == self._spent:
            return None
        self._spent = now
        return now

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
    def retried(self) -> int:
        return self._writing.again if self.begun else 0

    @property
    def open(self) -> int:
        return sum(member.open.records for member in self._members)

    @property
    def peak_open(self) -> int:
        return self._standing.peak_open

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage in all processes."""
        return self._standing.snapshot()

    def limiters(self) -> dict[str, Limiter]:
        """None: they are kept in the processes."""
        return {}

    def accounts(self) -> dict[str, StageAccount]:
        """Each stage's account in all processes, and in those that were lost."""
        return self._standing.accounts()

    def why_stopped(self) -> str | None:
        """What the stages say that have stopped the run."""
        return next((member.why for member in self._members if member.why), None)
