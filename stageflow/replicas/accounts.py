"""What several replicas count, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stageflow.counters import StageCounters
from stageflow.events import StageSnapshot
from stageflow.work import StageAccount

__all__ = ["behind", "beside", "closed", "total_snapshot"]


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
        _add(whole.counters, account.counters)
        whole.counters.peak_in_flight = peak_in_flight
        whole.received += account.received
        whole.peak_depth = peak((whole.peak_depth, account.peak_depth))
    return whole


def _add(whole: StageCounters, part: StageCounters) -> None:
    for name in StageCounters.__slots__:
        if name == "latency":
            whole.latency.instant += part.latency.instant
            whole.latency.counts = [a + b for a, b in zip(whole.latency.counts, part.latency.counts, strict=True)]
        else:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))


def closed(account: StageAccount) -> StageAccount:
    """The account of a replica that is lost: what it had in hand was given back."""
    counters = account.counters
    settled = counters.passed + counters.dropped + counters.dead
    counters.cancelled = max(0, account.received - settled)
    counters.in_flight = counters.blocked = counters.waiting = 0
    return account
