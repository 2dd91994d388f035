"""What becomes of an item whose attempt failed.

The judge says what a failure means; here that is carried out: another attempt, a stand-in, or the end of the item.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from stageflow.engine.attempt import GONE, asked_for
from stageflow.engine.judge import Ruling
from stageflow.errors import AttemptTimeout, RecordError, RunStopped
from stageflow.item import Exit, Failure, Item
from stageflow.policies.failure import Degrade

if TYPE_CHECKING:
    from stageflow.engine.pool import Pool
    from stageflow.engine.worker import Worker

__all__ = ["Failing"]

_WAITS: Final = Exit("wait")
"""The item comes again."""


class Failing:
    """The failures of one pool."""

    def __init__(self, pool: Pool) -> None:
        self.stage = pool.stage
        self._pool = pool
        self._counters = pool.counters
        self._held = 0

    def close(self) -> None:
        """The run is over. What was held back until a verdict that stops the stage is not done: it did not die here."""
        if self._pool.judge.probation == "tripped":
            self._counters.dead -= self._held
            self._counters.cancelled += self._held
            self._held = 0

    def timeout(self) -> AttemptTimeout:
        """What a call that took too long has failed by."""
        return AttemptTimeout(f"Timeout after {self.stage.timeout:g} s")

    def cancellation(self, error: BaseException, *, worker: Worker | None, items: int = 1) -> BaseException:
        """The error as it concerns the item: the pool's own cancellation of a call is its timeout.

        Raises:
            asyncio.CancelledError: The run is cancelled. So is then whatever a handler makes of that.
        """
        if self._pool.cancelled:
            self._counters.cancelled += items
            raise error if asked_for(error) else asyncio.CancelledError from error
        if worker is not None and worker.timed_out:
            worker.forgive()
            if not asked_for(error):
                return self.timeout() if isinstance(error, asyncio.CancelledError) else error
        if asked_for(error):
            _take_back_cancellation()  # the handler cancelled its own task, which is the worker's
        return error

    async def outcome(self, item: Item, error: BaseException, *, worker: Worker | None) -> Any:
        """What becomes of an item whose attempt raised ``error``: another attempt, a stand-in, or the end of it.

        Returns:
            The result to go on with, or an :class:`Exit`.

        Raises:
            asyncio.CancelledError: The run is cancelled.
        """
        error = self.cancellation(error, worker=worker)
        reason = self._pool.attempts.reason(item, error)
        if (usage := self._pool.reported.get(item)) is not None:
            usage.cut = isinstance(reason, AttemptTimeout)
            usage.uncalled = reason is not error and isinstance(reason, RecordError)
        yielded = self._has_yielded(item)
        ruling = self._pool.judge.rule(item, reason, error, fresh=not yielded)
        if ruling.wait is not None:
            if item.closed:
                return GONE
            self._pool.return_later(item, ruling.wait)
            return _WAITS
        # What a generator yielded in an earlier run is kept as what it yielded in this one, but it may be tried again.
        yielded = yielded or self._resumes(item)
        stands_in = not yielded and (self.stage.on_error == "skip" or isinstance(self.stage.on_error, Degrade))
        if item.closed and (stands_in or any(each.failure is not None for each in item.lineage())):
            return GONE
        if stands_in and not ruling.withhold:
            try:
                value = await self._pool.attempts.stand_in(item, reason)
            except BaseException as second:  # noqa: BLE001 - the job's own code
                reason = self._pool.attempts.reason(item, self.cancellation(second, worker=worker))
            else:
                assert item.notes is not None, "a stand-in is noted"
                outcome = item.notes[self.stage.name].outcome
                self._counters.degraded += outcome == "degraded"
                self._counters.skipped += outcome == "skipped"
                return Exit("spread", [value]) if self.stage.fans_out else value
        self._give_up(item, reason, ruling)
        return GONE

    def _give_up(self, item: Item, reason: BaseException, ruling: Ruling) -> None:
        if item.failure is None:
            attempts = item.attempt(self.stage.name)
            item.failure = Failure(self.stage.name, reason, attempts, retryable=self._pool.judge.retryable(reason))
            item.withheld, item.held = ruling.withhold, ruling.hold
            self._held += ruling.hold
        # What a generator yielded before it failed is whole, and needs the results of the stages beside it.
        if ruling.withhold or not (self._has_yielded(item) or self._resumes(item)):
            item.close()
        else:
            item.broken = (*item.broken, self.stage.name)

    def withhold(self, item: Item) -> None:
        """Leave an item undone and start nothing more of it: no call of its stage may start any more."""
        self._give_up(item, RunStopped(self._pool.judge.breaker.reason() or "stopped"), Ruling(withhold=True))

    def _has_yielded(self, item: Item) -> bool:
        return any(child.maker == self.stage.name for child in item.children or ())

    def _resumes(self, item: Item) -> bool:
        return item.resumed is not None and self.stage.name in item.resumed


def _take_back_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None, "a cancellation outside of any task"
    while task.cancelling():
        task.uncancel()
