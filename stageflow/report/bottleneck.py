"""The one sentence about a run: what bound its throughput, and what would widen it.

How the bottleneck is found
---------------------------

A worker is busy (in its handler), waiting (for a permit of its rate limit, or for the end of a pause that the service
asked for), blocked (by the next channel) or starved (without an item). What binds a pipeline is busy; what stands
before it is blocked; what stands after it starves. The rules, the first that holds decides:

1. **Too little.** Fewer than 100 records or 0.2 s show the start and the end of a run, and not what it settles at.
2. **The event loop.** Calls of ``run="inline"`` run on the loop one at a time, however many workers there are, so
   their shares are taken of one worker and added up. An async stage whose calls never once overlapped, though items
   were waiting and workers free, is counted in: it computes without awaiting. Together 85 % bind the whole run; 70 %
   do where no stage (rule 4) is busier. More workers help nothing; a process does.
3. **Permits.** The stage whose workers waited most, if that was 15 % of their time or more: its rate limit binds.
4. **A busy stage.** The busiest that is not itself held back (blocked under 15 % of the time) and busy for 70 % or
   more, if work piled up before it: an earlier stage was blocked, or its own channel was full. At 90 % it needs no
   such witness. Whatever is as busy is named with it, because widening one alone would only move the bottleneck.
5. **Nothing worth waiting for.** All calls take under 1 ms and there are over a thousand a second: what is left is
   the cost of reading, handing over and writing.
6. **A stage is blocked, though none is busy.** The stage whose channel was full after the last blocked one did not
   keep up although its workers had time: it got too little of the processor. If there is none, the last blocked stage
   waits for the output.
7. **The bound on open records was reached**, though no stage was busy: retries wait outside the stages, or the output
   is slow.
8. **A channel was full, but nobody blocked**: the input comes in bursts.
9. **All starve**: the input is the bottleneck.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from stageflow.report.stats import RunReport, StageReport
from stageflow.report.text import count, counted, duration, percent, printable

__all__ = ["bottleneck"]

_ENOUGH_RECORDS = 100
_ENOUGH_SECONDS = 0.2
_BUSY = 0.7
_SURELY_BUSY = 0.9
_LOOP_FULL = 0.85
_AS_BUSY = 0.05
_BLOCKED = 0.15
_QUICK_SECONDS = 0.001
_QUICK_PER_SECOND = 1000.0
_RETRIES_MATTER = 0.05


def bottleneck(report: RunReport) -> str:
    """One sentence: what bound the throughput, and what would widen it. The module's docstring has the rules."""
    stages = list(report.stages.values())
    settled = report.settled
    if not stages or settled < _ENOUGH_RECORDS or report.seconds < _ENOUGH_SECONDS:
        took = f"{counted(settled, 'record')} in {duration(report.seconds)}"
        return f"{took} are too little to judge what binds the throughput."
    calls_per_second = sum(stage.received for stage in stages) / report.seconds
    return (
        _event_loop(stages)
        or _permits(stages)
        or _busy_stage(stages)
        or _nothing_to_wait_for(stages, calls_per_second)
        or _blocked_stages(stages)
        or _open_records(report, stages)
        or _full_channel(stages)
        or _input(stages)
    )


def _full(stage: StageReport) -> bool:
    return stage.peak_depth >= stage.queue_size


def _holds_loop(stage: StageReport) -> bool:
    if stage.run == "inline":
        return True
    # Items waited (depth over 1) beside idle workers, and still there was never a second call: none of them awaits.
    alone = stage.run == "async" and stage.peak_in_flight <= 1 < stage.max_in_flight
    return alone and stage.peak_depth > 1 and _of_one_worker(stage) >= _BUSY


def _of_one_worker(stage: StageReport) -> float:
    return min(1.0, stage.busy * stage.max_in_flight)


def _busiest(stages: Sequence[StageReport]) -> StageReport | None:
    free = [stage for stage in stages if stage.blocked < _BLOCKED and stage.busy >= _BUSY and not _holds_loop(stage)]
    return max(free, key=lambda stage: stage.busy, default=None)


def _event_loop(stages: Sequence[StageReport]) -> str | None:
    holders = [stage for stage in stages if _holds_loop(stage)]
    share = min(1.0, sum(map(_of_one_worker, holders)))
    busiest = _busiest(stages)
    if share < _BUSY or (share < _LOOP_FULL and busiest is not None and busiest.busy > share):
        return None
    worst = max(holders, key=_of_one_worker)
    name = printable(worst.name)
    if worst.run == "inline":
        why = "it runs inline, one call at a time,"
    else:
        why = "it computes on the event loop, where its calls never overlapped,"
    others = ", ".join(printable(stage.name) for stage in holders if stage is not worst)
    whole = f" together with {others}" if others else ""
    return (
        f"{name} is the bottleneck: {why} and held everything up for {percent(share)} of the time{whole}; "
        f'more workers can\'t help, a plain function with run="process" can.'
    )


def _permits(stages: Sequence[StageReport]) -> str | None:
    stage = max(stages, key=lambda stage: stage.waiting)
    if stage.waiting < _BLOCKED:
        return None
    return (
        f"{printable(stage.name)} is the bottleneck: {_workers(stage)} waiting for a permit {percent(stage.waiting)} "
        "of the time; raise its rate_limit if the service allows it, more workers can't help."
    )


def _busy_stage(stages: Sequence[StageReport]) -> str | None:
    stage = _busiest(stages)
    if stage is None:
        return None
    earlier = stages[: stages.index(stage)]
    if stage.busy < _SURELY_BUSY and not _full(stage) and all(other.blocked < _BLOCKED for other in earlier):
        return None
    as_busy = [
        other
        for other in stages
        if other is not stage
        and other.blocked < _BLOCKED
        and other.busy >= max(_SURELY_BUSY, stage.busy - _AS_BUSY)
        and not _holds_loop(other)
    ]
    names = "".join(f", and so were those of {printable(other.name)}" for other in as_busy)
    return (
        f"{printable(stage.name)} is the bottleneck: {_workers(stage)} busy {percent(stage.busy)} of the time{names}; "
        f"{_how_to_widen([stage, *as_busy])}."
    )


def _workers(stage: StageReport) -> str:
    return "its one worker was" if stage.max_in_flight == 1 else f"its {count(stage.max_in_flight)} workers were"


def _how_to_widen(stages: Sequence[StageReport]) -> str:
    options = " ".join(
        f"--max-in-flight {shlex.quote(f'{printable(stage.name)}={2 * stage.max_in_flight}')}" for stage in stages
    )
    kinds = {stage.run for stage in stages}
    if "thread" in kinds:
        return f'try {options} if it waits for a service, or run="process" if it computes'
    if "process" in kinds:
        return f"try {options} if the machine has cores to spare"
    return f"try {options}"


def _nothing_to_wait_for(stages: Sequence[StageReport], calls_per_second: float) -> str | None:
    quick = all(stage.p50 is None or stage.p50 < _QUICK_SECONDS for stage in stages)
    if not quick or calls_per_second < _QUICK_PER_SECOND:
        return None
    return (
        "No stage is the bottleneck: calls take under 1 ms, so reading, handing over and writing are what is left; "
        "fewer and larger stages would cost less."
    )


def _blocked_stages(stages: Sequence[StageReport]) -> str | None:
    blocked = [place for place, stage in enumerate(stages) if stage.blocked >= _BLOCKED]
    if not blocked:
        return None
    waiting = [stage for stage in stages[blocked[-1] + 1 :] if _full(stage)]
    if waiting:
        stage = max(waiting, key=lambda stage: stage.busy)
        return (
            f"{printable(stage.name)} is the bottleneck: its queue was full while {_workers(stage)} busy only "
            f"{percent(stage.busy)} of the time: it is short of processor time, and more workers can't help."
        )
    last = stages[blocked[-1]]
    return (
        f"The output is the bottleneck: {printable(last.name)} was blocked {percent(last.blocked)} of the time and no "
        "stage was busy; a faster disk or sink would help, more workers can't."
    )


def _open_records(report: RunReport, stages: Sequence[StageReport]) -> str | None:
    if not 0 < report.max_open_records <= report.peak_open:
        return None
    places = f"all {count(report.max_open_records)} places for open records were taken while no stage was busy"
    try_more = f"try --max-open-records {2 * report.max_open_records}"
    if sum(stage.retries for stage in stages) >= _RETRIES_MATTER * report.read:
        return f"Waiting for retries is the bottleneck: {places}; {try_more}."
    return f"The bound on open records is the bottleneck: {places}; {try_more}, or look at how fast the output is."


def _full_channel(stages: Sequence[StageReport]) -> str | None:
    stage = next(filter(_full, stages), None)
    if stage is None:
        return None
    return (
        f"{printable(stage.name)} held the run back: its queue was full though {_workers(stage)} busy only "
        f"{percent(stage.busy)} of the time: the input comes in bursts."
    )


def _input(stages: Sequence[StageReport]) -> str:
    stage = max(stages, key=lambda stage: stage.busy)
    return (
        f"The input is the bottleneck: no stage waited for the next, and the busiest, {printable(stage.name)}, "
        f"was busy {percent(stage.busy)} of the time; more workers can't help."
    )
