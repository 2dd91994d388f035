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
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
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

    Attributes:
        closed: No more shards will be added.
        done: The numbers of the shards that are done, for whoever wants to know; who takes them empties it.
    """

    def __init__(self, *, window: int | None = None) -> None:
        self.closed = False
        self.done: list[int] = []
        self._window = window
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
                del self._ready[place]
                leased = held[lease.id] = _Leased(lease, who, len(lease.indices))
                self._owner.update(dict.fromkeys(lease.indices, leased))
                return lease
        return None

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

    def shard_of(self, index: int) -> int:
        """The number of the shard of a record that is leased and not done."""
        return self._owner[index].lease.shard.number

    def lost(self, who: str) -> int:
        """A replica is gone, with whatever it held.

        Returns:
            How many leases it held: a replica that dies without any has not been killed by a record.
        """
        held = self._held.pop(who)
        for leased in held.values():
            lease = leased.lease
            left = [index for index in lease.indices if self._owner.get(index) is leased]
            for index in left:
                del self._owner[index]
            deaths = lease.deaths + 1
            half = len(left) if deaths < _DIVIDED else (len(left) + 1) // 2
            fatal = deaths >= _DIVIDED and len(left) == 1
            for part in filter(None, (left[:half], left[half:])):
                insort(self._ready, self._lease(lease.shard, part, deaths, fatal=fatal), key=_place)
        return len(held)

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
