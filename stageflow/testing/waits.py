"""Where tasks wait: what a deadlock, and a task left behind, are told with."""

from __future__ import annotations

import asyncio
import gc
import types
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

__all__ = ["describe_tasks", "noting_left"]

T = TypeVar("T")


async def noting_left(main: Coroutine[Any, Any, T], left: list[str]) -> T:
    """Await ``main``, and add to ``left`` a line on each task that is there yet when it ends."""
    # Looked up in the very step in which main ends: by the time the loop stops, other tasks have moved on.
    result = await main
    left.extend(_describe(task) for task in _by_name(asyncio.all_tasks() - {asyncio.current_task()}))
    return result


def _by_name(tasks: Collection[Any]) -> list[asyncio.Task[Any]]:
    return sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name()))


def describe_tasks(loop: asyncio.AbstractEventLoop) -> str:
    """A line for each task of the loop."""
    return "\n".join(_describe(task) for task in _by_name(asyncio.all_tasks(loop))) or "  there is no task"


def _describe(task: asyncio.Task[Any]) -> str:
    """The task's name, and each line from its coroutine down to the innermost await."""
    places = []
    awaited: Any = task.get_coro()
    while (frame := _frame(awaited)) is not None:
        name = getattr(awaited, "__qualname__", frame.f_code.co_qualname)
        if frame.f_globals.get("__name__", "").startswith("asyncio."):
            # Inside asyncio the first name says it: Queue.get, Event.wait. What it does within is its own matter.
            places.append(name)
            break
        if frame.f_code is not noting_left.__code__:
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {name}")
        awaited = _awaited_by(awaited)
    return f"  {task.get_name()} waits at " + " > ".join(places or ["its start"])


def _frame(awaited: Any) -> types.FrameType | None:
    for attribute in ("cr_frame", "ag_frame", "gi_frame"):
        frame = getattr(awaited, attribute, None)
        if isinstance(frame, types.FrameType):
            return frame
    return None


def _awaited_by(awaited: Any) -> Any:
    for attribute in ("cr_await", "ag_await", "gi_yieldfrom"):
        inner = getattr(awaited, attribute, None)
        if inner is not None:
            if type(inner).__name__.startswith("async_generator_"):
                # ``async for`` waits on a helper object that does not tell its generator; the collector knows it.
                return next((x for x in gc.get_referents(inner) if isinstance(x, types.AsyncGeneratorType)), None)
            return inner
    return None
