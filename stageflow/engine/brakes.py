"""What holds a stage's calls back that nobody declared: what its provider says, and how it was refused before.

* What a provider says of its limits with an answer (:mod:`stageflow.policies.remaining`) only ever tightens: a limit
  that was declared holds as well.
* After a pause that a service asked for, calls start in a ramp (:mod:`stageflow.policies.ramp`), where the stage has no
  limit of calls that says how fast they may.

Neither costs anything before the first answer that says something, and before the first pause.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from stageflow.policies.ramp import Ramp
from stageflow.policies.rate import TokenEstimate
from stageflow.policies.remaining import Remaining

__all__ = ["Brakes", "Told"]

_SCOPES: Final = 16
"""Limits of so many models are kept apart for one stage; what was told of first is forgotten."""
_MANY: Final = 1 << 30


class Told(Protocol):
    """What a provider said with one answer; see :class:`stageflow.llm.limits.ProviderLimit`."""

    @property
    def began(self) -> float: ...
    @property
    def scope(self) -> str: ...
    @property
    def requests_remaining(self) -> float | None: ...
    @property
    def requests_reset(self) -> float | None: ...
    @property
    def requests_limit(self) -> float | None: ...
    @property
    def tokens_remaining(self) -> float | None: ...
    @property
    def tokens_reset(self) -> float | None: ...
    @property
    def tokens_limit(self) -> float | None: ...


class Brakes:
    """The brakes of one stage.

    Args:
        share: The part of the declared limit that is this process's.

    Attributes:
        on: Calls have to ask here.
        ramp: ``None`` where the declared limit says how fast calls start after a pause.
    """

    def __init__(self, clock: Callable[[], float], *, ramp: bool, share: Callable[[], float] = lambda: 1.0) -> None:
        self.on = False
        self.ramp = Ramp() if ramp else None
        self._clock = clock
        self._share = share
        self._said: deque[Told] = deque()
        self._calls: dict[str, Remaining] = {}
        self._tokens: dict[str, Remaining] = {}
        self._estimate = TokenEstimate()
        self._line = asyncio.Lock()
        self._resting: asyncio.Future[None] | None = None
        self._released = False

    # What is heard

    def refused(self, until: float, seconds: float) -> None:
        """A call was refused by an answer that asked for a pause, which ends then."""
        if self.ramp is not None:
            self.ramp.refused(until, seconds)
            self.on = True
            self._wake()

    def heed(self, told: Told) -> None:
        """The provider has said something, on whatever thread; where that is not the loop's, it is read later."""
        self._said.append(told)
        self.on = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self._wake()

    def settle(self, used: float) -> None:
        """A call used so many tokens."""
        self._estimate.add(used)

    def release(self) -> None:
        """Hold nobody back any more."""
        self._released = True
        self._wake()

    # What follows

    def there(self) -> int:
        """How many calls may start now; none while another waits."""
        return 0 if self._line.locked() else self._there(self._clock())

    async def wait(self) -> None:
        """Wait until a call may start. One after the other: who comes first is first."""
        async with self._line:
            while not self._released and (seconds := self._seconds()) > 0:
                await self._rest(seconds)

    @property
    def fits(self) -> bool:
        """Whether a call may start now."""
        return not self.on or self._there(self._clock()) > 0

    def take(self, count: int = 1) -> None:
        """So many calls start."""
        if self.ramp is not None:
            self.ramp.take(count)
        now = self._clock()
        for quota in self._calls.values():
            for _ in range(count):
                quota.take(now)
        for quota in self._tokens.values():
            for _ in range(count):
                quota.take(now, self._estimate.value)

    def give_back(self) -> None:
        """A call that was to start is not made."""
        if self.ramp is not None:
            self.ramp.take(-1)
        for quota in (*self._calls.values(), *self._tokens.values()):
            quota.give_back()

    def _there(self, now: float) -> int:
        self._read(now)
        room: float = _MANY
        if self.ramp is not None and self.ramp.on:
            room = self.ramp.there(now) if self.ramp.wait(now) <= 0 else 0
        self.on = bool(self._calls or self._tokens or (self.ramp is not None and self.ramp.on))
        for quota, amount in self._quotas():
            room = min(room, quota.there(now, amount) / max(quota.fitting(amount), 1e-9))
        return max(0, int(room + 1e-9)) if self.on else _MANY

    def _seconds(self) -> float:
        """How long until a call may start, if nothing newer is heard."""
        now = self._clock()
        if self._there(now) > 0:
            return 0.0
        ramp = self.ramp.wait(now) if self.ramp is not None and self.ramp.on else 0.0
        return max(ramp, *(quota.wait(now, amount) for quota, amount in self._quotas()), 1e-6)

    def _quotas(self) -> list[tuple[Remaining, float]]:
        """Each quota with what a call takes of it."""
        tokens = self._estimate.value
        return [(quota, 1.0) for quota in self._calls.values()] + [
            (quota, tokens) for quota in self._tokens.values() if tokens
        ]

    def _read(self, now: float) -> None:
        """Take in what was said."""
        share = self._share()
        while self._said:
            told = self._said.popleft()
            for quotas, left, reset, limit in (
                (self._calls, told.requests_remaining, told.requests_reset, told.requests_limit),
                (self._tokens, told.tokens_remaining, told.tokens_reset, told.tokens_limit),
            ):
                if left is not None and reset is not None:
                    quota = quotas.get(told.scope) or quotas.setdefault(told.scope, Remaining())
                    quota.heed(now, began=told.began, remaining=left, reset=reset, limit=limit)
                    if len(quotas) > _SCOPES:
                        del quotas[next(iter(quotas))]
        for quota in (*self._calls.values(), *self._tokens.values()):
            quota.share = share

    async def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        rest: asyncio.Future[None] = loop.create_future()
        self._resting = rest
        timer = loop.call_later(seconds, _end, rest) if seconds < inf else None
        try:
            await rest
        finally:
            self._resting = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._resting is not None:
            _end(self._resting)


def _end(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)
