"""The permits of a rate limit: who has to wait for one, and for how long, in the order of coming.

Also where several processes work under one limit: each has a share of it, which may change while calls wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from stageflow.policies.rate import RateLimit, TokenBucket, TokenEstimate

__all__ = ["Limiter", "limiters_of"]

_ROUNDING: Final = 1e-6
"""Tokens that may lack: times are rounded."""

_STILL: Final = 1.0
"""Seconds by which a timer is late where the process stood still, and was not just busy."""


class Limiter:
    """The permits of one :class:`RateLimit`, shared by all stages that name the same object.

    All of the limit, or a share of it that may change at any time: where several processes work under one limit, the
    shares of all of them are the whole.

    Attributes:
        turn: Held by the one call that waits for its permit; the others wait for their turn. If each slept until its
            own permit, all would start at once after a moment in which the process stood still.
        waiting: Calls that wait for either.
        adaptive: What a provider says of its own limits counts, too.
        limits_calls: Calls are limited, and not tokens alone.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float]) -> None:
        now = clock()
        self.clock = clock
        rate = limit.rate_per_second
        self._limit = limit
        self.adaptive, self.limits_calls = limit.adaptive, rate is not None
        self._calls = TokenBucket(rate, limit.burst_calls, now) if rate is not None else None
        tokens = limit.tokens_per_minute
        self._tokens_per_second = limit.tokens_per_second or 0.0
        self._tokens_size = max(1.0, self._tokens_per_second)
        self._tokens = TokenBucket(tokens / 60, self._tokens_size, now) if tokens is not None else None
        self._spilt = 0.0
        self._estimate = TokenEstimate(first=self._tokens_per_second)
        self._at_once = self._calls if self._tokens is None else None
        self._share = 1.0
        self._resting: asyncio.Future[bool] | None = None
        self._calls_used = 0.0
        self._tokens_used = 0.0
        self._asked = now
        self._waited = False
        self.turn = asyncio.Lock()
        self.waiting = 0

    async def permit(self) -> float:
        """Wait for a permit for one call, and for the tokens it will probably use; whoever calls has the turn.

        Tokens come first: a permit for a call is asked for when the call could be made, so that none is saved up.

        Returns:
            The tokens reserved. A cancelled wait holds nothing.
        """
        tokens = await self._take_tokens()
        calls = self._calls
        reserved = False
        try:
            while calls is not None:
                seconds = calls.reserve(self.clock()) if self._share else inf
                if seconds <= 0:
                    break
                due, share = self.clock() + seconds, self._share
                reserved = seconds < inf
                if await self._rest(seconds) and self.clock() - due < _STILL and share == self._share:
                    break
                # The share has changed, or the process stood still. The bucket has filled meanwhile, so that this call
                # has to be one of its burst.
                if reserved:
                    calls.give_back()
                    reserved = False
        except asyncio.CancelledError:
            if reserved and calls is not None:
                calls.give_back()
            self._return_tokens(tokens)
            raise
        self._calls_used += 1.0
        return tokens

    async def _rest(self, seconds: float) -> bool:
        """Sleep, unless :meth:`_wake` ends it.

        Returns:
            It was slept out.
        """
        loop = asyncio.get_running_loop()
        rest: asyncio.Future[bool] = loop.create_future()
        self._resting, self._waited = rest, True
        timer = loop.call_later(seconds, _end, rest, True) if seconds < inf else None
        try:
            return await rest
        finally:
            self._resting = None
            if timer is not None:
                timer.cancel()

    def permit_at_once(self) -> float | None:
        """Take a permit for one call, and the tokens it will probably use, if they are there and nobody waits.

        Returns:
            The tokens reserved; ``None``: nothing was taken.
        """
        now = self.clock()
        if self.waiting or not self._share:
            return None
        if self._calls is not None and self._calls.available(now) < 1.0 - _ROUNDING:
            return None
        if self._tokens is not None and self._lacking(now) > _ROUNDING:
            return None
        if self._calls is not None:
            self._calls.reserve(now)
        self._calls_used += 1.0
        return self._charge(now) if self._tokens is not None else 0.0

    def _wake(self) -> None:
        if self._resting is not None:
            _end(self._resting, False)

    async def _take_tokens(self) -> float:
        """Take as many as the next call will probably use, as soon as they, or a full bucket, are there.

        What exceeds the bucket is owed. Nothing is reserved ahead, so that tokens which a call did not need after all
        shorten this wait, also those that the bucket has no room for.
        """
        if self._tokens is None:
            return 0.0
        while (lacking := self._lacking(self.clock())) > _ROUNDING or not self._share:
            per_second = self._tokens_per_second * self._share
            await self._rest(lacking / per_second if per_second else inf)
        return self._charge(self.clock())

    def _lacking(self, now: float) -> float:
        """Tokens that are not there for the next call."""
        assert self._tokens is not None, "tokens without a limit"
        return min(self._estimate.value, self._tokens_size) - self._tokens.available(now) - self._spilt

    def _charge(self, now: float) -> float:
        """Take what the next call will probably use."""
        bucket, tokens = self._tokens, self._estimate.value
        assert bucket is not None, "tokens without a limit"
        there = bucket.available(now)
        charged = tokens - min(tokens, self._spilt)
        self._spilt = 0.0
        taken = max(0.0, min(charged, there))
        bucket.reserve(now, taken)
        bucket.settle(charged - taken)
        self._tokens_used += tokens
        return tokens

    def set_share(self, share: float) -> None:
        """Let this be so much of the limit from now on; whoever waits reckons anew, in the order of coming.

        Rates and bursts are that part of the whole ones, but a burst is at least one call. A bucket that is not used
        yet is full at its new size; later a share that grows does not fill it. With no share no call starts, nothing
        flows in, and what is there is given up; but for the beginnings of one call, if one waits: where processes take
        turns, and a turn is shorter than the time between two calls, none would ever start.

        Args:
            share: 0 to 1.
        """
        assert 0 <= share <= 1, "not a share"
        if share == self._share:
            return
        now, limit = self.clock(), self._limit
        self._share = share
        least = 1.0 if share or self.waiting else 0.0
        if self._calls is not None:
            self._calls.set_rate(now, (limit.rate_per_second or 0.0) * share, max(least, limit.burst_calls * share))
        if self._tokens is not None:
            self._tokens_size = max(least, self._tokens_per_second * share)
            self._tokens.set_rate(now, self._tokens_per_second * share, self._tokens_size)
        self._at_once = self._calls if share and self._tokens is None else None
        self._wake()

    def take_use(self) -> tuple[float, bool]:
        """What there was to do since this was last asked.

        Returns:
            The part of the whole limit that was used, of calls or of tokens, whichever is more; >= 0, and above 1 where
            a burst was. And whether calls waited.
        """
        now, waited = self.clock(), self._waited or self.waiting > 0
        seconds = now - self._asked
        if seconds <= 0:
            return 0.0, waited
        rates = (self._limit.rate_per_second, self._calls_used), (self._limit.tokens_per_second, self._tokens_used)
        used = max(amount / (rate * seconds) for rate, amount in rates if rate)
        self._calls_used = self._tokens_used = 0.0
        self._asked, self._waited = now, False
        return max(0.0, used), waited

    @property
    def share(self) -> float:
        """The part of the limit that this is."""
        return self._share

    @property
    def there(self) -> int:
        """How many calls may start at once; none where somebody waits, or where tokens are to be reserved for each."""
        if self.waiting or self._at_once is None:
            return 0
        return max(0, int(self._at_once.available(self.clock()) + _ROUNDING))

    def take_one(self) -> bool:
        """Take a permit for one call, if it is there and nobody waits."""
        if self.waiting or self._at_once is None or not self._at_once.take_now(self.clock()):
            return False
        self._calls_used += 1.0
        return True

    def take_at_once(self, count: int) -> None:
        """Take permits for so many calls, which are there."""
        assert self._calls is not None, "permits without a limit"
        self._calls.reserve(self.clock(), float(count))
        self._calls_used += count

    def give_back(self, tokens: float) -> None:
        """Return a permit whose time has come: the call is not made.

        While another call waits for its permit it is lost: that one keeps its time, and two would start at once.
        """
        self._return_tokens(tokens)
        self._calls_used -= 1.0
        if self._calls is not None and self._calls.available(self.clock()) >= 0:
            self._calls.give_back(1.0)

    def _return_tokens(self, tokens: float) -> None:
        if self._tokens is not None:
            self._tokens.settle(-tokens)
            self._tokens_used -= tokens

    def settle(self, reserved: float, used: int) -> None:
        """The call used ``used`` tokens where ``reserved`` were taken."""
        if self._tokens is not None:
            room = self._tokens_size - self._tokens.available(self.clock())
            self._tokens.settle(used - reserved)
            self._estimate.add(used)
            self._tokens_used += used - reserved
            if self.turn.locked():
                # Somebody waits: what the bucket is too small for is theirs, but no more than one call's worth.
                self._spilt = min(self._spilt + max(0.0, reserved - used - room), self._estimate.value)
                self._wake()


def _end(rest: asyncio.Future[bool], slept_out: bool) -> None:
    if not rest.done():
        rest.set_result(slept_out)


def limiters_of(limits: Mapping[str, RateLimit | None], clock: Callable[[], float]) -> dict[str, Limiter]:
    """A limiter for each stage that has a limit; stages that name one object share one limiter."""
    shared: dict[int, Limiter] = {}
    return {
        stage: shared.setdefault(id(limit), Limiter(limit, clock))
        for stage, limit in limits.items()
        if limit is not None
    }
