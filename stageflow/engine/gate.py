"""Leave to start a call: the permits of a rate limit, the pause that a service asked for, and what follows from that.

A worker waits here with its item in hand and outside any attempt: the wait is no part of the timeout nor of the service
time, and is counted by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from stageflow.engine.brakes import Brakes, Told
from stageflow.policies.rate import RateLimit, TokenBucket, TokenEstimate

__all__ = ["Gate", "Limiter", "Money", "limiters_of"]

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


class Money(Protocol):
    """What sets money aside for the calls of a stage; see :class:`stageflow.engine.spending.Purse`."""

    def fits(self) -> bool: ...

    def take(self) -> bool: ...

    def give_back(self) -> None: ...

    async def wait(self) -> None: ...

    def wake(self, everybody: bool = False) -> None: ...


class Gate:
    """What a stage's calls pass before they start.

    Attributes:
        shut: A call has to wait here, or at least to ask.
        paused_until: By the stage's clock; a service said it should be left alone until then.
        barred: No call may start any more; whoever comes is not held up, but told so by this.
        limiter: The permits of the stage's limit, or ``None``.
        purse: Where the run has a budget, and the stage's calls cost money: that is set aside for each, else ``None``.
    """

    def __init__(self, limiter: Limiter | None, clock: Callable[[], float], purse: Money | None = None) -> None:
        self.shut = limiter is not None or purse is not None
        self.paused_until = 0.0
        self.barred = False
        self.limiter = limiter
        self.purse = purse
        self._clock = clock
        ramps = limiter is None or not limiter.limits_calls
        self._brakes = Brakes(clock, ramp=ramps, share=lambda: 1.0 if limiter is None else limiter.share)

    def pause(self, seconds: float) -> None:
        """Let no call start for so long, and a few at first afterwards."""
        self.paused_until = max(self.paused_until, self._clock() + seconds)
        self.shut = True
        self._brakes.refused(self.paused_until, seconds)

    def heed(self, told: Told) -> None:
        """Let no more calls start than the provider says remain; on whatever thread it was heard."""
        if self.limiter is None or self.limiter.adaptive:
            self._brakes.heed(told)
            self.shut = True

    def bar(self) -> None:
        """Let no call start any more."""
        self.shut = self.barred = True
        self._brakes.release()
        if self.purse is not None:
            self.purse.wake(everybody=True)

    async def wait(self) -> float:
        """Wait for leave to start one call.

        Returns:
            The tokens reserved for it. A cancelled wait holds no permit and no money, nor does one at a gate that is
            barred.
        """
        limiter, purse, brakes = self.limiter, self.purse, self._brakes
        while not self.barred:
            await self._pause()
            if brakes.on:
                await brakes.wait()
                self.shut = self._is_shut
                if self._closed:
                    continue
            if purse is not None and not purse.fits():
                await purse.wait()
                continue
            if limiter is None:
                if purse is None or (not self._closed and purse.take()):
                    if brakes.on:
                        brakes.take()
                    break
                continue
            limiter.waiting += 1
            try:
                async with limiter.turn:
                    if self._closed:
                        continue  # the turn is another stage's, too: a pause is not sat out with it
                    tokens = await limiter.permit()
            finally:
                limiter.waiting -= 1
            # Money comes last: it is set aside for calls that start, and not for those that wait for a permit.
            if not self._closed and brakes.fits and (purse is None or purse.take()):
                if brakes.on:
                    brakes.take()
                return tokens
            limiter.give_back(tokens)
        return 0.0

    @property
    def open_for(self) -> int:
        """How many calls may start at once, of a gate that is shut: permits for them are there, and nobody waits."""
        limiter = self.limiter
        if self.purse is not None or self._closed:
            return 0
        if not self._brakes.on:
            return 0 if limiter is None else limiter.there
        # Where the brakes have just come off, whoever waits finds that out.
        there = self._brakes.there()
        return min(there, limiter.there) if limiter is not None else there if self._brakes.on else 0

    def passed(self, calls: int) -> None:
        """So many calls have started at once."""
        if self.limiter is not None and calls:
            self.limiter.take_at_once(calls)
        if self._brakes.on and calls:
            self._brakes.take(calls)

    def pass_at_once(self) -> bool:
        """Take leave to start one call, if nobody has to wait for it; no tokens are reserved."""
        if self.limiter is not None and not (self._brakes.on or self.purse is not None or self._closed):
            return self.limiter.take_one()
        if not self.open_for:
            return False
        self.passed(1)
        return True

    def enter_at_once(self) -> float | None:
        """Take leave to start one call, with the tokens and the money for it, if nobody has to wait for any of that.

        Returns:
            The tokens reserved; ``None``: nothing was taken.
        """
        if self._closed or (self.purse is not None and not self.purse.fits()):
            return None
        if self._brakes.on and not self._brakes.there():
            return None
        tokens = self.limiter.permit_at_once() if self.limiter is not None else 0.0
        if tokens is not None and self.purse is not None:
            taken = self.purse.take()
            assert taken, "money that was there is not"
        if tokens is not None and self._brakes.on:
            self._brakes.take()
        return tokens

    @property
    def _closed(self) -> bool:
        return self.barred or self.paused_until > self._clock()

    @property
    def _is_shut(self) -> bool:
        return self.limiter is not None or self.purse is not None or self._closed or self._brakes.on

    async def _pause(self) -> None:
        while (seconds := self.paused_until - self._clock()) > 0:  # noqa: ASYNC110 - it may grow while we wait
            await asyncio.sleep(seconds)
        self.shut = self._is_shut

    def give_back(self, tokens: float) -> None:
        """The call that had leave to start is not made."""
        if self.purse is not None:
            self.purse.give_back()
        if self.limiter is not None and not self.barred:
            self.limiter.give_back(tokens)
        if self._brakes.on:
            self._brakes.give_back()

    def settle(self, reserved: float, used: int) -> None:
        """A call has told what it used."""
        if self._brakes.on:
            self._brakes.settle(used)
        if self.limiter is not None:
            self.limiter.settle(reserved, used)
