"""Whether a failed call is made again, and when."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stageflow.errors import ContextConflict, RecordError, ResultError, SettingError
from stageflow.policies.http import is_quota, status_of

__all__ = ["Retry", "RetryOn", "retry_of", "retryable_by_default"]

RetryOn = (
    type[BaseException] | tuple[type[BaseException], ...] | Mapping[type[BaseException], int] | Callable[[Any], bool]
)

_NEVER: Final = (
    # Programming errors: the same call fails the same way.
    TypeError,
    NameError,
    AttributeError,
    ImportError,
    NotImplementedError,
    # Once more would take as much again.
    MemoryError,
    # The record or its result is what is wrong; the call was paid for.
    RecordError,
    ResultError,
    ContextConflict,
)
_NO_BETTER: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
"""Statuses that say the request itself is refused."""

_SPREAD: Final = 0.1
"""After a ``Retry-After`` of r seconds calls start within a further r / 10, so that they don't all come at once."""


def retryable_by_default(error: BaseException) -> bool:
    """Whether another call could end better.

    True for every ``Exception`` but programming errors (``TypeError``, ``NameError``, ``AttributeError``,
    ``ImportError``, ``NotImplementedError``), ``MemoryError``, stageflow's own errors that mark the record or the
    result itself as bad, HTTP statuses that can't improve (400, 401, 403, 404, 405, 413, 415, 422), and a quota that is
    used up. A ``ValueError`` is retried: a service that answers with broken JSON may do better the next time. A group
    is retried if each of its errors is.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(retryable_by_default(inner) for inner in error.exceptions)
    if not isinstance(error, Exception) or isinstance(error, _NEVER):
        return False
    return status_of(error) not in _NO_BETTER and not is_quota(error)


@dataclass(frozen=True, slots=True)
class Retry:
    """For ``retry=``: how often a call is tried, which errors are tried again, and after what wait.

    The wait is exponential with full jitter: between 0 and ``min(cap, base * 2**(attempt - 1))`` seconds, all values
    alike, so that calls that failed together don't come back together. A ``Retry-After`` replaces it.

    Args:
        attempts: The most calls for one item, the first included; >= 1.
        base: The longest wait after the first attempt, in seconds, finite and >= 0. It doubles with each attempt.
        cap: The longest wait of all, in seconds, finite and >= ``base``.
        on: Which errors are tried again, in place of :func:`retryable_by_default`: a class or a tuple of classes; or a
            function of the error; or a mapping of class to attempts, which holds for errors of these classes (that of
            the class nearest to the error's own counts; 1 means never again) and leaves the others to the default rule
            and ``attempts``.

    Raises:
        SettingError: A number is out of range, or ``on`` is none of these.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
    """

    attempts: int
    base: float = 0.5
    cap: float = 60.0
    on: RetryOn | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not _is_count(self.attempts):
            raise SettingError(
                f"attempts must be a positive integer, the first one included, not {self.attempts!r}",
                hint="attempts=1 is no retry, attempts=3 is up to two more calls",
            )
        if not _is_time(self.base):
            raise SettingError(f"base must be seconds, 0 or more, not {self.base!r}")
        if not _is_time(self.cap) or self.cap < self.base:
            raise SettingError(f"cap must be seconds, at least base ({self.base:g}), not {self.cap!r}")
        _check_on(self.on)
        if isinstance(self.on, Mapping):
            object.__setattr__(self, "on", dict(self.on))  # the caller's may change

    def delay(self, attempt: int, uniform: float, retry_after: float | None = None) -> float:
        """How long to wait after a failed attempt.

        Args:
            attempt: The one that failed, from 1.
            uniform: A random number in [0, 1).
            retry_after: Seconds the server asked for, if it did.

        Returns:
            Seconds: with ``retry_after`` that or a little more, else from 0 to at most ``cap``.
        """
        assert attempt >= 1, "attempts count from 1"
        assert 0.0 <= uniform < 1.0, "not a random number in [0, 1)"
        if retry_after is not None:
            return retry_after + uniform * max(self.base, _SPREAD * retry_after)
        try:
            ceiling = min(self.cap, math.ldexp(self.base, attempt - 1))
        except OverflowError:
            ceiling = self.cap
        return uniform * ceiling

    def wants_another(self, error: BaseException, attempt: int) -> bool:
        """Whether attempt ``attempt`` (from 1), which failed with ``error``, is to be followed by one more."""
        if isinstance(self.on, Mapping):
            # The error's own order of resolution names its classes from the nearest to the farthest.
            rules = (self.on[kind] for kind in type(error).__mro__ if kind in self.on)
            allowed = next(rules, None)
            if allowed is not None:
                return attempt < allowed
        return attempt < self.attempts and self._accepts(error)

    def _accepts(self, error: BaseException) -> bool:
        if self.on is None or isinstance(self.on, Mapping):
            return retryable_by_default(error)
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        try:
            return bool(self.on(error))
        except Exception as problem:  # noqa: BLE001 - the job's function; its failure must not hide the item's
            error.add_note(f"the function given as retry on= raised {type(problem).__name__}; not tried again")
            return False


def retry_of(value: int | Retry | None) -> Retry | None:
    """The setting ``retry`` as a policy; a number is the attempts, the first included.

    Raises:
        SettingError: It is neither a policy nor a positive integer.
    """
    if value is None or isinstance(value, Retry):
        return value
    return Retry(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_error_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _check_on(on: Any) -> None:
    allowed = "an exception class, a tuple of them, a function of the error, or a mapping of class to attempts"
    if isinstance(on, Mapping):
        for kind, attempts in on.items():
            if not _is_error_class(kind) or not _is_count(attempts):
                raise SettingError(
                    f"on must map exception classes to positive numbers of attempts, not {kind!r} to {attempts!r}"
                )
        good = bool(on)
    elif isinstance(on, tuple):
        good = bool(on) and all(map(_is_error_class, on))
    elif isinstance(on, type):
        good = _is_error_class(on)
    else:
        good = on is None or callable(on)
    if not good:
        raise SettingError(f"on must be {allowed}, not {on!r}")
