"""What a failure means: for the record, for the stage, and for the run.

The policies decide in numbers; here their answers are turned into a wait, a pause of the stage, or a stop of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from stageflow.counters import StageCounters
from stageflow.engine.attempt import describe, place_of
from stageflow.engine.gate import Gate
from stageflow.errors import HandlerFailed, OutOfMemory, RecordError, RunStopped, WorkerDied
from stageflow.item import Item, called
from stageflow.policies.breaker import SUSPECT, Breaker
from stageflow.policies.http import retry_after
from stageflow.policies.retry import retryable_by_default
from stageflow.stage import Stage

__all__ = ["Judge", "Ruling"]

_DEATHS: Final = 5
_DEATHS_WITHIN: Final = 10.0
_MEMORY_WITHIN: Final = 10.0
"""Seconds. One record may be too large; two so close together mean that there is no memory left for any."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of a record whose attempt failed.

    Args:
        wait: Seconds until the next attempt; ``None``: there is none.
        withhold: The record is left undone: what failed is not the record, and the run stops.
        hold: Its dead letter waits until it is clear whether the stage fails for every record.
    """

    wait: float | None = None
    withhold: bool = False
    hold: bool = False


class Judge:
    """Judges the failures of one stage.

    Args:
        counters: The stage's; whether it ever succeeded stands there.
        gate: Where a pause that a service asked for takes effect.
        random: For jitter.
        stop: Stops the run.
        warn: Tells the user something, once.
        max_retry_after: Seconds; a service that asks for more stops the run.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        counters: StageCounters,
        gate: Gate,
        random: Random,
        stop: Callable[[RunStopped], None],
        warn: Callable[[str], None],
        clock: Callable[[], float],
        max_retry_after: float,
    ) -> None:
        self._stage = stage
        self._counters = counters
        self._gate = gate
        self._random = random
        self._stop = stop
        self._warn = warn
        self._clock = clock
        self._max_retry_after = max_retry_after
        self.breaker = Breaker(stage.name, max_retry_after=max_retry_after)
        self._deaths: list[float] = []
        self._ran_out: float | None = None
        self._out_of_memory = False
        self._tripped = False
        self._told = 0.0

    def retryable(self, error: BaseException) -> bool:
        """Whether another attempt might go better, whatever the stage's own rules are."""
        return retryable_by_default(error)

    def rule(self, item: Item, reason: BaseException, error: BaseException, *, fresh: bool) -> Ruling:
        """Judge a failed attempt.

        Args:
            reason: The error as it is reported; ``error`` is what was raised.
            fresh: Nothing of this attempt has gone on: a generator that has yielded is not run again.
        """
        attempt = item.attempt(self._stage.name)
        asked = self.heed(error)
        wait = self._wait(reason, error, attempt, asked) if fresh else None
        if self.breaker.on_probation and self._has_passed:
            self.breaker.success()
        clean = not any(each.notes for each in item.lineage())
        # A record that lacks a field raises what looks like a mistake in the code.
        judged = reason if isinstance(reason, RecordError) else error
        verdict = self.breaker.failure(judged, clean_input=clean, final=wait is None, wall_clock=time.time())
        if verdict.trips:
            self._gate.bar()
            if not self._tripped:
                self._tripped = True
                self._warn(f'stage "{self._stage.name}": {describe(reason)}{place_of(error)}')
            self._stop(RunStopped(verdict.reason, hint="mend the cause, then run again"))
            return Ruling(withhold=True)
        if (
            self._runs_out_again(error)
            or self._dies_too_often(reason)
            or (wait is None and self._ends_the_run(item, reason))
        ):
            return Ruling(withhold=True)
        return Ruling(wait=wait, hold=verdict is SUSPECT)

    def heed(self, error: BaseException) -> float | None:
        """Let no call start while the service wants to be left alone.

        That is told once, and again only of a pause more than twice as long: a service may ask with every answer.

        Returns:
            The seconds it asked for, where it did.
        """
        # The wall clock is for a date in an answer without a date of its own; everything else is by the loop's clock.
        asked = retry_after(error, wall_clock=time.time())
        if asked is not None and asked <= self._max_retry_after:
            self._gate.pause(asked)
            if asked > 2 * self._told:
                self._told = asked
                self._warn(f'stage "{self._stage.name}" waits {asked:g} s: the service said so')
        return asked

    def _wait(self, reason: BaseException, error: BaseException, attempt: int, asked: float | None) -> float | None:
        if _is_memory(error):
            return None  # whatever the stage retries: once more would take as much again
        if self._once_more(reason, attempt):
            return 0.0
        retry = self._stage.retry
        # A group is the handler's own error where all of it could be an item's trouble.
        judged = error if isinstance(error, ExceptionGroup) else reason
        if retry is None or not retry.wants_another(judged, attempt):
            return None
        return retry.delay(attempt, self._random.random(), retry_after=asked)

    def _once_more(self, reason: BaseException, attempt: int) -> bool:
        """What befell the call from outside is tried once more, alone, whether or not the stage retries."""
        return (
            attempt == 1
            and isinstance(reason, HandlerFailed)
            and (isinstance(reason, WorkerDied) or "cancelled inside stage" in str(reason))
        )

    def _ends_the_run(self, item: Item, reason: BaseException) -> bool:
        """Stop the run where the stage's settings ask for it."""
        name = self._stage.name
        if self._stage.on_error == "abort":
            self._stop(
                RunStopped(
                    f'stage "{name}": record {called(item.index)} failed: {describe(reason)}',
                    hint='the stage says on_error="abort"; the record is not done and was not dead-lettered',
                )
            )
            return True
        return False

    @property
    def _has_passed(self) -> bool:
        """Whether the handler has ever succeeded."""
        counters = self._counters
        return counters.passed + counters.dropped > counters.degraded + counters.skipped + counters.cached

    @property
    def probation(self) -> str:
        """Whether letters held back are to be written: ``"cleared"``, ``"tripped"``, or ``"pending"``."""
        if self.breaker.tripped:
            return "tripped"
        return "cleared" if self._has_passed or not self.breaker.on_probation else "pending"

    def _dies_too_often(self, reason: BaseException) -> bool:
        """Stop the run where too many worker processes die, whether or not their items have another attempt."""
        if not isinstance(reason, WorkerDied):
            return False
        now = self._clock()
        self._deaths = [at for at in self._deaths if at > now - _DEATHS_WITHIN] + [now]
        if len(self._deaths) < _DEATHS:
            return False
        name = self._stage.name
        self._stop(RunStopped(f'stage "{name}": {_DEATHS} worker processes died within {_DEATHS_WITHIN:g} s'))
        return True

    def _runs_out_again(self, error: BaseException) -> bool:
        """Stop the run where memory runs out twice within a while; what fails by it from then on is left undone."""
        if not _is_memory(error):
            return False
        now, before = self._clock(), self._ran_out
        self._ran_out = now
        self._out_of_memory = self._out_of_memory or (before is not None and now - before < _MEMORY_WITHIN)
        if self._out_of_memory:
            self._gate.bar()
            self._stop(
                OutOfMemory(
                    f'out of memory in stage "{self._stage.name}" (twice within {_MEMORY_WITHIN:g} s)',
                    hint="lower max_in_flight or queue_size, or give it more memory; then run again",
                )
            )
        return self._out_of_memory

    def abandoned(self, count: int, grace: float) -> None:
        """A call was left behind."""
        name, most = self._stage.name, self._stage.max_in_flight
        if count == 1:
            self._warn(f'stage "{name}": a call did not end {grace:g} s after it was cancelled and is left behind')
        if count > most:
            self._stop(RunStopped(f'stage "{name}": more than {most} calls did not end after they were cancelled'))


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out, in one of several tasks perhaps."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_memory, error.exceptions))
    return isinstance(error, MemoryError)
