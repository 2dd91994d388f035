"""Who works on which shard of a run past one machine, and what becomes of those whose replica is lost. Pure: the time
is a number, nothing waits, and no engine is known.

The rules:

* A replica is heard when it reports, and a report is repeated until it is answered: one is under way at a time. So what
  it says it holds is all it holds. A lease that it should have and lacks was in an answer that never came: it goes
  back, and nobody has died. One that it has and should not is adopted where the shard waits for a replica (the
  coordinator was restarted), and dropped where it is committed, or somebody else's. A report that is repeated gets the
  same answer once more.
* Shards are leased in the order of the input; what comes back goes before what was never leased.
* The store decides what is committed. Whoever tells of a commit is believed: a replica that was taken for lost, too.
* Where a replica is lost, each shard that it held may be charged with a death; see :mod:`stageflow.cluster.troubles`.
  After two a shard is leased *alone*, to a replica that has nothing else and gets nothing else. From the third on it is
  done with *care*, one record at a time, so that a record that kills is found. After ``most_deaths`` it is given up.
* A replica that says nothing for ``lease_seconds`` is taken for lost; but where nobody at all was heard for half of
  that, it was the coordinator that was away.
* Who was lost, or has left, does not come back: it is *fenced*, and told so at its next report.
* A coordinator that takes the place of another one knows the commits and nothing else: it forgets deaths. It leases
  nothing for two beats, so that the replicas can say what they hold, and grants no shares of limits for as long as
  those of the one before are good. No two leases of a shard have the same attempt, since each coordinator has an
  *epoch* of its own.

A share of a limit outlives a beat, at which every replica asks; where there are limits, replicas ask three times in the
life of a share. With W replicas, T seconds of work in a lease and B between two beats that is 2W/T + W/B reports per
second, or 2W/T + 2.5W/B.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from typing import Final, Literal

from stageflow.cluster.engines import CoordinatorSetup
from stageflow.cluster.messages import Orders, Progress, Report, ShardCommit, ShardLease
from stageflow.cluster.troubles import Troubles
from stageflow.events import Event, Warned
from stageflow.replicas.accounts import Standing
from stageflow.replicas.coordinator import Coordinator, Lease, Shard
from stageflow.replicas.messages import AskShares, Stopped
from stageflow.replicas.rates import Rates

__all__ = ["EPOCH_ATTEMPTS", "ShardCoordinator"]

EPOCH_ATTEMPTS: Final = 1000
"""Attempts at a shard that one coordinator may make; then it gives the shard up. They are numbered from its epoch times
this, and 1."""

_CAREFUL: Final = 3
"""Deaths after which a shard is done with care."""

_MOST_LEASES: Final = 100
"""In one answer."""

_MOST_TOLD: Final = 10_000
"""Events that wait for the driver; older ones are forgotten."""

_SHARE_BEATS: Final = 1.2
"""How long a share of a limit is good for, in beats: just longer than one, so that nobody is without between two."""

_QUIET_BEATS: Final = 2
"""How long a coordinator in the place of another one leases nothing, in beats."""

_CURSORS: Final = 1 << 32
"""Cursors of one epoch."""

_COUNT_SECONDS: Final = 0.001
"""For each replica: what they have counted is added up so seldom, since that takes about a tenth of this."""


@dataclass(slots=True)
class _Replica:
    """What is known of a replica that is there.

    Attributes:
        place: Among the replicas; one that joins takes that of one that was lost.
        seen: When it was heard last.
        at: When it sent that, by its own clock.
        leases: By the number of the shard.
        at_record: See :class:`Report`.
        answer: To that.
    """

    name: str
    place: int
    seen: float
    at: float = -inf
    leases: dict[int, ShardLease] = field(default_factory=dict)
    at_record: tuple[int, int] | None = None
    answer: Orders = field(default_factory=Orders)


class ShardCoordinator:
    """Every method returns at once, and may be repeated. A clock that goes back counts as standing still.

    Args:
        done: The commits that are in the store.
        now: Seconds, from any origin; of the same clock as in all methods.
        restarted: There was a coordinator before this one whose replicas may still be at work.
        epoch: How many coordinators of this output there were before, in this run and others.

    Attributes:
        commits: All that is known to be committed, in the order in which it became known.
    """

    def __init__(
        self, setup: CoordinatorSetup, done: Iterable[ShardCommit], now: float, *, restarted: bool, epoch: int
    ) -> None:
        self._setup = setup
        self._now = now
        self._epoch = epoch
        self._quiet_until = now + _QUIET_BEATS * setup.beat_seconds if restarted else -inf
        self.commits: list[ShardCommit] = []
        self._committed: set[int] = set()
        self._given_up: dict[int, ShardLease] = {}
        self._attempts: dict[int, int] = {}  # how many there were, by number of the shard
        self._troubles = Troubles()
        self._replicas: OrderedDict[str, _Replica] = OrderedDict()  # who was heard last is last
        self._left: set[str] = set()
        self._fenced: set[str] = set()
        self._places = 0
        self._free_places: list[int] = []
        self._standing = Standing()
        self._sums: Progress
        self._add_up_at = -inf
        lifetime = _SHARE_BEATS * setup.beat_seconds
        silent_until = now + lifetime if restarted else -inf
        self._rates = Rates(
            setup.limits, lambda: self._now, self._replicas.keys, lifetime=lifetime, silent_until=silent_until
        )
        self._told: deque[Event] = deque(maxlen=_MOST_TOLD)
        self._stopped: Stopped | None = None
        self._stopped_told = False
        self._stop = self._cancel = False
        self._work = Coordinator(whole=True)
        for commit in done:
            self._note(commit)
        for number in range(setup.shards):
            self._work.add(Shard(number, () if number in self._committed else (number,)))
        self._work.closed = True

    # What a replica says

    def exchange(self, report: Report, now: float) -> Orders:
        """Take account of a report, and answer it."""
        self._look(now)
        for commit in report.committed:
            self.committed(commit)
        if report.who in self._fenced or (report.who in self._left and not report.leaving):
            return self._ordered(Orders(fenced=True))
        if report.who in self._left:
            return self._ordered(Orders())
        own = self._replicas.get(report.who) or self._join(report.who)
        own.seen = self._now
        self._replicas.move_to_end(own.name)
        if report.at < own.at:  # a later one has overtaken it: nobody waits for this answer
            return self._ordered(Orders())
        if report.at > own.at:
            own.answer = self._answer(own, report)
        leases = () if self._stop else own.answer.leases
        still = tuple(lease for lease in leases if own.leases.get(lease.number) == lease)
        return self._ordered(replace(own.answer, leases=still))

    def _ordered(self, answer: Orders) -> Orders:
        """An answer with what all are told."""
        return replace(answer, stop=self._stop, cancel=self._cancel, finished=self._work.finished)

    def _answer(self, own: _Replica, report: Report) -> Orders:
        own.at, own.at_record = report.at, report.at_record
        self._told.extend(report.told)
        self._stopped = self._stopped or report.stopped
        if report.beat is not None:
            self._standing.note(own.place, report.beat)
        drop = self._compare(own, report)
        if report.leaving:
            self._leave(own)
            return Orders(drop=drop)
        granted = self._rates.granted(own.name, AskShares(report.at, report.limits)) if report.limits else None
        return Orders(leases=self._lease(own, report.asks), drop=drop, granted=granted)

    def _join(self, who: str) -> _Replica:
        if self._free_places:
            place = heappop(self._free_places)
        else:
            place, self._places = self._places, self._places + 1
        own = self._replicas[who] = _Replica(who, place, self._now)
        self._work.join(who)
        self._rates.join(who)
        return own

    def _compare(self, own: _Replica, report: Report) -> tuple[int, ...]:
        """Make what it should hold what it does hold; and say what of that it may not."""
        for number in [number for number in own.leases if number not in report.held]:
            del own.leases[number]
            self._work.give_back(number)
        drop = []
        for number, attempt in report.held.items():
            if number in own.leases:
                own.leases[number] = replace(own.leases[number], attempt=attempt)
            elif number not in self._committed and self._work.adopt(own.name, number) is not None:
                careful = report.at_record is not None and report.at_record[0] == number
                own.leases[number] = ShardLease(number, attempt, careful)
            else:
                drop.append(number)
        return tuple(drop)

    def _leave(self, own: _Replica) -> None:
        """It ends by itself; what it has counted stays as it is."""
        for number in list(own.leases):
            self._work.give_back(number)
        self._work.lost(own.name)
        self._rates.drained(own.name)
        del self._replicas[own.name]
        self._left.add(own.name)

    def _lease(self, own: _Replica, asks: int) -> tuple[ShardLease, ...]:
        if self._stop or self._now < self._quiet_until:
            return ()
        leases: list[ShardLease] = []
        while len(leases) < min(asks, _MOST_LEASES) and (lease := self._work.lease(own.name)) is not None:
            number = lease.shard.number
            own.leases[number] = self._next_attempt(lease)
            leases.append(own.leases[number])
        return tuple(leases)

    def _next_attempt(self, lease: Lease) -> ShardLease:
        number = lease.shard.number
        tries = self._attempts[number] = self._attempts.get(number, 0) + 1
        attempt = self._epoch * EPOCH_ATTEMPTS + tries
        return ShardLease(number, attempt, lease.deaths >= _CAREFUL, self._troubles.fatal(number))

    # What is committed

    def committed(self, commit: ShardCommit) -> None:
        """A shard is committed, whoever has done it; as the store has it."""
        number = commit.number
        if not self._note(commit):
            return
        self._given_up.pop(number, None)
        self._troubles.forget(number)
        who = self._work.finish(number)
        if who is not None:
            del self._replicas[who].leases[number]

    def _note(self, commit: ShardCommit) -> bool:
        """False: it is known, or of no shard of ours."""
        if commit.number in self._committed or not 0 <= commit.number < self._setup.shards:
            return False
        self._committed.add(commit.number)
        self.commits.append(commit)
        return True

    @property
    def given_up(self) -> tuple[ShardLease, ...]:
        """Shards that nobody is to do any more, and that are not committed: they are to be committed as failed, under
        this attempt, and :meth:`committed` told what the store has then."""
        return tuple(self._given_up.values())

    # What becomes of a replica

    def died(self, who: str, now: float) -> None:
        """The engine says that it is gone. Of one that was taken for lost already, or has left, this is no news."""
        self._look(now)
        if who not in self._left:
            self._lose(who)

    def _look(self, now: float) -> None:
        """What the time is; and who says nothing any more."""
        before, self._now = self._now, max(self._now, now)
        patience = self._setup.lease_seconds
        if self._now - before > patience / 2:
            for own in self._replicas.values():
                own.seen = self._now
        while self._replicas and self._now - next(iter(self._replicas.values())).seen > patience:
            who = next(iter(self._replicas))
            self._told.append(Warned(f"{who} has said nothing for {patience:g} s: others go on with what it had"))
            self._lose(who, silent=True)

    def _lose(self, who: str, *, silent: bool = False) -> None:
        self._fenced.add(who)
        own = self._replicas.pop(who, None)
        if own is None:
            return
        self._rates.leave(who)
        self._standing.lost(own.place)
        heappush(self._free_places, own.place)
        deaths = {lease.shard.number: lease.deaths for lease in self._work.held(who)}
        charged = {
            number
            for number, lease in own.leases.items()
            if self._troubles.charges(lease, own.at_record, silent=silent)
        }
        self._work.lost(who, spared=deaths.keys() - charged)
        for number in own.leases:
            tries = self._attempts.get(number, 0)
            if deaths[number] + (number in charged) >= self._setup.most_deaths or tries >= EPOCH_ATTEMPTS - 2:
                self._give_up(number)

    def _give_up(self, number: int) -> None:
        lease = self._work.give_up(number)
        assert lease is not None, "a shard that is lost waits for another replica"
        self._given_up[number] = self._next_attempt(lease)

    # What the driver is told

    def observe(self, cursor: int, now: float, order: Literal["", "stop", "cancel"] = "") -> Progress:
        """How it stands.

        Args:
            cursor: The one told last, 0 at first. With that of a coordinator before this one all commits are told.
            order: What the replicas are to be told from now on.
        """
        self._look(now)
        self._stop = self._stop or order != ""
        self._cancel = self._cancel or order == "cancel"
        if self._now >= self._add_up_at or self._work.finished or not self._replicas:
            self._add_up()
        first = cursor - self._epoch * _CURSORS
        if not 0 <= first <= len(self.commits):
            first = 0
        told, stopped = tuple(self._told), None if self._stopped_told else self._stopped
        self._told.clear()
        self._stopped_told = self._stopped is not None
        return replace(
            self._sums,
            commits=tuple(self.commits[first:]),
            cursor=self._epoch * _CURSORS + len(self.commits),
            replicas=tuple(sorted(self._replicas, key=lambda who: self._replicas[who].place)),
            told=told,
            stopped=stopped,
            finished=self._work.finished,
        )

    def _add_up(self) -> None:
        standing = self._standing
        self._add_up_at = self._now + _COUNT_SECONDS * len(self._replicas)
        self._sums = Progress(
            commits=(),
            cursor=0,
            replicas=(),
            open=standing.open,
            peak_open=standing.peak_open,
            stages=standing.snapshot(),
            accounts=standing.accounts(),
        )
