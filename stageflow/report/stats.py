"""What a run comes to, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stageflow.counters import StageCounters
from stageflow.money import units

__all__ = ["Forecast", "RunReport", "StageReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage's account: ``received == passed + dropped + dead + cancelled``.

    Args:
        passed: Items that went on; ``degraded`` and ``skipped`` are among them.
        cancelled: Items given back unfinished because another branch or the run had ended.
        p50, p95: Seconds in the handler, per attempt, within 9 %; ``None`` where there was none.
        busy, blocked, waiting, starved: Shares (0 to 1) of the time of all ``max_in_flight`` workers: in the handler,
            waiting for room in the next channel, for a permit or the end of a pause, and without work. They sum to 1.
        retries: Attempts after the first. ``tokens``: as handlers reported them; ``input_tokens`` and ``output_tokens``
            are those of which they said the kind. Those of failed attempts are among them.
        hedged: Calls that were made a second time because they took long. ``hedges_won``: those of which the second
            counted. To p50 and p95 both together are one.
        cost: Of the calls, by what they reported, in the currency of the prices; ``cost_unsure``: what they may have
            cost beyond that. ``unpriced``: tokens whose price is not known.
        untold: Calls that reported nothing, which count for a budget with the most that they may cost. ``over``: calls
            that cost more than the stage's ``max_tokens`` allow.
        abandoned: Calls that outlived their timeout and their cancellation, and were left behind.
        peak_in_flight, peak_depth: The most calls in progress at once, and the most items waiting in its channel.
        run: Where the handler runs, as in the stage's setting: it decides whether more workers could help.
        calls: Calls that were made, later attempts included. ``cached``: items whose result was in the cache, and for
            which none was; ``None`` where the stage has no cache.
    """

    name: str
    max_in_flight: int
    queue_size: int
    received: int
    passed: int
    degraded: int
    skipped: int
    dropped: int
    dead: int
    cancelled: int
    retries: int
    p50: float | None
    p95: float | None
    busy: float
    blocked: float
    starved: float
    peak_in_flight: int
    peak_depth: int
    run: str = "async"
    waiting: float = 0.0
    tokens: int = 0
    abandoned: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    cost_unsure: float = 0.0
    unpriced: int = 0
    untold: int = 0
    over: int = 0
    hedged: int = 0
    hedges_won: int = 0
    calls: int = 0
    cached: int | None = None

    @classmethod
    def of(
        cls,
        counters: StageCounters,
        *,
        name: str,
        max_in_flight: int,
        queue_size: int,
        received: int,
        peak_depth: int,
        seconds: float,
        run: str = "async",
        caches: bool = False,
    ) -> StageReport:
        """The report of a stage that ran for ``seconds``, with a cache or without."""
        worker_seconds = max(seconds * max_in_flight, 1e-9)
        busy = min(1.0, counters.busy_seconds / worker_seconds)
        blocked = min(1.0 - busy, counters.blocked_seconds / worker_seconds)
        waiting = min(1.0 - busy - blocked, counters.waiting_seconds / worker_seconds)
        return cls(
            name=name,
            max_in_flight=max_in_flight,
            queue_size=queue_size,
            received=received,
            passed=counters.passed,
            degraded=counters.degraded,
            skipped=counters.skipped,
            dropped=counters.dropped,
            dead=counters.dead,
            cancelled=counters.cancelled,
            retries=counters.retries,
            p50=counters.latency.quantile(0.5),
            p95=counters.latency.quantile(0.95),
            busy=busy,
            blocked=blocked,
            starved=1.0 - busy - blocked - waiting,
            peak_in_flight=counters.peak_in_flight,
            peak_depth=peak_depth,
            run=run,
            waiting=waiting,
            tokens=counters.tokens,
            abandoned=counters.abandoned,
            input_tokens=counters.input_tokens,
            output_tokens=counters.output_tokens,
            cost=units(counters.cost),
            cost_unsure=units(counters.cost_unsure),
            unpriced=counters.unpriced,
            untold=counters.untold,
            over=counters.over,
            hedged=counters.hedged,
            hedges_won=counters.hedges_won,
            calls=counters.made,
            cached=counters.cached if caches else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """About how many records the whole input has, and what they would take (seconds) and cost; an estimate."""

    records: int
    seconds: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A whole run: ``read == written + dropped + dead + not_done``, in input records.

    Where a run goes on with what earlier ones left, the account is of all of them together; the seconds, the stages and
    ``bad`` are of this one.

    Args:
        read: Records and unreadable lines taken from the source; ``blank`` lines are not among them.
        bad: Those of ``dead`` that were unreadable lines.
        not_done: Read but not settled, because the run was stopped.
        seconds: From the first record read to the end of the run; opening the resources is not in it.
        stopped: Why the run ended before its input did; ``None`` where it did not.
        exit_code: What ``stageflow run`` exits with.
        stages: By name, in execution order.
        peak_open: The most records admitted and not yet settled.
        earlier: Records that earlier runs had settled, and this one did not do again.
        already_complete: Earlier runs had done everything; nothing was read, called or written.
        cost, cost_unsure: Of this run's calls, as in :class:`StageReport`.
        cost_earlier, cost_unsure_earlier: The same of earlier runs.
        budget: What all runs together may cost.
        forecast: Where only the first records were asked for, and there are more: what all of them would come to.
    """

    pipeline: str
    read: int
    blank: int
    bad: int
    written: int
    dropped: int
    dead: int
    not_done: int
    seconds: float
    stopped: str | None
    exit_code: int
    peak_open: int
    max_open_records: int
    stages: Mapping[str, StageReport] = field(default_factory=dict)
    earlier: int = 0
    already_complete: bool = False
    cost: float = 0.0
    cost_unsure: float = 0.0
    cost_earlier: float = 0.0
    cost_unsure_earlier: float = 0.0
    budget: float | None = None
    forecast: Forecast | None = None

    @property
    def settled(self) -> int:
        """Input records that this run settled."""
        return self.written + self.dropped + self.dead - self.earlier

    @property
    def per_second(self) -> float:
        """Input records that this run settled per second."""
        return self.settled / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts and numbers, for JSON."""
        return {**asdict(self), "per_second": self.per_second}
