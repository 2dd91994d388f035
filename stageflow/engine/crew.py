"""The tasks of one run: like a task group, but one of them can be left behind.

A handler that swallows its cancellation never ends, and a task group would wait for it for ever. Such a task is
abandoned: nobody waits for it, and what it still returns is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from stageflow.engine.deadlines import SWALLOW_GRACE

__all__ = ["Crew"]

T = TypeVar("T")


class Crew:
    """Tasks that start together and are waited for together.

    Args:
        broken: Called when one of them raised.

    Attributes:
        abandoned: Tasks that were left behind and have not ended since.
        cancelled: Everybody was asked to end.
        overdue: Called when tasks are still there ``SWALLOW_GRACE`` seconds after that, before they are abandoned.
    """

    def __init__(self, broken: Callable[[], None]) -> None:
        self._broken = broken
        self.abandoned: set[asyncio.Task[Any]] = set()
        self.cancelled = False
        self.overdue: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task. If it raises, all others are cancelled and :meth:`join` raises its error."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name)  # not by the factory of handlers' tasks
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Ask every task to end; those that do not are abandoned after a grace."""
        self.cancelled = True
        for task in self._tasks:
            task.cancel()
        if self._tasks and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWALLOW_GRACE, self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        self.overdue()
        for task in tuple(self._tasks):
            self.abandon(task)

    def abandon(self, task: asyncio.Task[Any]) -> None:
        """Wait for this one no longer."""
        self._tasks.discard(task)
        self.abandoned.add(task)
        self._changed.set()

    async def join(self) -> None:
        """Wait until every task has ended or was abandoned. A cancelled wait cancels them, and waits all the same.

        Raises:
            BaseExceptionGroup: What tasks raised; a bug of the engine's, since what handlers raise is the items'.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            self._changed.clear()
            try:
                await self._changed.wait()
            except asyncio.CancelledError as error:
                cancelled = error
                self.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._errors:
            raise BaseExceptionGroup("workers failed", self._errors)
        if cancelled is not None:
            raise cancelled

    def disown(self) -> None:
        """Take abandoned tasks off the loop's books, so that closing it does not wait for them."""
        for task in self.abandoned:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is known, and was told
            asyncio._unregister_task(task)  # documented under "Extending" of asyncio

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.abandoned.discard(task)
        self._tasks.discard(task)
        if not self._tasks:
            self._changed.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._errors.append(error)
            self.cancel()
            self._broken()
