"""How fast a run goes now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from stageflow.events import Snapshot

__all__ = ["Rates"]

_RATE_SECONDS = 15.0


class Rates:
    """Records per second over the last seconds, from the states seen; for the run and for each stage."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, dict[str, int]]] = deque()

    def add(self, snapshot: Snapshot) -> None:
        """Take in the state of now."""
        passed = {stage.name: stage.passed + stage.dead for stage in snapshot.stages}
        self._seen.append((snapshot.seconds, snapshot.settled, passed))
        while len(self._seen) > 2 and self._seen[1][0] <= snapshot.seconds - _RATE_SECONDS:
            self._seen.popleft()

    def run(self) -> float:
        """Input records that were settled per second."""
        return self._per_second(lambda seen: seen[1])

    def stage(self, name: str) -> float:
        """Items per second that went on or failed for good."""
        return self._per_second(lambda seen: seen[2].get(name, 0))

    def _per_second(self, number: Callable[[tuple[float, int, dict[str, int]]], int]) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (number(last) - number(first)) / max(last[0] - first[0], 1e-9)
