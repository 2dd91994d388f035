"""A handler that is a generator: what it yields are children, sent on as they come.

The next value is asked for when the last one was sent, so a full channel below holds the generator back. The time of
that wait is no part of the attempt's. A generator whose call was abandoned yields to nobody.

Where an earlier run has made children of its first values, those are passed over, and the next child's place is counted
from there: to the stages below it is as if the generator had never failed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from stageflow.engine.attempt import SKIPPED
from stageflow.errors import ResultError
from stageflow.item import Exit, Item

if TYPE_CHECKING:
    from stageflow.engine.pool import Pool

__all__ = ["fan_out"]

MOST_BYTES: Final = 64 << 20
"""What one record may be made of: its children are held until the record settles."""

_CHILD_BYTES: Final = 1024
"""What a child takes besides its value, rounded up: without it, a generator of small numbers would fill the memory."""

_SPREAD: Final = Exit("spread")
_END: Final = object()


def fan_out(pool: Pool, call: Callable[[Item], Any], step: Callable[..., Any]) -> Callable[[Item], Any]:
    """Make an ``invoke`` that sends on whatever the handler yields for an item.

    Args:
        call: Calls the handler; it gives a generator of either kind.
        step: Runs a plain function where the stage's functions run, and gives an awaitable.
    """

    async def invoke(item: Item) -> Any:
        if not await pool.attempts.wanted(item):
            return SKIPPED
        worker = pool.current_worker()
        held, over = 0, (item.resumed or {}).get(pool.stage.name, 0)
        generator = call(item)
        values = generator if inspect.isasyncgen(generator) else _steps(generator, step)
        async with aclosing(values):
            async for value in values:
                if item.closed or worker.abandoned:
                    break
                if over:
                    over -= 1
                    continue
                held += size_of(value) + _CHILD_BYTES
                if held > MOST_BYTES:
                    raise ResultError(f"fan-out over {MOST_BYTES >> 20} MiB")
                await pool.spread(item, value, worker)
        return _SPREAD

    return invoke


def size_of(value: Any) -> int:
    """About how many bytes a value holds; what it contains included, what it shares counted each time."""
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(size_of(key) + size_of(each) for key, each in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return sys.getsizeof(value) + sum(map(size_of, value))
    return sys.getsizeof(value)


async def _steps(generator: Any, step: Callable[..., Any]) -> AsyncGenerator[Any, None]:
    try:
        while (value := await step(next, generator, _END)) is not _END:
            yield value
    finally:
        # Where a thread that was left behind is still in it, it can't be closed.
        if not generator.gi_running:
            generator.close()
