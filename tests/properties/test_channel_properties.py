"""A channel under random use: senders, receivers that gather, that are cancelled, and items that come back.

``tests/test_channel.py`` holds it against a list; here it is looked at whenever time moves.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from stageflow.channel import END, Channel
from stageflow.item import Item
from stageflow.testing import run_virtual

SEEDS = range(300)
PAUSES = (0.0, 0.0, 0.5, 1.0)


class ChannelRun:
    """One run of this seed.

    Receivers keep a channel's one rule: who takes something and leaves something behind wakes the next.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.items = [Item(index, None, 1) for index in range(self.draw.randint(0, 25))]
        self.unsent = iter(self.items)
        self.asked: list[Item] = []
        self.received: list[Item] = []
        self.ended: Counter[int] = Counter()
        self.all_ended = asyncio.Event()
        self.wrong: list[str] = []

    async def main(self) -> None:
        draw = self.draw
        senders = draw.randint(1, 3)
        self.channel = Channel(draw.randint(1, 4), senders)
        self.look_whenever_time_moves()
        async with asyncio.TaskGroup() as group:
            receivers = [group.create_task(self.receive()) for _ in range(draw.randint(1, 4))]
            for _ in range(senders):
                group.create_task(self.send())
            for _ in range(draw.choice((0, 0, 3))):
                await asyncio.sleep(draw.choice(PAUSES))
                draw.choice(receivers).cancel()
                receivers.append(group.create_task(self.receive()))

    def look_whenever_time_moves(self) -> None:
        loop: Any = asyncio.get_running_loop()
        channel, move = self.channel, loop._move_time

        def look() -> None:
            if channel.parked and (channel.items or channel.again):
                self.wrong.append(f"{len(channel.parked)} parked, {len(channel.items)} and {len(channel.again)} there")
            if channel.line and not channel.full():
                self.wrong.append(f"{len(channel.line)} senders wait, and there is room")
            if len(channel.items) > channel.maxsize:
                self.wrong.append(f"{len(channel.items)} in a channel for {channel.maxsize}")
            move()

        loop._move_time = look

    async def send(self) -> None:
        for item in self.unsent:
            self.asked.append(item)
            if not self.channel.try_send(item):
                await self.channel.send(item)
            await asyncio.sleep(self.draw.choice(PAUSES))
        if self.items:
            await self.all_ended.wait()  # what comes back comes before the end
        await self.channel.close()

    async def receive(self) -> None:
        taken: list[Item] = []
        try:
            while (first := await self.channel.receive()) is not END:
                self.take(first, taken)
                self.hand_on()
                await self.gather(taken)
                self.hand_on()
                await asyncio.sleep(self.draw.choice(PAUSES))
                while taken:
                    self.deal_with(taken.pop())
            self.channel.leave()
        except asyncio.CancelledError:
            for item in taken:
                self.channel.requeue(item)
            raise

    async def gather(self, taken: list[Item]) -> None:
        size, within = self.draw.choice((1, 2, 4)), self.draw.choice(PAUSES)
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while len(taken) < size:
                    item = self.channel.try_receive() or await self.channel.receive(first=True)
                    if item is END:
                        self.channel.leave()
                        return
                    self.take(item, taken)

    def take(self, item: Item, taken: list[Item]) -> None:
        taken.append(item)
        self.received.append(item)

    def hand_on(self) -> None:
        if not self.channel.attended:
            self.channel.wake()

    def deal_with(self, item: Item) -> None:
        if self.draw.random() < 0.3:
            asyncio.get_running_loop().call_later(self.draw.choice(PAUSES), self.channel.requeue, item)
            return
        self.ended[item.index] += 1
        if len(self.ended) == len(self.items):
            self.all_ended.set()


def check(seed: int) -> None:
    """Every item ends once, they come in the order of asking, and at no time does anybody wait for what is there."""
    channel_run = ChannelRun(seed)
    run_virtual(channel_run.main(), seed=seed)
    assert not channel_run.wrong, f"seed {seed}: {channel_run.wrong}"
    assert list(dict.fromkeys(channel_run.received)) == channel_run.asked, f"seed {seed}"
    assert channel_run.ended == {item.index: 1 for item in channel_run.items}, f"seed {seed}"
    assert channel_run.channel.sent == len(channel_run.items), f"seed {seed}"


def check_all() -> None:
    for seed in SEEDS:
        check(seed)


def test_a_channel_loses_neither_items_nor_wake_ups() -> None:
    check_all()


def forgets_to_wake(self: Channel, item: Item) -> None:
    self.again.append(item)


def lets_in_the_last(self: Channel) -> None:
    self.line.reverse()
    LET_IN(self)
    self.line.reverse()


LET_IN = Channel.let_in


def wakes_nobody(self: ChannelRun) -> None:
    """A gatherer that takes what it needs, and leaves the rest to luck."""


def leaves_with_the_marker(self: Channel) -> None:
    self.wake()


@pytest.mark.parametrize(
    ("owner", "method", "mistake"),
    [
        (Channel, "requeue", forgets_to_wake),
        (Channel, "let_in", lets_in_the_last),
        (Channel, "leave", leaves_with_the_marker),
        (ChannelRun, "hand_on", wakes_nobody),
    ],
)
def test_planted_mistakes_are_found(owner: type, method: str, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, method, mistake)
    with pytest.raises(AssertionError):
        check_all()
