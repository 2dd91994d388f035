"""Where a handler runs: on the loop, in the stage's own threads, or in the stage's own processes.

A thread pool of its own per stage, because the loop's default one has six threads on two cores, whatever
``max_in_flight`` says. A process stage is a thread stage whose threads each own one child process and wait for its
answer, so that a child that dies takes one item with it and no neighbour.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from stageflow.engine.processes import Child, ChildSetup
from stageflow.errors import HandlerFailed
from stageflow.stage import Stage

__all__ = ["Target", "target_of"]


class Target(Protocol):
    """Something that can be called with a stage's arguments and answers with an awaitable."""

    def __call__(self, *arguments: Any, **named: Any) -> Any: ...

    def close(self) -> None:
        """Start nothing more; threads still in a handler are left to end by themselves."""
        ...


def target_of(stage: Stage, setup: ChildSetup | None) -> Target:
    """The target that ``stage.run`` asks for."""
    if stage.run == "thread":
        return _Threads(stage, stage.handler)
    if stage.run == "process":
        assert setup is not None, "a process stage without the means to start one"
        return _Processes(stage, setup)
    return _OnLoop(stage.handler) if stage.run == "async" else _Inline(stage.handler)


class _OnLoop:
    def __init__(self, handler: Callable[..., Any]) -> None:
        self.__wrapped__ = handler

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)

    def close(self) -> None: ...


class _Inline:
    def __init__(self, handler: Callable[..., Any]) -> None:
        self._handler = handler

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        value = self._handler(*arguments, **named)
        return await value if inspect.isawaitable(value) else value

    def close(self) -> None: ...


class _Threads:
    def __init__(self, stage: Stage, handler: Callable[..., Any]) -> None:
        self._handler = handler
        self._pool = ThreadPoolExecutor(stage.max_in_flight, thread_name_prefix=f"stageflow-{stage.name}")

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        call = functools.partial(_guarded, self._handler, *arguments, **named)
        value = await asyncio.get_running_loop().run_in_executor(self._pool, call)
        return await value if inspect.isawaitable(value) else value

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _guarded(handler: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return handler(*arguments, **named)
    except StopIteration as error:
        # A future can't hold a StopIteration: on Python 3.11 and 3.12 whoever awaits it would wait for ever.
        raise HandlerFailed(f"{error!r} raised by the handler") from error


class _Processes(_Threads):
    def __init__(self, stage: Stage, setup: ChildSetup) -> None:
        super().__init__(stage, self._ask)
        self._setup = setup
        self._own = threading.local()
        self._children: set[Child] = set()

    def _ask(self, *arguments: Any, **named: Any) -> Any:
        child: Child | None = getattr(self._own, "child", None)
        if child is None:
            child = self._own.child = Child(self._setup)
            self._children.add(child)
        try:
            return child.call(arguments, named)
        finally:
            if not child.alive:
                self._own.child = None
                self._children.discard(child)

    def close(self) -> None:
        super().close()
        for child in tuple(self._children):
            child.close()
