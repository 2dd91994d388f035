"""What several replicas count, added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from stageflow.counters import StageCounters
from stageflow.events import StageSnapshot
from stageflow.replicas.messages import Beat
from stageflow.work import StageAccount

__all__ = ["Standing", "behind", "beside", "closed", "total_snapshot"]


class Standing:
    """What the processes of a run said last of how they stand, by their places; those that were lost there, too."""

    def __init__(self) -> None:
        self._now: dict[int, Beat] = {}
        self._lost: dict[int, list[Beat]] = {}

    def note(self, place: int, beat: Beat) -> None:
        """A process says how it stands."""
        self._now[place] = beat

    def lost(self, place: int) -> None:
        """It is gone, and what it had in hand was given back."""
        beat = self._now.pop(place, None)
        if beat is not None:
            accounts = {name: closed(account) for name, account in beat.accounts.items()}
            self._lost.setdefault(place, []).append(dataclasses.replace(beat, accounts=accounts))

    @property
    def open(self) -> int:
        """The records that are open now."""
        return sum(beat.open.records for beat in self._now.values())

    @property
    def _beats(self) -> list[list[Beat]]:
        """By place, those who were there after one another."""
        places = sorted({*self._now, *self._lost})
        return [[*self._lost.get(place, ()), *filter(None, (self._now.get(place),))] for place in places]

    @property
    def peak_open(self) -> int:
        """The most records that were open at a time, in no place more than that."""
        return sum(max(beat.peak_open for beat in beats) for beats in self._beats)

    def snapshot(self) -> tuple[StageSnapshot, ...]:
        """Each stage in all processes that there are."""
        return tuple(map(total_snapshot, zip(*(beat.stages for beat in self._now.values()), strict=True)))

    def accounts(self) -> dict[str, StageAccount]:
        """Each stage's account, in execution order."""
        beats = self._beats
        if not beats:
            return {}
        names = beats[0][0].accounts
        return {name: beside(behind(beat.accounts[name] for beat in each) for each in beats) for name in names}


def total_snapshot(snapshots: Iterable[StageSnapshot]) -> StageSnapshot:
    """One stage in all replicas; it is paused for as long as it is in one of them."""
    first, *others = snapshots
    for other in others:
        first = StageSnapshot(
            name=first.name,
            max_in_flight=first.max_in_flight + other.max_in_flight,
            queue_size=first.queue_size + other.queue_size,
            in_flight=first.in_flight + other.in_flight,
            queued=first.queued + other.queued,
            blocked=first.blocked + other.blocked,
            passed=first.passed + other.passed,
            dead=first.dead + other.dead,
            waiting=first.waiting + other.waiting,
            paused=max(first.paused, other.paused),
        )
    return first


def beside(accounts: Iterable[StageAccount]) -> StageAccount:
    """One stage's account in replicas that run at the same time. Peaks are added: no more were ever there at once."""
    return _total(accounts, sum)


def behind(accounts: Iterable[StageAccount]) -> StageAccount:
    """The same of replicas that took each other's place."""
    return _total(accounts, max)


def _total(accounts: Iterable[StageAccount], peak: Callable[[tuple[int, int]], int]) -> StageAccount:
    whole = StageAccount(StageCounters(), 0, 0)
    for account in accounts:
        peak_in_flight = peak((whole.counters.peak_in_flight, account.counters.peak_in_flight))
        whole.counters.add(account.counters)
        whole.counters.peak_in_flight = peak_in_flight
        whole.received += account.received
        whole.peak_depth = peak((whole.peak_depth, account.peak_depth))
    return whole


def closed(account: StageAccount) -> StageAccount:
    """The account of a replica that is lost: what it had in hand was given back."""
    counters = account.counters
    settled = counters.passed + counters.dropped + counters.dead
    counters.cancelled = max(0, account.received - settled)
    counters.in_flight = counters.blocked = counters.waiting = 0
    return account
