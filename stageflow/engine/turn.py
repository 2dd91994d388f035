"""How much a worker does before it lets others run: its turns.

* A call that answers without waiting costs less than what is usually done around one: a look at the clock, the
  counters, a wake-up. So a worker takes as many items as there are and fit below, calls the handler for one after the
  other, and does all that once, for the whole bulk. Nobody else runs meanwhile, so nobody sees it half done.
* The bulk is driven by one ``send``. Where a call waits after all, that is seen at once: what was finished moves on,
  what was not begun stays in the channel, and the worker waits for the rest of that one call.
* A handler that waited will probably wait again: its items are taken one at a time, without the machinery of a bulk,
  and only now and then is it tried whether they still wait.
* A turn takes about a millisecond at the most, by what the last ones took, and between two turns others run.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, Final

from stageflow.engine.binding import CLOSED

__all__ = ["LONG", "MOST_ALONE", "TURN_SECONDS", "Pace", "begun"]

TURN_SECONDS: Final = 0.001
"""What a worker may take before it lets others run."""

_LARGEST: Final = 4096
MOST_ALONE: Final = 64
"""Calls by themselves until a turn is tried again, where none has gone through for long."""

LONG: Final = 4
"""As how many of these a call counts that took as long as a turn may."""


class Pace:
    """How many items the next turn of a stage's workers may have, by how the last ones went.

    Attributes:
        ever: There can be turns.
        size: Items, at least 1.
        alone: How many calls are to be made one at a time before a turn is tried. One that took as long as a turn may
            counts as :data:`LONG`: it could have held the loop.
        brief: The last of them did not: who made it will be back soon.
    """

    __slots__ = ("_patience", "alone", "brief", "ever", "size")

    def __init__(self, *, ever: bool = True) -> None:
        self.size = 1
        self.alone = 0
        self.ever = ever
        self.brief = False
        self._patience = 1

    def made_alone(self, seconds: float) -> None:
        """A call was made by itself, and took so long."""
        self.brief = seconds < TURN_SECONDS
        self.alone -= 1 if self.brief else LONG

    def went_through(self, items: int, seconds: float) -> None:
        """No call of a turn waited."""
        self._patience = 1
        if items >= self.size:
            self.size = min(2 * items, _LARGEST)
        if seconds > TURN_SECONDS:
            self._shorten(items, seconds)

    def broke_off(self, finished: int, seconds: float = 0.0) -> None:
        """Of a turn so many items were finished; the call of the next one waits, or it failed, or left."""
        self.size = max(2 * finished, self.size // 2)
        if not self.size:
            self._patience = min(2 * self._patience, MOST_ALONE)
            self.alone, self.size = self._patience, 1
        if seconds > TURN_SECONDS:
            self._shorten(finished + 1, seconds)

    def _shorten(self, calls: int, seconds: float) -> None:
        self.size = min(self.size, max(1, int(calls * TURN_SECONDS / seconds)))


def begun(turn: Coroutine[Any, Any, Any]) -> Any:
    """Begin a turn.

    Returns:
        ``None`` where it is over, and all of its calls are. Else what is left of the call at which it stopped: an
        awaitable, which gives its result or raises its error; or :data:`CLOSED`.
    """
    try:
        return _rest_of(turn, turn.send(None))
    except StopIteration as end:
        return end.value if end.value is None or end.value is CLOSED else _returns(end.value)
    except BaseException as error:  # noqa: BLE001 - the handler is foreign code; the worker sorts it out
        return _raises(error)


@types.coroutine
def _rest_of(turn: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that was begun by hand, and that waits for what its ``send`` has given."""
    try:
        yield waits_for
    except BaseException as error:  # noqa: BLE001 - it is thrown in where it would have been
        try:
            waits_for = turn.throw(error)
        except StopIteration as end:
            return end.value
        return (yield from _rest_of(turn, waits_for))
    return (yield from turn)


async def _returns(value: Any) -> Any:
    return value


async def _raises(error: BaseException) -> Any:
    raise error
