"""Results that were paid for before: looked for before a call, and kept after it.

* A result is found again by what decided it: a digest of the stage's source and of all that it can see of the job, and
  the values the handler is called with. See :func:`stageflow.fingerprint.cache_digests`.
* An item whose result is found goes on without a call: it takes no permit of a rate limit and no money, and neither the
  breaker nor the times of the stage hear of it. It is looked for once, before the first attempt.
* What a call returned is kept before its item goes on, so that whatever has settled is in the cache. Failures are not
  kept, nor what stands in for them.
* Only values that JSON gives back as they were are kept, and only for arguments of that kind. For others the handler is
  called each time, and that is told once.
* Two items with the same arguments that are on their way at once are both called for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

from stageflow.engine.attempt import SKIPPED, Attempts, asked_for
from stageflow.engine.gate import Gate, Money
from stageflow.engine.limiter import Limiter
from stageflow.engine.worker import Worker
from stageflow.item import Exit, Item
from stageflow.plain import is_plain
from stageflow.stage import Stage

if TYPE_CHECKING:
    from stageflow.engine.pool import Pool

__all__ = ["MISSING", "AskingGate", "Cache", "CachedCalls", "CachingWorker", "Results"]

MISSING: Final = Exit("wait")
"""There is no result: the handler is to be called."""


class Results(Protocol):
    """Where results are kept, by key; see :class:`stageflow.cache.ResultCache`."""

    async def find(self, key: bytes) -> bytes | None: ...

    async def keep(self, key: bytes, stage: str, value: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Cache:
    """The results of a run's stages.

    Args:
        digests: By stage, where it has a cache: of all that decides a result beside the handler's own arguments.
    """

    results: Results
    digests: Mapping[str, str]


class CachedCalls:
    """The calls of one stage that need not be made.

    Args:
        given: The values a handler is called with for an item, by name.
        warn: Told once of values that can't be kept.
    """

    def __init__(
        self,
        stage: Stage,
        cache: Cache,
        attempts: Attempts,
        given: Callable[[Item], dict[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._digest = cache.digests[stage.name].encode()
        self._results = cache.results
        self._attempts = attempts
        self._given = given
        self._warn = warn
        self._told = False

    def key(self, item: Item) -> bytes | None:
        """The key of the item's call; ``None`` where it can't have one."""
        try:
            given = self._given(item)
        except (KeyError, TypeError, AttributeError):
            return None  # a field is missing, which the call will say better
        if not is_plain(given):
            strange = next((name for name, value in given.items() if not is_plain(value)), "values")
            self._tell(f'is called with "{strange}"')
            return None
        text = json.dumps(given, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(self._digest + b"\0" + text.encode()).digest()

    async def find(self, item: Item, key: bytes) -> Any:
        """What a call would give, as the handler returned it; :data:`MISSING` where that is not known."""
        if (wanted := await self._is_wanted(item)) is not True:
            return MISSING if wanted is None else SKIPPED
        found = await self._results.find(key)
        if found is None:
            return MISSING
        try:
            kind, value = json.loads(found)
        except ValueError:  # it has rotted on the disk
            return MISSING
        return value if kind == "ok" else Exit(kind, value)

    async def _is_wanted(self, item: Item) -> bool | None:
        """What ``when`` says; ``None`` where it fails, which the attempt will meet with, too."""
        if self._stage.when is None:
            return True
        try:
            async with asyncio.timeout(self._stage.timeout):
                return await self._attempts.wanted(item)
        except BaseException as error:  # the job's own code
            if asked_for(error):
                raise
            return None

    def worth(self, item: Item, value: Any) -> bytes | None:
        """What is to be kept of a call that gave ``value``; ``None`` where nothing is."""
        kind, kept = (value.kind, value.value) if value.__class__ is Exit else ("ok", value)
        if kind not in ("ok", "done", "drop") or (item.notes is not None and self._stage.name in item.notes):
            return None  # it failed, and something may stand in for it
        if not is_plain(kept):
            self._tell("returns a value")
            return None
        return json.dumps([kind, kept], separators=(",", ":"), ensure_ascii=False).encode()

    async def keep(self, key: bytes, value: bytes) -> None:
        """Keep what is worth it, and return when that is safe."""
        await self._results.keep(key, self._stage.name, value)

    def _tell(self, does: str) -> None:
        if not self._told:
            self._told = True
            self._warn(
                f'stage "{self._stage.name}" {does} that is no plain JSON: such calls are made each time, '
                "whatever its cache holds"
            )


class AskingGate(Gate):
    """A gate at which each call asks for leave, also where nothing would hold it up: before that its result is sought.

    Nothing of this is asked of the gates of other stages.
    """

    def __init__(self, limiter: Limiter | None, clock: Callable[[], float], purse: Money | None = None) -> None:
        super().__init__(limiter, clock, purse)
        self.shut = True

    def pass_at_once(self) -> bool:
        """Take leave to start one call, if nobody has to wait for it."""
        if self.limiter is None and self.purse is None and not self._brakes.on:
            return not self._closed
        return super().pass_at_once()

    @property
    def _is_shut(self) -> bool:
        return True


class CachingWorker(Worker):
    """A worker that looks for the result of a call before it asks for leave to make it.

    Attributes:
        key: Of the item in hand, where its result can be kept.
    """

    __slots__ = ("_cached", "key")

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        assert pool.cached is not None, "a caching worker in a stage without a cache"
        self._cached = pool.cached
        self.key: bytes | None = None

    async def may_begin(self, item: Item) -> bool:
        """Find the item's result, or wait for leave to call for it. False where the item has gone on or has left."""
        self.key = None if item.closed else self._cached.key(item)
        if self.key is not None and item.attempt(self.pool.stage.name) == 1:
            value = await self._find(item, self.key)
            if value is not MISSING and not item.closed:
                await self._go_on(item, value)
                return False
        return super().passes(item) or await super().may_begin(item)

    def passes(self, item: Item) -> bool:
        """Never before the item's result was sought."""
        return False

    async def _find(self, item: Item, key: bytes) -> Any:
        try:
            return await self._cached.find(item, key)
        except asyncio.CancelledError:
            self.pool.counters.cancelled += 1
            raise

    async def _go_on(self, item: Item, value: Any) -> None:
        """The item goes on with what was found, as it would after a call; but no call is counted."""
        pool, counters = self.pool, self.pool.counters
        counters.cached += value is not SKIPPED
        if value.__class__ is Exit:
            await pool.depart(item, value)
        elif pool.only is None:
            await pool.conclude(item, value)
        else:
            counters.passed += 1
            item.results[pool.stage.name] = value
            if not pool.only.try_send(item):
                pool.lodging.add(item, pool.only, pool.clock())

    def _conclude(self, item: Item, value: Any, seconds: float, now: float) -> Awaitable[None] | None:
        """A call has ended: keep what it gave before the item goes on."""
        kept = self._cached.worth(item, value) if self.key is not None else None
        if kept is None:
            return super()._conclude(item, value, seconds, now)
        return self._keep(item, value, seconds, kept)

    async def _keep(self, item: Item, value: Any, seconds: float, kept: bytes) -> None:
        self.since = inf  # what follows is no part of the call, nor of its timeout
        self.forgive()
        assert self.key is not None, "something to keep, and no key"
        try:
            await self._cached.keep(self.key, kept)
        except asyncio.CancelledError:
            self.pool.counters.cancelled += 1
            raise
        if (parting := super()._conclude(item, value, seconds, self.pool.clock())) is not None:
            await parting
