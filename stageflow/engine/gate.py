"""Leave to start a call: its permit, its money, and no pause, nor a slow start after one, in the way.

A worker waits here with its item in hand and outside any attempt: the wait is no part of the timeout nor of the service
time, and is counted by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from stageflow.engine.brakes import Brakes, Told
from stageflow.engine.limiter import Limiter

__all__ = ["Gate", "Money"]


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
