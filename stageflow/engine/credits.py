"""Admission at the source: a bound on the records that are admitted and not yet settled, whatever the graph.

A join keeps its waiting items outside every channel, so channels alone do not bound a run. A credit is taken before a
record enters and given back when its outcome has been written.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Credits"]


class Credits:
    """``limit`` credits, handed out in the order in which they were asked for.

    Attributes:
        taken: Credits out now. ``peak``: the most that ever were.
        closed: No more are given: admission has ended.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.peak = 0
        self.closed = False
        self._waiting: deque[asyncio.Future[bool]] = deque()

    @property
    def there(self) -> int:
        """How many :meth:`take_at_once` could take."""
        return 0 if self._waiting or self.closed else self.limit - self.taken

    def take_at_once(self, count: int) -> None:
        """Take that many, which are there."""
        self.taken += count
        if self.taken > self.peak:
            self.peak = self.taken

    def try_take(self) -> bool:
        """Take a credit if one is there, nobody waits for it, and admission has not ended."""
        if self.taken >= self.limit or self._waiting or self.closed:
            return False
        self.taken += 1
        if self.taken > self.peak:
            self.peak = self.taken
        return True

    async def take(self) -> bool:
        """Wait for a credit. False where admission ended first. A cancelled wait holds none."""
        if self.try_take():
            return True
        if self.closed:
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled() and turn.result():
                self.give()  # it was handed over, and we do not use it
            raise

    def give(self, count: int = 1) -> None:
        """Give credits back. Who waits is handed one directly, so that nobody overtakes."""
        while count and self._waiting and self._hand_over(True):
            count -= 1
        self.taken -= count
        assert self.taken >= 0, "more credits were given back than taken"

    def close(self) -> None:
        """End admission: who waits, and whoever comes, gets none."""
        self.closed = True
        while self._hand_over(False):
            pass

    def _hand_over(self, credit: bool) -> bool:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(credit)
                return True
        return False
