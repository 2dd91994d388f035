"""The timeout of a stage's attempts, at no cost per call.

A timer per call would cost several times what a call that does not wait costs. Here a worker notes when its call began,
and one timer per stage is set to the earliest time at which any call could be over its limit. When it fires it looks at
all workers and is set again. A call that began later is over later, so that no deadline is missed.

A call that is over is cancelled. One that is still there after the grace swallowed its cancellation and is abandoned.

Source: the lazy re-arming is that of hashed timing wheels' coarse ticks taken to one tick per stage (G. Varghese and
T. Lauck, "Hashed and Hierarchical Timing Wheels", 1987).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from math import inf
from typing import Final

from stageflow.engine.worker import Worker

__all__ = ["SWALLOW_GRACE", "Deadlines"]

SWALLOW_GRACE: Final = 5.0
"""Seconds after its cancellation in which a call may end."""

_ROUNDING: Final = 1e-9


class Deadlines:
    """Cancels the calls of a pool that take longer than ``timeout`` seconds.

    Args:
        workers: The pool's workers, as they are at any time.
        abandon: Called with a worker whose call did not end within the grace.
    """

    def __init__(
        self,
        timeout: float,
        workers: Collection[Worker],
        *,
        clock: Callable[[], float],
        abandon: Callable[[Worker], None],
    ) -> None:
        self._timeout = timeout
        self._workers = workers
        self._clock = clock
        self._abandon = abandon
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf

    def arm(self) -> None:
        """A call is about to begin."""
        if self._timer is None:
            self._set(self._clock() + self._timeout)

    def resume(self, worker: Worker, since: float) -> None:
        """A call goes on whose time stood still, as if it had begun at ``since``: earlier than the timer knows."""
        worker.since = since
        if since + self._timeout < self._at:
            self.stop()
            self._set(since + self._timeout)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._at = None, inf

    def _set(self, at: float) -> None:
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._look)

    def _look(self) -> None:
        self._timer, self._at = None, inf
        now = self._clock()
        earliest = min((self._due(worker, now) for worker in tuple(self._workers)), default=inf)
        if earliest < inf:
            self._set(earliest)

    def _due(self, worker: Worker, now: float) -> float:
        """Deal with one worker; when it is to be looked at again."""
        limit = worker.since + self._timeout
        if limit > now + _ROUNDING or worker.task is None:
            return limit
        if not worker.timed_out:
            # The grace counts from here: the loop may have stood still since the call was over.
            worker.since = now - self._timeout
            worker.timed_out = True
            worker.task.cancel()
            return now + SWALLOW_GRACE
        if limit + SWALLOW_GRACE <= now + _ROUNDING:
            self._abandon(worker)
            return inf
        return limit + SWALLOW_GRACE
