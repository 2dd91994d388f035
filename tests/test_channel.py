"""The channel: a state machine against a list, exact waits on the virtual clock, and random schedules."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stageflow.channel import END, Channel
from stageflow.item import Item
from stageflow.testing import VirtualLoop, run_virtual


def item(index: int) -> Item:
    return Item(index, {"id": index}, 1)


async def take(channel: Channel, received: list[int]) -> bool:
    """Receive one item as a worker does: who leaves others behind wakes the next. False at the end."""
    found = await channel.receive()
    if found is END:
        channel.leave()
        return False
    if not channel.attended:
        channel.wake()
    received.append(found.index)
    return True


async def take_all(channel: Channel, received: list[int], pause: float = 0.0) -> None:
    while await take(channel, received):
        if pause:
            await asyncio.sleep(pause)


class ChannelMachine(RuleBasedStateMachine):
    """The channel under a loop that is run until nothing is left to run, after every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.given = 0
        self.received: list[int] = []
        self.history: list[int] = []
        self.senders: dict[int, asyncio.Task[None]] = {}
        self.receivers: list[asyncio.Task[bool]] = []
        self.closers: list[asyncio.Task[None]] = []

    @initialize(capacity=st.integers(1, 3), senders=st.integers(1, 2))
    def make(self, capacity: int, senders: int) -> None:
        async def build() -> Channel:
            return Channel(capacity, senders)

        self.channel = self.loop.run_until_complete(build())
        self.open = senders

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work)

    def new_item(self) -> Item:
        self.given += 1
        return item(self.given)

    def content(self) -> list[int]:
        return [found.index for found in self.channel.items if found is not END]

    @precondition(lambda self: self.open)
    @rule()
    def try_send(self) -> None:
        full = self.channel.qsize() >= self.channel.maxsize
        assert self.channel.try_send(self.new_item()) is not full

    @precondition(lambda self: self.open)
    @rule()
    def send(self) -> None:
        sent = self.new_item()
        self.senders[sent.index] = self.start(self.channel.send(sent))

    @rule()
    def receive(self) -> None:
        self.receivers.append(self.start(take(self.channel, self.received)))

    @rule()
    def try_receive(self) -> None:
        first = self.channel.items[0] if self.channel.items else None
        found = self.channel.try_receive()
        assert found is first
        if found is END:
            self.channel.leave()
        elif found is not None:
            self.received.append(found.index)

    @precondition(lambda self: self.senders)
    @rule(data=st.data())
    def cancel_a_sender(self, data: st.DataObject) -> None:
        self.senders.pop(data.draw(st.sampled_from(sorted(self.senders)))).cancel()

    @precondition(lambda self: self.receivers)
    @rule(data=st.data())
    def cancel_a_receiver(self, data: st.DataObject) -> None:
        self.receivers.pop(data.draw(st.integers(0, len(self.receivers) - 1))).cancel()

    @precondition(lambda self: self.receivers)
    @rule(data=st.data())
    def wake_and_cancel_a_receiver(self, data: st.DataObject) -> None:
        """In one turn of the loop, so that the wake-up may be that of the receiver that does not use it."""
        chosen = data.draw(st.integers(0, len(self.receivers) - 1))
        if self.open:
            self.channel.try_send(self.new_item())
        self.receivers.pop(chosen).cancel()

    @precondition(lambda self: self.open and not self.senders)
    @rule()
    def close(self) -> None:
        self.open -= 1
        self.closers.append(self.start(self.channel.close()))

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        self.senders = {index: task for index, task in self.senders.items() if not task.done()}
        self.receivers = [task for task in self.receivers if not task.done()]
        self.closers = [task for task in self.closers if not task.done()]

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "channel"):
            return
        self.settle()
        # First in, first out: what was received and what is still there grow at their end only, and nothing twice.
        moved = self.received + self.content()
        assert moved[: len(self.history)] == self.history
        assert len(set(moved)) == len(moved)
        self.history = moved
        assert self.channel.sent == len(moved)
        assert self.channel.qsize() <= self.channel.maxsize
        assert self.channel.peak_depth <= self.channel.maxsize
        assert len(self.channel.line) == len(self.senders) + len(self.closers)
        # Nobody waits for what is there.
        assert not (self.channel.items and self.receivers), "a receiver was not woken"
        assert not (not self.channel.full() and (self.senders or self.closers)), "a sender was not woken"
        if not self.open and not self.closers:
            assert self.channel.items[-1] is END
            assert list(self.channel.items).count(END) == 1

    def teardown(self) -> None:
        for task in (*self.senders.values(), *self.receivers, *self.closers):
            task.cancel()
        if hasattr(self, "channel"):
            self.settle()
        self.loop.close()


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


# Exact waits


def test_an_item_that_is_there_is_taken_at_once() -> None:
    async def main() -> float:
        channel, received = Channel(2, 1), []
        assert channel.try_send(item(1))
        await take(channel, received)
        assert received == [1]
        assert channel.try_receive() is None
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0


def test_a_full_channel_refuses_and_a_sender_waits_for_room() -> None:
    async def main() -> None:
        loop, channel, received = asyncio.get_running_loop(), Channel(1, 1), []
        assert channel.try_send(item(1))
        assert not channel.try_send(item(2))
        sending = asyncio.create_task(channel.send(item(2)))
        await asyncio.sleep(3)
        assert (sending.done(), len(channel.line), channel.sent) == (False, 1, 1)
        await take(channel, received)
        await sending
        assert loop.time() == 3.0
        assert (len(channel.line), channel.sent, channel.peak_depth, received) == (0, 2, 1, [1])

    run_virtual(main())


def test_blocked_senders_go_first_come_first_served() -> None:
    async def main() -> list[int]:
        channel, received = Channel(1, 1), list[int]()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(channel.send(item(number)))
            await asyncio.sleep(1)
            for _ in range(4):
                await take(channel, received)
        return received

    assert run_virtual(main()) == [0, 1, 2, 3]


def test_a_receiver_waits_for_an_item() -> None:
    async def main() -> None:
        loop, channel, received = asyncio.get_running_loop(), Channel(1, 1), []
        taking = asyncio.create_task(take(channel, received))
        await asyncio.sleep(2)
        assert len(channel.parked) == 1
        channel.try_send(item(1))
        await taking
        assert (loop.time(), received) == (2.0, [1])

    run_virtual(main())


def test_one_item_wakes_one_receiver() -> None:
    async def main() -> None:
        channel, received = Channel(8, 1), []
        waiting = [asyncio.create_task(take(channel, received)) for _ in range(3)]
        await asyncio.sleep(0)
        channel.try_send(item(1))
        await asyncio.sleep(1)
        assert [task.done() for task in waiting] == [True, False, False]
        for number in (2, 3):
            channel.try_send(item(number))
        await asyncio.gather(*waiting)
        assert received == [1, 2, 3]

    run_virtual(main())


@pytest.mark.parametrize("receivers", [1, 2, 7])
def test_one_marker_ends_any_number_of_receivers(receivers: int) -> None:
    async def main() -> None:
        channel, received = Channel(1, 2), list[int]()
        async with asyncio.TaskGroup() as group:
            for _ in range(receivers):
                group.create_task(take_all(channel, received))
            await channel.send(item(1))
            await channel.close()
            await asyncio.sleep(1)
            await channel.send(item(2))  # the other sender is still open
            await channel.close()
        assert received == [1, 2]
        # One that comes late meets the marker, too.
        assert not await take(channel, received)
        assert list(channel.items) == [END]

    run_virtual(main())


def test_the_last_close_waits_for_room_and_the_marker_comes_behind_the_items() -> None:
    async def main() -> None:
        loop, channel, received = asyncio.get_running_loop(), Channel(2, 1), list[int]()
        for number in (1, 2):
            channel.try_send(item(number))
        closing = asyncio.create_task(channel.close())
        await asyncio.sleep(1)
        assert (closing.done(), len(channel.line)) == (False, 1)
        await take_all(channel, received)
        await closing
        assert (loop.time(), received, len(channel.line), channel.sent) == (1.0, [1, 2], 0, 2)

    run_virtual(main())


def test_closing_more_often_than_there_are_senders_is_a_mistake() -> None:
    async def main() -> None:
        channel = Channel(1, 1)
        await channel.close()
        with pytest.raises(AssertionError):
            await channel.close()

    run_virtual(main())


# Cancellation


def test_a_cancelled_send_puts_nothing_and_the_next_one_gets_the_room() -> None:
    async def main() -> None:
        channel, received = Channel(1, 1), list[int]()
        channel.try_send(item(1))
        first, second = (asyncio.create_task(channel.send(item(number))) for number in (2, 3))
        await asyncio.sleep(0)
        channel.try_receive()  # wakes the first of them...
        first.cancel()  # ...which does not use it
        await asyncio.wait([first])
        await second
        await take(channel, received)
        assert (received, channel.sent, len(channel.line)) == ([3], 2, 0)

    run_virtual(main())


def test_a_cancelled_receive_takes_nothing_and_passes_its_wake_up_on() -> None:
    async def main() -> None:
        channel, received = Channel(4, 1), list[int]()
        first, second = (asyncio.create_task(take(channel, received)) for _ in range(2))
        await asyncio.sleep(0)
        channel.try_send(item(1))
        first.cancel()
        await second
        assert received == [1]
        assert first.cancelled()

    run_virtual(main())


# Any schedule


def busy_channel(seed: int, received: list[int]) -> Coroutine[Any, Any, list[int]]:
    """Several senders and receivers, most of which are cancelled at some moment; one of each sees it through."""
    draw = random.Random(seed)
    pauses = (0.0, 0.0, 1.0, 2.0)

    async def main() -> list[int]:
        channel, sent = Channel(draw.randint(1, 3), 2), list[int]()

        async def send(numbers: range) -> None:
            for number in numbers:
                if draw.random() < 0.5 and channel.try_send(item(number)):
                    sent.append(number)
                    continue
                await channel.send(item(number))
                sent.append(number)
                await asyncio.sleep(draw.choice(pauses))

        async def send_and_close(numbers: range, cancelled_after: float | None) -> None:
            sending = asyncio.create_task(send(numbers))
            if cancelled_after is not None:
                await asyncio.sleep(cancelled_after)
                sending.cancel()
            await asyncio.wait([sending])
            await channel.close()

        async def hurried() -> None:
            taking = asyncio.create_task(take_all(channel, received, draw.choice(pauses)))
            await asyncio.sleep(draw.choice(pauses))
            taking.cancel()
            await asyncio.wait([taking])

        async with asyncio.TaskGroup() as group:
            group.create_task(send_and_close(range(10), None))
            group.create_task(send_and_close(range(10, 20), draw.choice((0.0, 1.0, 3.0))))
            group.create_task(take_all(channel, received, draw.choice(pauses)))
            for _ in range(draw.randint(0, 3)):
                group.create_task(hurried())
        assert list(channel.items) == [END]
        assert channel.sent == len(sent)
        return sent

    return main()


def test_nothing_is_lost_and_everybody_ends_whatever_the_schedule() -> None:
    for seed in range(300):
        received: list[int] = []
        sent = run_virtual(busy_channel(seed, received), seed=seed)
        assert sorted(received) == sorted(sent), f"seed {seed}"
        assert set(range(10)) <= set(received), f"seed {seed}"


def every(seeds: range) -> None:
    for seed in seeds:
        run_virtual(busy_channel(seed, []), seed=seed)


@pytest.mark.parametrize("forgotten", ["wake", "leave"])
def test_a_lost_wake_up_is_found(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail at all."""
    monkeypatch.setattr(Channel, forgotten, lambda self: None)
    with pytest.raises(AssertionError):  # a Deadlock is one
        every(range(50))
