"""Leave to start a call: the permits of a rate limit, and the pause that a service asked for.

A worker waits here with its item in hand and outside any attempt: the wait is no part of the timeout nor of the service
time, and is counted by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from stageflow.policies.rate import RateLimit, TokenBucket, TokenEstimate

__all__ = ["Gate", "Limiter", "limiters_of"]

_ROUNDING: Final = 1e-6
"""Tokens that may lack: times are rounded."""

_STILL: Final = 1.0
"""Seconds by which a timer is late where the process stood still, and was not just busy."""


class Limiter:
    """The permits of one :class:`RateLimit`, shared by all stages that name the same object.

    Attributes:
        turn: Held by the one call that waits for its permit; the others wait for their turn. If each slept until its
            own permit, all would start at once after a moment in which the process stood still.
        waiting: Calls that wait for either.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float]) -> None:
        now = clock()
        self.clock = clock
        rate = limit.rate_per_second
        self._calls = TokenBucket(rate, limit.burst_calls, now) if rate is not None else None
        tokens = limit.tokens_per_minute
        self._tokens_per_second = limit.tokens_per_second or 0.0
        self._tokens_size = max(1.0, self._tokens_per_second)
        self._tokens = TokenBucket(tokens / 60, self._tokens_size, now) if tokens is not None else None
        self._spilt = 0.0
        self._estimate = TokenEstimate(first=self._tokens_per_second)
        self._returned = asyncio.Event()
        self.turn = asyncio.Lock()
        self.waiting = 0

    async def permit(self) -> float:
        """Wait for a permit for one call, and for the tokens it will probably use; whoever calls has the turn.

        Tokens come first: a permit for a call is asked for when the call could be made, so that none is saved up.

        Returns:
            The tokens reserved. A cancelled wait holds nothing.
        """
        tokens = await self._take_tokens()
        while self._calls is not None and (seconds := self._calls.reserve(self.clock())) > 0:
            due = self.clock() + seconds
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self._calls.give_back()
                self._return_tokens(tokens)
                raise
            if self.clock() - due < _STILL:
                break
            # The process stood still. The bucket has filled meanwhile, so that this call has to be one of its burst.
            self._calls.give_back()
        return tokens

    async def _take_tokens(self) -> float:
        """Take as many as the next call will probably use, as soon as they, or a full bucket, are there.

        What exceeds the bucket is owed. Nothing is reserved ahead, so that tokens which a call did not need after all
        shorten this wait, also those that the bucket has no room for.
        """
        bucket = self._tokens
        if bucket is None:
            return 0.0
        while True:
            now, tokens = self.clock(), self._estimate.value
            there = bucket.available(now)
            lacking = min(tokens, self._tokens_size) - there - self._spilt
            if lacking <= _ROUNDING:
                break
            self._returned.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lacking / self._tokens_per_second):
                    await self._returned.wait()
        charged = tokens - min(tokens, self._spilt)
        self._spilt = 0.0
        taken = max(0.0, min(charged, there))
        bucket.reserve(now, taken)
        bucket.settle(charged - taken)
        return tokens

    @property
    def there(self) -> int:
        """How many calls may start at once; none where somebody waits, or where tokens are to be reserved for each."""
        if self.waiting or self._calls is None or self._tokens is not None:
            return 0
        return max(0, int(self._calls.available(self.clock()) + _ROUNDING))

    def take_at_once(self, count: int) -> None:
        """Take permits for so many calls, which are there."""
        assert self._calls is not None, "permits without a limit"
        self._calls.reserve(self.clock(), float(count))

    def give_back(self, tokens: float) -> None:
        """Return a permit whose time has come: the call is not made.

        While another call waits for its permit it is lost: that one keeps its time, and two would start at once.
        """
        self._return_tokens(tokens)
        if self._calls is not None and self._calls.available(self.clock()) >= 0:
            self._calls.give_back(1.0)

    def _return_tokens(self, tokens: float) -> None:
        if self._tokens is not None:
            self._tokens.settle(-tokens)

    def settle(self, reserved: float, used: int) -> None:
        """The call used ``used`` tokens where ``reserved`` were taken."""
        if self._tokens is not None:
            room = self._tokens_size - self._tokens.available(self.clock())
            self._tokens.settle(used - reserved)
            self._estimate.add(used)
            if self.turn.locked():
                # Somebody waits: what the bucket is too small for is theirs, but no more than one call's worth.
                self._spilt = min(self._spilt + max(0.0, reserved - used - room), self._estimate.value)
                self._returned.set()


def limiters_of(limits: Mapping[str, RateLimit | None], clock: Callable[[], float]) -> dict[str, Limiter]:
    """A limiter for each stage that has a limit; stages that name one object share one limiter."""
    shared: dict[int, Limiter] = {}
    return {
        stage: shared.setdefault(id(limit), Limiter(limit, clock))
        for stage, limit in limits.items()
        if limit is not None
    }


class Gate:
    """What a stage's calls pass before they start.

    Attributes:
        shut: A call has to wait here, or at least to ask.
        paused_until: By the stage's clock; a service said it should be left alone until then.
        barred: No call may start any more; whoever comes is not held up, but told so by this.
    """

    def __init__(self, limiter: Limiter | None, clock: Callable[[], float]) -> None:
        self.shut = limiter is not None
        self.paused_until = 0.0
        self.barred = False
        self._limiter = limiter
        self._clock = clock

    def pause(self, seconds: float) -> None:
        """Let no call start for so long."""
        self.paused_until = max(self.paused_until, self._clock() + seconds)
        self.shut = True

    def bar(self) -> None:
        """Let no call start any more."""
        self.shut = self.barred = True

    async def wait(self) -> float:
        """Wait for leave to start one call.

        Returns:
            The tokens reserved for it. A cancelled wait holds no permit.
        """
        limiter = self._limiter
        while not self.barred:
            await self._pause()
            if limiter is None:
                break
            limiter.waiting += 1
            try:
                async with limiter.turn:
                    if self._closed:
                        continue  # the turn is another stage's, too: a pause is not sat out with it
                    tokens = await limiter.permit()
            finally:
                limiter.waiting -= 1
            if not self._closed:
                return tokens
            limiter.give_back(tokens)
        return 0.0

    @property
    def open_for(self) -> int:
        """How many calls may start at once, of a gate that is shut: permits for them are there, and nobody waits."""
        return 0 if self._limiter is None or self._closed else self._limiter.there

    def passed(self, calls: int) -> None:
        """So many calls have started at once."""
        if self._limiter is not None and calls:
            self._limiter.take_at_once(calls)

    def pass_at_once(self) -> bool:
        """Take leave to start one call, if nobody has to wait for it; no tokens are reserved."""
        if not self.open_for:
            return False
        self.passed(1)
        return True

    @property
    def _closed(self) -> bool:
        return self.barred or self.paused_until > self._clock()

    async def _pause(self) -> None:
        while (seconds := self.paused_until - self._clock()) > 0:  # noqa: ASYNC110 - it may grow while we wait
            await asyncio.sleep(seconds)
        self.shut = self._limiter is not None or self.barred

    def give_back(self, tokens: float) -> None:
        """The call that had leave to start is not made."""
        if self._limiter is not None and not self.barred:
            self._limiter.give_back(tokens)

    def settle(self, reserved: float, used: int) -> None:
        """A call has told what it used."""
        if self._limiter is not None:
            self._limiter.settle(reserved, used)
