"""Who works on which shard of the input, and what becomes of the shards of a replica that is lost. Pure.

The rules:

* Shards come in the order of the input. What is leased is the first, in the order of the input, that the replica may
  have; what was lost goes back to its place, before what was never leased.
* What is committed is done, record by record. A lost replica's leases are leased again without what is done of them.
* A death is charged to every lease that the replica held. One that was charged twice is leased *alone*: to a replica
  that has nothing else, and is given nothing else, so that no innocent neighbours die with it a third time. From the
  third death on it is divided in two, again and again, until it is a single record: that one kills its process, and is
  named. Beside the killer at most the records that were in flight with it are done again, and about as often as the
  number of records can be halved.
* Where leases are of *whole* shards, they are alone from the second death on and never divided: whoever drives it knows
  better what to do then. What a replica says it has may be unknown here, and is adopted; what it lacks is given back;
  and a shard may be done by one that does not hold it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Coordinator", "Lease", "Shard"]

_ALONE: Final = 2
_DIVIDED: Final = 3
"""Deaths after which a lease is given to nobody who has another one, and after which it is divided."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the input.

    Args:
        number: Its place among the shards, from 0.
        indices: The records to be done; some may turn out to be blank lines. A range: all that is in ``content``.
        content: What a replica makes the records of.
    """

    number: int
    indices: Sequence[int]
    content: Any = None


@dataclass(frozen=True, slots=True)
class Lease:
    """What of a shard a replica is to do.

    Args:
        id: Of this lease alone.
        indices: The records to be done, in their order. A range: all of the shard.
        deaths: How many replicas were lost with these records in hand.
        fatal: It is one record, which kills whoever works on it: it is to fail, and not to be run.
    """

    id: int
    shard: Shard
    indices: Sequence[int]
    deaths: int = 0
    fatal: bool = False

    @property
    def alone(self) -> bool:
        """It may kill its replica, and is given to one that has nothing else."""
        return self.deaths >= _ALONE and not self.fatal


@dataclass(slots=True)
class _Leased:
    lease: Lease
    who: str
    left: int


class Coordinator:
    """Hands out leases and takes account of what is done of them. Every method returns at once.

    Args:
        window: So many shards at most are worked on at a time, from the oldest that is not done; ``None``: any number.
        whole: A lease is of a whole shard, which is done at once: each shard has one index.

    Attributes:
        closed: No more shards will be added.
        done: The numbers of the shards that are done, for whoever wants to know; who takes them empties it.
    """

    def __init__(self, *, window: int | None = None, whole: bool = False) -> None:
        self.closed = False
        self.done: list[int] = []
        self._window = window
        self._whole = whole
        self._ready: deque[Lease] = deque()  # in the order of the input
        self._held: dict[str, dict[int, _Leased]] = {}  # by replica, what it works on by lease
        self._owner: dict[int, _Leased] = {}  # of each record that is leased and not done
        self._left: dict[int, int] = {}  # records not done, by number of the shard
        self._open: deque[int] = deque()  # the shards from the oldest that is not done
        self._next_id = 0

    def add(self, shard: Shard) -> None:
        """There is one more shard, behind the others."""
        assert not self.closed, "a shard behind the end"
        assert not self._open or shard.number > self._open[-1], "a shard that is not behind the others"
        self._open.append(shard.number)
        self._left[shard.number] = len(shard.indices)
        if shard.indices:
            self._ready.append(self._lease(shard, shard.indices, 0))
        else:
            self._finish(shard.number)

    @property
    def ready(self) -> int:
        """Leases that wait for a replica."""
        return len(self._ready)

    @property
    def finished(self) -> bool:
        """All shards are there, and all are done."""
        return self.closed and not self._left

    @property
    def given_out(self) -> bool:
        """All shards are there, and none waits for a replica."""
        return self.closed and not self._ready

    def join(self, who: str) -> None:
        """A replica begins, under a name of its own."""
        assert who not in self._held, "two replicas of one name"
        self._held[who] = {}

    def lease(self, who: str) -> Lease | None:
        """The next lease for a replica, if there is one for it now."""
        held = self._held[who]
        if any(leased.lease.alone for leased in held.values()):
            return None
        for place, lease in enumerate(self._ready):
            if self._window is not None and lease.shard.number >= self._open[0] + self._window:
                return None
            if not lease.alone or not held:
                return self._give(place, who)
        return None

    def _give(self, place: int, who: str) -> Lease:
        lease = self._ready[place]
        del self._ready[place]
        leased = self._held[who][lease.id] = _Leased(lease, who, len(lease.indices))
        self._owner.update(dict.fromkeys(lease.indices, leased))
        return lease

    def settled(self, indices: Iterable[int]) -> None:
        """These records, which were leased, are done; or they are no records."""
        owner = self._owner
        for index in indices:
            leased = owner.pop(index)
            leased.left -= 1
            if not leased.left:
                del self._held[leased.who][leased.lease.id]
            number = leased.lease.shard.number
            self._left[number] -= 1
            if not self._left[number]:
                self._finish(number)

    def held(self, who: str) -> list[Lease]:
        """What a replica has."""
        return [leased.lease for leased in self._held[who].values()]

    def shard_of(self, index: int) -> int:
        """The number of the shard of a record that is leased and not done."""
        return self._owner[index].lease.shard.number

    def lost(self, who: str, *, spared: Container[int] = ()) -> int:
        """A replica is gone, with whatever it held.

        Args:
            spared: The numbers of shards that are not charged.

        Returns:
            How many leases it held: a replica that dies without any has not been killed by a record.
        """
        held = self._held.pop(who)
        for leased in held.values():
            lease = leased.lease
            left = [index for index in lease.indices if self._owner.get(index) is leased]
            for index in left:
                del self._owner[index]
            deaths = lease.deaths + (lease.shard.number not in spared)
            divided = deaths >= _DIVIDED and not self._whole
            half = (len(left) + 1) // 2 if divided else len(left)
            fatal = divided and len(left) == 1
            for part in filter(None, (left[:half], left[half:])):
                insort(self._ready, self._lease(lease.shard, part, deaths, fatal=fatal), key=_place)
        return len(held)

    # Whole shards, by their numbers

    def adopt(self, who: str, number: int) -> Lease | None:
        """Lease a shard to a replica that has it already; none where it does not wait for one."""
        place = self._waiting(number)
        return None if place is None else self._give(place, who)

    def give_back(self, number: int) -> None:
        """Whoever it is leased to does not have it, and has not died."""
        leased = self._owner.pop(number)
        lease = self._held[leased.who].pop(leased.lease.id).lease
        insort(self._ready, self._lease(lease.shard, lease.indices, lease.deaths), key=_place)

    def give_up(self, number: int) -> Lease | None:
        """Lease a shard that waits to nobody, from now on; none where it does not wait."""
        place = self._waiting(number)
        if place is None:
            return None
        lease = self._ready[place]
        del self._ready[place]
        return lease

    def finish(self, number: int) -> str | None:
        """A shard that was not done is done, whoever has done it. Who has the lease is told."""
        leased = self._owner.pop(number, None)
        if leased is not None:
            del self._held[leased.who][leased.lease.id]
        else:
            self.give_up(number)
        self._finish(number)
        return None if leased is None else leased.who

    def _waiting(self, number: int) -> int | None:
        """Where it stands among those that wait for a replica."""
        assert self._whole, "a shard that may be in parts"
        place = bisect_left(self._ready, number, key=_number)
        return place if place < len(self._ready) and self._ready[place].shard.number == number else None

    def _lease(self, shard: Shard, indices: Sequence[int], deaths: int, *, fatal: bool = False) -> Lease:
        self._next_id += 1
        return Lease(self._next_id, shard, indices, deaths, fatal)

    def _finish(self, number: int) -> None:
        del self._left[number]
        self.done.append(number)
        while self._open and self._open[0] not in self._left:
            self._open.popleft()


def _place(lease: Lease) -> tuple[int, int]:
    return lease.shard.number, lease.indices[0]


def _number(lease: Lease) -> int:
    return lease.shard.number
