"""When what goes wrong at a stage is no trouble of single items, so that the run should stop.

Rules, for each failed attempt of the stage, the first that applies:

1. A status of 401 or 403, or a quota that is used up: trip. The next record would fare no better.
2. A host whose name does not exist, while the stage has had no success: trip. Later on it is an ordinary failure, since
   a name server has bad moments too.
3. The server asks for a longer wait than the cap: trip. To come back earlier would be to ignore it.
4. A programming error, with no input skipped or degraded, while the stage has had no success (its *probation*):
   suspect. When there are ten of one class, the job is what is wrong: trip. The first success clears all suspects.
5. Anything else: ordinary.

What tripped, and the suspects at that time, are no dead letters: their records are not done yet, and the run that
continues tries them again. Suspects that are cleared, or are still suspects when the input ends, are ordinary failures.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from stageflow.policies.http import host_of, is_unknown_host, quota_code, retry_after, status_of

__all__ = ["MAX_RETRY_AFTER", "ORDINARY", "PROBATION_FAILURES", "PROGRAMMING_ERRORS", "SUSPECT", "Breaker", "Verdict"]

MAX_RETRY_AFTER: Final = 600.0
"""Seconds. A run that waits for longer looks hung; whoever started it should know, and can continue it later."""

PROBATION_FAILURES: Final = 10
"""Few enough that little is paid for a typo; too many to be the first records of a good file."""

PROGRAMMING_ERRORS: Final = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)
"""``KeyError`` is not among them: it says as often that a record or an answer lacks a field as that the code misspells
one. A short file of bad records should end in dead letters; for a long one there is the failure rate."""

_REFUSED: Final = (401, 403)
_MESSAGE_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failed attempt means.

    Args:
        kind: ``"ordinary"``: the item's own trouble. ``"suspect"``: hold its dead letter back until the probation ends.
            ``"trip"``: stop the run, and let the record count as not done.
        reason: For ``"trip"``, what to tell the user; :meth:`Breaker.reason` knows more at the end of the run.
    """

    kind: Literal["ordinary", "suspect", "trip"]
    reason: str = ""

    @property
    def trips(self) -> bool:
        return self.kind == "trip"


ORDINARY: Final = Verdict("ordinary")
SUSPECT: Final = Verdict("suspect")


class Breaker:
    """Judges the failed attempts of one stage by the rules above. Pure: it stops nothing itself.

    Args:
        stage: The stage's name.
        max_retry_after: The longest wait a server may ask for, in seconds, > 0.

    Source: M. Nygard, "Release It!", 2007, section 5.2 (the circuit breaker); without its half-open state, since a
    stopped run is tried again by being continued.
    """

    __slots__ = ("_cause", "_counting", "_failures", "_max_retry_after", "_proven", "_same", "_stage")

    def __init__(self, stage: str, *, max_retry_after: float = MAX_RETRY_AFTER) -> None:
        assert max_retry_after > 0, "no wait at all would be allowed"
        self._stage = stage
        self._max_retry_after = max_retry_after
        self._proven = False
        self._failures: Counter[type[BaseException]] = Counter()
        # What tripped first, and how often that was seen in a row, the calls still in flight then included.
        self._cause = ""
        self._same = 0
        self._counting = True

    @property
    def on_probation(self) -> bool:
        """Whether the stage has had no success yet."""
        return not self._proven

    @property
    def tripped(self) -> bool:
        """Whether a failure has tripped it; that is final."""
        return bool(self._cause)

    def success(self) -> bool:
        """An attempt succeeded.

        Returns:
            Whether the probation ends with it: the suspects are ordinary failures now, unless it has tripped.
        """
        if self._cause:
            self._counting = False
        first = not self._proven
        self._proven = True
        return first

    def failure(
        self, error: BaseException, *, clean_input: bool, final: bool = True, wall_clock: float | None = None
    ) -> Verdict:
        """An attempt failed.

        Args:
            clean_input: Whether nothing the stage was called with was skipped or degraded: a stand-in of the wrong
                shape is no fault of this stage's code.
            final: Whether it was the item's last attempt. Others trip where that can be told from one, and are never
                suspects, so that attempts at one item don't count as items.
            wall_clock: Seconds since 1970, as for :func:`~stageflow.policies.http.retry_after`.
        """
        cause = self._sudden(error, wall_clock)
        if cause:
            return self._trip(cause)
        if self._proven or not final or not clean_input or not isinstance(error, PROGRAMMING_ERRORS):
            return ORDINARY
        kind = type(error)
        self._failures[kind] += 1
        if self._failures[kind] < PROBATION_FAILURES:
            return SUSPECT
        return self._trip(f"{kind.__name__} in every call", self._failures[kind])

    def reason(self) -> str | None:
        """Why it tripped, as known by now: ``stage generate: 401 from API (12 in a row)``. ``None``: it did not."""
        if not self._cause:
            return None
        count = f" ({self._same} in a row)" if self._same > 1 else ""
        return f"stage {self._stage}: {self._cause}{count}"

    def _trip(self, cause: str, count: int = 1) -> Verdict:
        if not self._cause:
            self._cause, self._same = cause, count
        elif self._counting and cause == self._cause:
            self._same += 1
        return Verdict("trip", self.reason() or "")

    def _sudden(self, error: BaseException, wall_clock: float | None) -> str:
        """What one failure is enough for."""
        status, code = status_of(error), quota_code(error)
        if code is not None:
            return f"{status or 'an error'} from API: {code}"
        if status in _REFUSED:
            return f"{status} from API"
        if not self._proven and is_unknown_host(error):
            return f"cannot resolve host {host_of(error) or ''}".rstrip()
        seconds = retry_after(error, wall_clock=wall_clock)
        if seconds is not None and seconds > self._max_retry_after:
            return f"server asked to wait {_duration(seconds)}"
        return ""


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{math.floor(seconds / size)} {unit}" if seconds < 1e12 else "for ever"
    return f"{seconds:.0f} s"
