"""Where a handler runs: on the loop, in the stage's own threads, or in the stage's own processes.

A thread pool of its own per stage, because the loop's default one has six threads on two cores, whatever
``max_in_flight`` says. A process stage is a thread stage whose threads each own one child process and wait for its
answer, so that a child that dies takes one item with it and no neighbour.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from stageflow.engine.attempt import shown
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.engine.processes import Child, ChildSetup
from stageflow.errors import HandlerFailed
from stageflow.stage import Stage

__all__ = ["Elsewhere", "Target", "target_of"]

_CLOSE_SECONDS: Final = 5.0
"""In which the children of a stage may close their resources."""


class Target(Protocol):
    """Something that can be called with a stage's arguments and answers with an awaitable."""

    def __call__(self, *arguments: Any, **named: Any) -> Any: ...

    def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a plain function where the handler would run; for the steps of a generator."""
        ...

    async def check(self) -> None:
        """See that the handler can be called there, where that is dear to find out record by record."""
        ...

    def close(self) -> None:
        """Start nothing more; threads still in a handler are left to end by themselves."""
        ...


Elsewhere = Callable[[Stage], Target]
"""Where the processes of a stage with ``gpus`` are, on a cluster."""


def target_of(
    stage: Stage, setup: ChildSetup | None, left_behind: Callable[[], None], elsewhere: Elsewhere | None = None
) -> Target:
    """The target that ``stage.run`` asks for.

    Args:
        left_behind: Called for each thread that has not ended a grace after its call was given up.
        elsewhere: Where a stage with ``gpus`` runs, if not here.
    """
    if stage.gpus is not None and elsewhere is not None:
        return elsewhere(stage)
    if stage.run == "thread":
        return _Threads(stage, stage.handler, left_behind)
    if stage.run == "process":
        assert setup is not None, "a process stage without the means to start one"
        return _Processes(stage, setup)
    return _OnLoop(stage.handler) if stage.run == "async" else _Inline(stage.handler)


class _OnLoop:
    def __init__(self, handler: Callable[..., Any]) -> None:
        self.__wrapped__ = handler

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)

    async def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def check(self) -> None: ...

    def close(self) -> None: ...


class _Inline:
    def __init__(self, handler: Callable[..., Any]) -> None:
        self._handler = handler

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        value = self._handler(*arguments, **named)
        return await value if inspect.isawaitable(value) else value

    async def step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def check(self) -> None: ...

    def close(self) -> None: ...


class _Threads:
    """The stage's own threads. A call that was given up leaves its thread behind: nobody can end a thread.

    The pool that holds such a thread is left behind with it, to finish what else it has, and a new one serves from then
    on; so the calls after it find as many threads as before.
    """

    def __init__(self, stage: Stage, handler: Callable[..., Any], left_behind: Callable[[], None]) -> None:
        self._handler = handler
        self._stage = stage
        self._left_behind = left_behind
        self._timers: set[asyncio.TimerHandle] = set()
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._stage.max_in_flight, thread_name_prefix=f"stageflow-{self._stage.name}")

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        value = await self.step(self._handler, *arguments, **named)
        return await value if inspect.isawaitable(value) else value

    async def check(self) -> None: ...

    async def step(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        pool, errand = self._pool, _Errand(function, arguments, named)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, errand)
        except asyncio.CancelledError:
            errand.wanted = False
            if errand.running:
                self._leave_behind(pool, errand)
            raise

    def _leave_behind(self, pool: ThreadPoolExecutor, errand: _Errand) -> None:
        if pool is self._pool:
            self._pool = self._new_pool()
            pool.shutdown(wait=False)
        timer = asyncio.get_running_loop().call_later(SWALLOW_GRACE, self._look, errand)
        self._timers = {timer, *(other for other in self._timers if not other.cancelled())}

    def _look(self, errand: _Errand) -> None:
        if errand.running:
            self._left_behind()

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Errand:
    """One call on its way through a thread.

    Attributes:
        running: A thread is in it.
        wanted: Somebody waits for it; if not, it is not begun.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._function = function
        self._arguments = arguments
        self._named = named
        self.running = False
        self.wanted = True

    def __call__(self) -> Any:
        self.running = True
        try:
            return self._function(*self._arguments, **self._named) if self.wanted else None
        except StopIteration as error:
            # A future can't hold a StopIteration: on Python 3.11 and 3.12 whoever awaits it would wait for ever.
            raise HandlerFailed(f"{shown(error)} raised by the handler") from error
        finally:
            self.running = False


class _Call:
    """One call in a process: the child that has it, and whether its answer is still wanted."""

    child: Child | None = None
    given_up = False


class _Processes(_Threads):
    """Threads that each own one child process. A call that was given up takes its child with it."""

    def __init__(self, stage: Stage, setup: ChildSetup) -> None:
        super().__init__(stage, self._ask, lambda: None)
        self._setup = setup
        self._own = threading.local()
        self._children: set[Child] = set()

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        call = _Call()
        try:
            return await self.step(self._ask, call, arguments, named)
        except asyncio.CancelledError:
            call.given_up = True
            if call.child is not None:
                call.child.kill()
            raise

    async def check(self) -> None:
        """Set up one child, if that takes opening something."""
        if self._setup.takes:
            await self.step(self._own_child_is_there)

    def _own_child_is_there(self) -> None:
        self._own_child().check()

    def _own_child(self) -> Child:
        """The child of the thread that asks."""
        child: Child | None = getattr(self._own, "child", None)
        if child is None or not child.alive:
            child = self._own.child = Child(self._setup)
            self._children.add(child)
        return child

    def _ask(self, call: _Call, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        child = call.child = self._own_child()
        try:
            if call.given_up:  # while the child was made
                child.kill()
            return child.call(arguments, named)
        finally:
            call.child = None
            if not child.alive:
                self._own.child = None
                self._children.discard(child)

    def _leave_behind(self, pool: ThreadPoolExecutor, errand: _Errand) -> None:
        """Not needed: the thread returns as soon as its child is gone."""

    def close(self) -> None:
        super().close()
        children = tuple(self._children)
        for child in children:
            child.let_go()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
