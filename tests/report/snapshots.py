"""States of a run as its listeners see them, and a stream that says it is a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from stageflow.events import Snapshot, StageSnapshot

IDLE = StageSnapshot(name="idle", max_in_flight=64, queue_size=64, in_flight=0, queued=0, blocked=0, passed=0, dead=0)
LETTER = {"index": 17, "line": 18, "path": "in.jsonl", "stage": "generate"}
LETTER["error"] = {"type": "ValueError", "message": "no \x1b[31mroom\nhere"}


def stage(name: str, **changes: int) -> StageSnapshot:
    return replace(IDLE, name=name, **changes)


def state(*stages: StageSnapshot, **changes: float | None) -> Snapshot:
    made = Snapshot(seconds=0.0, read=500, written=0, dropped=0, dead=0, open=100, total=10_000, stages=stages)
    return replace(made, **changes)  # type: ignore[arg-type]


BUSY = state(stage("retrieve", blocked=32), stage("generate", in_flight=64, queued=64), stage("validate", in_flight=1))
LATER = replace(BUSY, seconds=10.0, written=1_231, dead=3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return not super().isatty()  # which raises when it is closed


class States:
    """The snapshot function of a run, one state after the other; the last one stays."""

    def __init__(self, *states: Snapshot) -> None:
        self.states = list(states)

    def __call__(self) -> Snapshot:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]
