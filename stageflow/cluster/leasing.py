"""A replica's side of its talk with the coordinator: leases in, commits out, and its shares of the rate limits."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from stageflow.cluster.messages import Orders, Report, ShardCommit, ShardLease
from stageflow.engine.limiter import Limiter
from stageflow.events import Event
from stageflow.replicas.granted import GrantedShares
from stageflow.replicas.messages import Asked, Beat, Stopped

__all__ = ["Leases"]

_AHEAD_SECONDS: Final = 10.0
"""Work that is asked for ahead of its time: so the coordinator hears of each replica seldom, however quick it is."""

_MOST_AHEAD: Final = 64
_IN_A_BEAT: Final = 50
"""Reports in a beat, at most, of one who has enough to do."""

_MOST_TOLD: Final = 100
"""Events that wait for a report; where every record fails, nobody reads of more."""

_AGAIN: Final = 5
"""A part of a beat after which a replica that was given less than it could take asks again."""


class Leases:
    """Asks for leases and reports what became of them, until there are no more; see :class:`~.reading.Desk`.

    Args:
        who: The replica's name.
        ask: Brings a report to the coordinator and its answer back, however long that takes.
        beat: How the replica stands.
        dropped: Told of shards that are no longer its own.
        ordered: Told of each answer.
    """

    def __init__(
        self,
        who: str,
        ask: Callable[[Report], Awaitable[Orders]],
        *,
        beat_seconds: float,
        beat: Callable[[], Beat | None],
        dropped: Callable[[int], None],
        ordered: Callable[[Orders], None],
    ) -> None:
        self._who = who
        self._ask = ask
        self._beat_seconds = beat_seconds
        self._pause = beat_seconds / _IN_A_BEAT
        self._beat = beat
        self._dropped = dropped
        self._ordered = ordered
        self._held: dict[int, int] = {}
        self._given: deque[ShardLease] = deque()
        self._found: list[ShardCommit] = []
        self._told: list[Event] = []
        self._stopped: Stopped | None = None
        self._at: tuple[int, int] | None = None
        self._known: asyncio.Future[None] | None = None
        self._limiters: Mapping[str, Limiter] = {}
        self._shares: GrantedShares | None = None
        self._news = asyncio.Event()
        self._arrived = asyncio.Event()
        self._last_look = time.monotonic()
        self._shard_seconds = _AHEAD_SECONDS
        self._lifetime = math.inf
        self._short = False
        self._leaving = False
        self.ended = False

    def limit(self, limiters: Mapping[str, Limiter]) -> None:
        """These limits hold for all replicas together: nothing is let through before there is a share."""
        self._limiters, self._shares = limiters, GrantedShares(limiters)
        self._shares.nothing()

    # As the source has it

    async def next(self) -> ShardLease | None:
        """The next lease; ``None``: there will be no more."""
        now = time.monotonic()
        self._shard_seconds += (min(now - self._last_look, _AHEAD_SECONDS) - self._shard_seconds) / 2
        while not self._given and not self.ended:
            self._arrived.clear()
            self._ask_for_more()
            await self._arrived.wait()
        self._last_look = time.monotonic()
        self._at = None  # whatever was to be done with care has settled
        if not self._given:
            return None
        lease = self._given.popleft()
        self._ask_for_more()
        return lease

    def coming(self) -> ShardLease | None:
        """What :meth:`next` would give at once."""
        return self._given[0] if self._given else None

    async def about_to_run(self, number: int, place: int) -> None:
        """A record that may kill this process is about to be run: return when the coordinator knows."""
        self._at, self._known = (number, place), asyncio.get_running_loop().create_future()
        self._news.set()
        await self._known

    def _ask_for_more(self) -> None:
        """At once, unless there was less than it could take: then with what else there is to say."""
        if self._asks() > 0 and not self._short:
            self._news.set()

    def _asks(self) -> int:
        """As many as keep it busy until its next look, and one at least is always at hand."""
        ahead = min(_MOST_AHEAD, math.ceil(_AHEAD_SECONDS / max(self._shard_seconds, 0.01)))
        return 0 if self.ended else max(0, ahead - len(self._given))

    # As the run has it

    def committed(self, commit: ShardCommit) -> None:
        """A shard of ours was found committed."""
        self._held.pop(commit.number, None)
        self._found.append(commit)
        self._news.set()

    def tell(self, event: Event) -> None:
        """The user should hear of it, unless there is much of the kind."""
        if len(self._told) < _MOST_TOLD:
            self._told.append(event)

    def stop(self, why: Stopped) -> None:
        """Something here stops the whole run."""
        self._stopped = why
        self._news.set()

    def end(self) -> None:
        """Take no more leases; give back those that were not begun."""
        self.ended = True
        for lease in self._given:
            self._held.pop(lease.number, None)
        self._given.clear()
        self._arrived.set()

    # Its talk

    async def run(self) -> None:
        """Report whenever there is news, and with each beat, until it is to leave."""
        while not self._leaving:
            self._news.clear()
            await self.report()
            wait = self._beat_seconds
            if self._asks() > 0:
                wait /= _AGAIN
            if self._limiters:
                wait = min(wait, self._lifetime / 3)
            try:
                async with asyncio.timeout(wait):
                    await self._heard_of_news()
            except TimeoutError:
                pass

    async def fall_silent(self, talk: asyncio.Task[None]) -> None:
        """End :meth:`run`, whose task this is; there may be one more thing to report."""
        self.end()
        self._leaving = True
        self._news.set()
        await talk

    async def _heard_of_news(self) -> None:
        await self._news.wait()
        # What else is news by then goes into the same report. But who has nothing to do is in a hurry.
        hurried = self._leaving or self._known is not None or not (self._given or self._short)
        await asyncio.sleep(0 if hurried else self._pause)

    async def report(self, *, leaving: bool = False) -> None:
        """Report once, and do what the answer says."""
        found, self._found = self._found, []
        told, self._told = self._told, []
        at, known = self._at, self._known
        sent = time.monotonic()
        asks = 0 if leaving else self._asks()
        orders = await self._ask(
            Report(
                who=self._who,
                at=sent,
                held=dict(self._held),
                asks=asks,
                committed=tuple(found),
                beat=self._beat(),
                limits={name: Asked(*limiter.take_use()) for name, limiter in self._limiters.items()} or None,
                at_record=at,
                told=tuple(told),
                stopped=self._stopped,
                leaving=leaving,
            )
        )
        if known is not None and known is self._known and not known.done():
            known.set_result(None)
            self._known = None
        self._short = len(orders.leases) < asks
        self._obey(orders)

    def _obey(self, orders: Orders) -> None:
        for number in orders.drop:
            if self._held.pop(number, None) is not None:
                self._given = deque(lease for lease in self._given if lease.number != number)
                self._dropped(number)
        if not self.ended:
            for lease in orders.leases:
                self._held[lease.number] = lease.attempt
                self._given.append(lease)
        if orders.granted is not None and self._shares is not None:
            self._lifetime = orders.granted.seconds
            self._shares.take(orders.granted)
        if orders.finished or orders.stop or orders.cancel:
            self.end()
        self._ordered(orders)
        self._arrived.set()
