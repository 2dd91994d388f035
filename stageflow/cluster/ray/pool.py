"""Calls of a stage that are made by a pool of models on other machines, and sent there several at a time.

A call over the network costs as much as many small ones, so the calls of a moment go together. Where a model is lost,
nobody knows whose fault that is: each call it had is sent once more, alone, to one that has nothing else. The one that
is lost again has failed, and none of its neighbours has.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.engine.processes import answer_of
from stageflow.errors import WorkerDied

__all__ = ["MOST_CALLS", "WITHIN_SECONDS", "Model", "ModelPool"]

MOST_CALLS: Final = 32
WITHIN_SECONDS: Final = 0.005
"""A call waits at most so long for others to go with it, where a model has nothing to do."""

_AHEAD: Final = 2
"""Messages that a model may have at a time: one it works on, and the next."""


class Model(Protocol):
    """A process that makes calls, one after another."""

    async def calls(self, messages: list[bytes]) -> list[bytes]:
        """Make them.

        Raises:
            WorkerDied: It ended before it answered.
        """
        ...

    async def back(self) -> None:
        """Wait until it is there and set up, or another in its place.

        Raises:
            WorkerDied: There will be none.
        """
        ...

    async def end(self) -> None:
        """End it in the middle of a call; another takes its place."""
        ...


class _Call:
    def __init__(self, message: bytes, since: float, answer: asyncio.Future[bytes]) -> None:
        self.message = message
        self.since = since
        self.answer = answer
        self.place: _Place | None = None  # which has it


class _Place:
    """A model, and what it has.

    Attributes:
        there: It can be called.
        alone: It has one call that was lost before, and gets no other.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.there = False
        self.alone = False
        self.messages = 0
        self.calls = 0


class ModelPool:
    """Makes the calls of a stage; see :class:`stageflow.engine.targets.Target`.

    Args:
        most: Calls that go together.
        within: Seconds that a call may wait for others.
    """

    def __init__(self, models: Sequence[Model], *, most: int = MOST_CALLS, within: float = WITHIN_SECONDS) -> None:
        self._places = [_Place(model) for model in models]
        self._most, self._within = most, within
        self._waiting: deque[_Call] = deque()
        self._suspects: deque[_Call] = deque()  # calls that were lost once
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone: WorkerDied | None = None  # why no model is left

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call(pickle.dumps((arguments, named)), loop.time(), loop.create_future())
        if self._gone is not None:
            raise WorkerDied(str(self._gone))
        self._waiting.append(call)
        self._send()
        try:
            message = await call.answer
        except asyncio.CancelledError:
            if call.place is not None:
                loop.call_later(SWALLOW_GRACE, self._look, call, call.place)
            raise
        return answer_of(*pickle.loads(message))

    async def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        raise AssertionError("a generator can't be in a process")

    async def check(self) -> None:
        """Look for the models. Calls wait until one is found, and one that has no room yet gets none."""
        for place in self._places:
            self._start(self._bring_back(place))

    def close(self) -> None:
        """Send nothing more; the models are not ended, as others call them, too."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # Sending

    def _send(self) -> None:
        """Send what can be sent now; called whenever that may have changed."""
        while self._suspects and (place := self._free(messages=1)) is not None:
            place.alone = True
            self._give(place, [self._suspects.popleft()])
        while not self._suspects and self._is_time() and (place := self._free(messages=_AHEAD)) is not None:
            calls = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            self._give(place, calls)

    def _is_time(self) -> bool:
        """Whether those who wait are enough, or have waited long enough; if not, it is seen to later."""
        if not self._waiting:
            return False
        loop = asyncio.get_running_loop()
        due = self._waiting[0].since + self._within
        if len(self._waiting) >= self._most or due <= loop.time():
            return True
        if self._timer is None:
            self._timer = loop.call_at(due, self._wake)
        return False

    def _wake(self) -> None:
        self._timer = None
        self._send()

    def _free(self, *, messages: int) -> _Place | None:
        """The place with the fewest calls, of those that can take another message."""
        free = [place for place in self._places if place.there and not place.alone and place.messages < messages]
        return min(free, key=lambda place: place.calls, default=None)

    def _give(self, place: _Place, calls: list[_Call]) -> None:
        calls = [call for call in calls if not call.answer.done()]
        if not calls:
            place.alone = False
            return
        place.messages += 1
        place.calls += len(calls)
        for call in calls:
            call.place = place
        self._start(self._ask(place, calls))

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, place: _Place, calls: list[_Call]) -> None:
        try:
            answers = await place.model.calls([call.message for call in calls])
        except WorkerDied as error:
            self._lost(place, calls, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
            _fail(calls, error)
        else:
            for call, answer in zip(calls, answers, strict=True):
                if not call.answer.done():
                    call.answer.set_result(answer)
        finally:
            place.messages -= 1
            place.calls -= len(calls)
            place.alone = False
            for call in calls:
                call.place = None
        self._send()

    # Losses

    def _lost(self, place: _Place, calls: list[_Call], error: WorkerDied) -> None:
        if place.alone:
            _fail(calls, error)
        else:
            self._suspects += [call for call in calls if not call.answer.done()]
        if place.there:
            place.there = False
            self._start(self._bring_back(place))

    async def _bring_back(self, place: _Place) -> None:
        try:
            await place.model.back()
        except WorkerDied as error:
            self._places.remove(place)
            if not self._places:
                self._gone = error
                _fail([*self._suspects, *self._waiting], error)
                self._suspects.clear()
                self._waiting.clear()
        else:
            place.there = True
            self._send()

    def _look(self, call: _Call, place: _Place) -> None:
        """End a model that is still in a call which was given up a while ago: nobody else would get an answer."""
        if call.place is place:
            self._start(place.model.end())


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)
