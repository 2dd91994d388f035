"""What goes wrong beside the attempts: a handler that blocks the event loop, a task of its that fails unheard.

Both are told as warnings that name the stage; neither can be mended from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final
from weakref import WeakKeyDictionary

from stageflow.engine.attempt import NOT_THE_USERS, describe, shown
from stageflow.errors import HandlerFailed

__all__ = ["CURRENT_STAGE", "hear_stray_tasks", "watch_loop"]

CURRENT_STAGE: ContextVar[str | None] = ContextVar("stageflow_stage", default=None)
"""The stage whose worker this is; tasks that a handler starts inherit it."""

_BEAT: Final = 0.25
_BLOCKED: Final = 1.0


@contextlib.contextmanager
def watch_loop(warn: Callable[[str], None], running: Callable[[], bool]) -> Iterator[None]:
    """While inside, tell of every time the running loop stood still for over a second, and where.

    Only while ``running()``: what is opened before there is anything to run holds nobody up. A thread looks at the
    stack of the loop's thread while it stands still; the loop itself could not.
    """
    watch = _LoopWatch(asyncio.get_running_loop(), warn, running)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


class _LoopWatch(threading.Thread):
    def __init__(
        self, loop: asyncio.AbstractEventLoop, warn: Callable[[str], None], running: Callable[[], bool]
    ) -> None:
        super().__init__(name="loop watch", daemon=True)
        self._loop = loop
        self._warn = warn
        self._running = running
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._beat = time.monotonic()
        self._place: tuple[str, str] | None = None
        self._timer = loop.call_later(_BEAT, self._pulse)

    def stop(self) -> None:
        self._over.set()
        self._timer.cancel()

    def _pulse(self) -> None:
        now = time.monotonic()
        seconds = now - self._beat
        if self._place is not None and seconds > _BLOCKED:
            self._warn(f"{self._place[0]} blocked the event loop for {seconds:.1f} s{self._place[1]}")
        self._place, self._beat = None, now
        self._timer = self._loop.call_later(_BEAT, self._pulse)

    def run(self) -> None:
        while not self._over.wait(_BEAT):
            if self._running() and self._place is None and time.monotonic() - self._beat > _BLOCKED:
                frame = sys._current_frames().get(self._watched)
                self._place = _place_of(frame)


def _place_of(frame: FrameType | None) -> tuple[str, str]:
    """Who holds the loop, and the innermost line of the user's own code."""
    who, line = "something", ""
    while frame is not None:
        if not line and not frame.f_code.co_filename.startswith(NOT_THE_USERS):
            line = f" at {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        worker = frame.f_locals.get("self")
        pool = getattr(worker, "pool", None)
        if frame.f_code.co_name in ("run", "_call") and pool is not None:
            who = f'stage "{pool.stage.name}"'
            break
        frame = frame.f_back
    return who, line


async def _without_exit(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """An exit in a task of a handler's is that task's failure; as it stands, the loop would end with it."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise HandlerFailed(f"{shown(error)} raised in a task") from error


@contextlib.contextmanager
def hear_stray_tasks(warn: Callable[[str], None]) -> Iterator[None]:
    """While inside, tell of tasks that a handler started, that failed, and whose failure nobody asked for."""
    loop = asyncio.get_running_loop()
    before, factory = loop.get_exception_handler(), loop.get_task_factory()
    stages: WeakKeyDictionary[asyncio.Future[Any], str | None] = WeakKeyDictionary()

    def remember(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
        stage = CURRENT_STAGE.get()
        guarded: Any = coroutine
        if stage is not None and inspect.iscoroutine(coroutine):
            guarded = _without_exit(coroutine)
            guarded.__name__, guarded.__qualname__ = coroutine.__name__, coroutine.__qualname__
        task = asyncio.Task(guarded, loop=loop, **options) if factory is None else factory(loop, guarded, **options)
        if guarded is not coroutine:
            task.add_done_callback(lambda _: coroutine.close())  # a task that is cancelled first has never begun it
        stages[task] = stage
        return task

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task, error = context.get("future") or context.get("task"), context.get("exception")
        stage = stages.get(task) if task is not None else None
        if stage is None and isinstance(task, asyncio.Task) and hasattr(task, "get_context"):
            stage = task.get_context().get(CURRENT_STAGE)
        if stage is not None and error is not None:
            name = getattr(task.get_coro(), "__qualname__", "?") if isinstance(task, asyncio.Task) else "?"
            warn(f'stage "{stage}": its task {name} failed, and nobody asked for it: {describe(error)}')
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_task_factory(remember)
    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
        loop.set_task_factory(factory)
