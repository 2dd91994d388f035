"""Finished items that find no room below.

A worker whose item does not fit does not wait with it: it leaves the item in the line before the channel below, and
goes on. To the line that item is a sender like any other. Here is kept how many there are, and for how long; the pool
sees to it that there are never more of them and of busy workers together than the stage has workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from stageflow.channel import Channel
from stageflow.counters import StageCounters
from stageflow.item import Item

__all__ = ["Lodging"]


class Lodging:
    """The items of one stage that stand in the line before the channel below; to that line a turn for each of them.

    Args:
        own: The channel of the stage itself.
        freed: Called when one of them has been let in, and nobody is on the way to look at that channel.

    Attributes:
        since: When each of them came, in the order in which they will be let in.
    """

    def __init__(
        self, own: Channel, counters: StageCounters, clock: Callable[[], float], freed: Callable[[], None]
    ) -> None:
        self.since: deque[float] = deque()
        self._own = own
        self._counters = counters
        self._clock = clock
        self._freed = freed

    def add(self, item: Item, channel: Channel, now: float) -> None:
        """Leave an item in the line of a full channel."""
        self.since.append(now)
        channel.line.append((item, self))

    def done(self) -> bool:
        """Whether it has left the line: none does."""
        return False

    def set_result(self, result: None) -> None:
        """The first of them was let in."""
        self._counters.blocked_seconds += self._clock() - self.since.popleft()
        if not self._own.attended:
            self._freed()

    def close(self) -> None:
        """The run is over: none of them will be let in any more."""
        self._counters.blocked_seconds += len(self.since) * self._clock() - sum(self.since)
        self.since.clear()
