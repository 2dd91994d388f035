"""What a run waits for, told from its state of now. Pure."""

from __future__ import annotations

from stageflow.events import Snapshot, StageSnapshot
from stageflow.report.text import count, duration, printable

__all__ = ["load", "waiting_for"]


def waiting_for(snapshot: Snapshot, *, reading: bool = True) -> str:
    """What keeps the run from going faster at this moment, as ``generate (64/64 in flight, 64 queued)``.

    It is a stage that its service asked to pause, else the stage with the most to do for its size, in flight and
    queued, among those not blocked themselves. When stages are only blocked it is the output. When all have workers to
    spare, it is a stage most of whose items wait for their next attempt, the input while that is read, and else
    whatever is still in flight.

    Args:
        snapshot: The state.
        reading: Whether there may be more input; after a request to stop there is none.
    """
    stages = snapshot.stages
    paused = max(stages, key=lambda stage: stage.paused, default=None)
    if paused is not None and paused.paused > 0:
        return f"{printable(paused.name)} (paused for {duration(paused.paused)}: its service asked for it)"
    pressed = [stage for stage in stages if _pressed(stage) and not _held_back(stage)]
    if pressed:
        return _stage_state(max(pressed, key=load))
    blocked = [stage for stage in stages if stage.blocked]
    if blocked:
        return f"the output ({printable(blocked[-1].name)}: {count(blocked[-1].blocked)} blocked)"
    running = max(stages, key=lambda stage: stage.in_flight, default=None)
    in_flight = sum(stage.in_flight for stage in stages)
    waiting = max(stages, key=lambda stage: stage.waiting, default=None)
    if waiting is not None and waiting.waiting > in_flight:
        return f"{printable(waiting.name)} ({count(waiting.waiting)} items before their next attempt or permit)"
    outside = snapshot.open - in_flight - sum(stage.waiting for stage in stages)
    if outside > in_flight:
        return f"the output ({count(outside)} open records are in no stage)"
    more = reading and (snapshot.total is None or snapshot.read < snapshot.total)
    if running is None or not running.in_flight:
        return "the input" if more else "the end"
    if not more:
        return _stage_state(running)
    # Without a total nobody knows whether the input is slow or at its end.
    return "the input" if snapshot.total is not None else f"the input or {_stage_state(running)}"


def _pressed(stage: StageSnapshot) -> bool:
    return stage.queued > 0 or stage.in_flight >= stage.max_in_flight


def _held_back(stage: StageSnapshot) -> bool:
    return stage.blocked > stage.in_flight


def load(stage: StageSnapshot) -> float:
    """What a stage has to do for its size: 2 where all of its workers are busy and its channel is full."""
    return stage.in_flight / max(1, stage.max_in_flight) + stage.queued / max(1, stage.queue_size)


def _stage_state(stage: StageSnapshot) -> str:
    queued = f", {count(stage.queued)} queued" if stage.queued else ""
    waiting = f", {count(stage.waiting)} waiting" if stage.waiting else ""
    return f"{printable(stage.name)} ({count(stage.in_flight)}/{count(stage.max_in_flight)} in flight{queued}{waiting})"
