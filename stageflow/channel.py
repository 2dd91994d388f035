"""The channel in front of a stage: a bounded hand-over that can be closed.

The rules:

* A channel is an ``asyncio.Queue(maxsize=queue_size)``. Whoever sends into a full one waits: that is the
  backpressure, and there is no other.
* Senders that wait stand in line, and whoever takes an item lets the first of them in. (``Queue.put`` wakes a sender,
  which by the time it runs may find its room taken, and goes to the end of the line: under load an item was overtaken
  by thousands.) So while somebody waits the channel is full, and items leave in the order in which they were sent.
* A sender need not wait itself: it may leave its item in the line, and be told when that has been let in.
* Receivers without work are *parked*. An item wakes one of them, and no second one before that has come to look: the
  channel is *attended*. Whoever takes an item and leaves others behind wakes the next, or several, where each item will
  hold up its receiver for long. So sixty-four items cost two wake-ups where the first receiver deals with all of them,
  and sixty-four where each makes its receiver wait.
* A channel knows how many senders it has: the stages upstream, or the source. The last sender to close puts one end
  marker behind the last item.
* A receiver that meets the marker puts it back and leaves, so one marker ends any number of receivers, and their
  number may change while the channel is in use.
* Nothing is sent after the last close, so the room for the marker that is put back is always there.
* Whoever deals with several items without leaving its turn of the loop may take and put them all at once. Until it has
  taken those it began, nobody is let in; nobody else runs meanwhile, so nobody sees a bound passed.

Source: the hand-over among receivers is Leader/Followers (D. C. Schmidt, C. O'Ryan et al., "Leader/Followers", 2000).
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from itertools import islice
from typing import Any, Final, Protocol

from stageflow.item import Item

__all__ = ["END", "Channel", "End"]


class End(Enum):
    """The marker behind the last item of a channel. An enum of one, so that ``item is END`` narrows the type."""

    END = "end"


END: Final = End.END


class Turn(Protocol):
    """How a sender in line learns that its item has been let in: as a future does."""

    def done(self) -> bool:
        """It has left."""
        ...

    def set_result(self, result: None, /) -> None: ...


Place = tuple[Item | End, asyncio.Future[None]]
"""Of a sender that waits in line: what it sends, and what it waits for."""


class Channel(asyncio.Queue[Item | End]):
    """The bounded queue between the senders of items and the workers of one stage. First in, first out.

    ``join`` and ``task_done`` are not used, and do not count.

    Args:
        queue_size: The most items it holds, >= 1.
        senders: How many will each call :meth:`close` once, >= 1.

    Attributes:
        again: Items that were given back for another attempt; they come first, and are not bounded here: each keeps its
            place in the bound on open records.
        items: What it holds, the end marker included; for looking only.
        attended: How many receivers are on their way to look at the channel: woken or just started, and not there yet.
        parked: Receivers that wait to be woken.
        line: What is to be let in when there is room, each with whom to tell.
        awaited: What a sender waits for that has nothing in its hands yet.
        sent: Items that were ever put. ``peak_depth``: the most it ever held.
    """

    maxsize = 0
    """A plain attribute: that of ``asyncio.Queue`` is a property, and costs a call each time."""

    def __init__(self, queue_size: int, senders: int) -> None:
        super().__init__(queue_size)
        self.maxsize = queue_size
        self.again: deque[Item] = deque()
        self.attended = 0
        self.parked: deque[asyncio.Future[None]] = deque()
        self.line: deque[tuple[Item | End, Turn]] = deque()
        self.awaited: asyncio.Future[None] | None = None
        self.sent = 0
        self.peak_depth = 0
        self._senders = senders

    def _init(self, maxsize: int) -> None:
        self.items: deque[Item | End] = deque()
        self._queue = self.items  # the name under which asyncio.Queue looks for them

    def try_send(self, item: Item) -> bool:
        """Put an item if there is room."""
        items = self.items
        depth = len(items)
        if depth >= self.maxsize:
            return False
        items.append(item)
        self.sent += 1
        if depth >= self.peak_depth:
            self.peak_depth = depth + 1
        if self.parked and not self.attended:
            self.wake()
        return True

    async def send(self, item: Item) -> None:
        """Put an item as soon as there is room, in the order of asking. A cancelled wait puts nothing."""
        if not self.try_send(item):
            await self.wait_in_line(item)

    async def wait_in_line(self, item: Item | End) -> None:
        """Wait until the item has been let in. A cancelled wait puts nothing."""
        place = self.stand_in_line(item)
        try:
            await place[1]
        except asyncio.CancelledError:
            if self.step_out(place):
                raise

    def stand_in_line(self, item: Item | End) -> Place:
        """A place at the end of the line, with what to wait for."""
        place = item, asyncio.get_running_loop().create_future()
        self.line.append(place)
        return place

    def step_out(self, place: Place) -> bool:
        """The wait in line was cancelled. False where it had been received by then: the send has happened."""
        item, turn = place
        if turn.cancelled():
            if place in self.line:
                self.line.remove(place)
        elif item in self.items:
            self.items.remove(item)
            self.sent -= item is not END
            self.let_in()
        else:
            _put_off_cancellation()
            return False
        return True

    async def wait_for_room(self) -> None:
        """Wait until a quarter of a full channel is free: for its one sender, who has several items.

        To be woken for each of them would cost several times what it takes to send one.
        """
        if self.full():
            self.awaited = asyncio.get_running_loop().create_future()
            await self.awaited

    def tell_of_room(self) -> None:
        """Wake the sender that waits for room, if it is time."""
        if self.awaited is not None and self.maxsize - len(self.items) >= max(1, self.maxsize // 4):
            if not self.awaited.done():
                self.awaited.set_result(None)
            self.awaited = None

    def let_in(self) -> None:
        """There is room for one more: take it from the sender that has waited longest."""
        while self.line:
            item, turn = self.line.popleft()
            if turn.done():
                continue  # cancelled, and not yet gone
            self.items.append(item)
            self.sent += item is not END
            turn.set_result(None)
            return

    def reach(self, most: int) -> int:
        """How many items can be taken at once, ``most`` at the most; none while some have come back: those go first."""
        items = self.items
        if self.again or not items:
            return 0
        there = len(items) - (items[-1] is END)
        return there if there < most else most

    def first(self, count: int) -> list[Item]:
        """The first ``count`` items, which have to be there; they stay."""
        items: Any = self.items
        return list(items) if count == len(items) else list(islice(items, count))

    def take(self, count: int) -> list[Item]:
        """Take the first ``count`` items, which have to be there; see :meth:`refill`."""
        items: Any = self.items
        if count == len(items):
            taken = list(items)
            items.clear()
            return taken
        return list(islice(iter(items.popleft, None), count))  # a loop in Python would take twice as long

    def refill(self) -> None:
        """Let senders in where those that were taken have left room."""
        while self.line and len(self.items) < self.maxsize:
            self.let_in()
        self.tell_of_room()

    def put_all(self, added: list[Item]) -> None:
        """Put several items; there has to be room."""
        items = self.items
        items.extend(added)
        self.sent += len(added)
        if len(items) > self.peak_depth:
            self.peak_depth = len(items)
        if self.parked and not self.attended:
            self.wake()

    def requeue(self, item: Item) -> None:
        """Put an item back for another attempt."""
        self.again.append(item)
        self.wake()

    def try_receive(self) -> Item | End | None:
        """Take the first item, or the end marker; ``None`` where there is nothing now."""
        if self.again:
            return self.again.popleft()
        if not self.items:
            return None
        item = self.items.popleft()
        if self.line:
            self.let_in()
        if self.awaited is not None:
            self.tell_of_room()
        return item

    def try_next(self) -> Item | None:
        """Take the first item, if there is one; the end marker is left where it is."""
        if self.again:
            return self.again.popleft()
        items = self.items
        if not items:
            return None
        item = items.popleft()
        if item is END:
            items.append(END)
            return None
        if self.line:
            self.let_in()
        if self.awaited is not None:
            self.tell_of_room()
        return item

    async def receive(self, *, first: bool = False) -> Item | End:
        """Take the first item, or the end marker, as soon as there is one. A cancelled wait takes nothing.

        Args:
            first: Be woken before others that wait; for a receiver that has begun to gather a batch.
        """
        while (item := self.try_receive()) is None:
            await self.park(first=first)
        return item

    async def park(self, *, first: bool = False) -> None:
        """Wait to be woken; whoever is, has to look at the channel."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self.parked.appendleft(turn)
        else:
            self.parked.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self.parked:
                self.parked.remove(turn)
            if turn.done() and not turn.cancelled():
                self.attended -= 1
                self.wake()  # the wake-up was ours and we do not use it: pass it on
            raise
        self.attended -= 1

    def wake(self, most: int = 1) -> None:
        """Send parked receivers to look, if there is something to see, until so many are on their way."""
        while self.parked and (self.items or self.again) and self.attended < most:
            turn = self.parked.popleft()
            if not turn.done():
                turn.set_result(None)
                self.attended += 1

    async def close(self) -> None:
        """One sender is done. After the last one, waits for room and puts the end marker."""
        assert self._senders > 0, "a channel was closed more often than it has senders"
        self._senders -= 1
        if self._senders == 0:
            if self.full():
                await self.wait_in_line(END)
            else:
                self.items.append(END)
            self.wake()

    def leave(self) -> None:
        """Put the end marker back for the next receiver, and wake it; called by the one that took the marker."""
        self.items.append(END)
        self.wake()


def _put_off_cancellation() -> None:
    """Let the cancellation of the running task come at its next wait rather than now."""
    task = asyncio.current_task()
    assert task is not None, "a cancellation without a task"
    task.uncancel()
    task.cancel()
