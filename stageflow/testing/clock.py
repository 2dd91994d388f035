"""An event loop whose time is a number, and a run on it in which nothing fails unseen.

The rules stand in :mod:`stageflow.testing`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from contextvars import Context
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, TypeVar, TypeVarTuple

from stageflow.testing.waits import describe_tasks, noting_left

__all__ = ["Deadlock", "LeftBehind", "Livelock", "Unhandled", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_STRANGER_SECONDS = 1.0
"""How long, in real time, threads that the loop knows nothing of may take before it is called a deadlock."""


class Deadlock(AssertionError):
    """Nothing is runnable and no timer is left: what the run waits for can't happen any more."""


class Livelock(AssertionError):
    """The run took more steps than it was allowed: it is busy, but does not end."""


class LeftBehind(AssertionError):
    """The main coroutine ended before tasks that it, or something it called, had started."""


class Unhandled(AssertionError):
    """An exception that nobody looked at: of a callback, or of a task that was not awaited; or a lost coroutine."""


class _Timer(asyncio.TimerHandle):
    """A timer that knows its place among those of the same moment.

    On a real clock two timers are never set at the same instant, so the earlier one rings first. On a virtual clock
    they often are, and a heap by time alone would let them ring in any order.
    """

    __slots__ = ("order",)
    order: int
    _scheduled: bool

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        if isinstance(other, _Timer):
            return (self.when(), self.order) < (other.when(), other.order)
        return NotImplemented


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time is a number. It has no sockets, pipes, subprocesses or signal handlers.

    Most tests want :func:`run_virtual`, which makes one; it also serves as
    ``asyncio.Runner(loop_factory=VirtualLoop)``.

    Args:
        seed: Chooses the order of callbacks; ``None`` is asyncio's own order, first come, first served.
        max_steps: Callbacks that may run before it is called a livelock; > 0. The default is far above what a test
            needs, and is reached in seconds.
        thread_seconds: How long, in real seconds, to wait for calls in threads and processes while nothing else can
            run; > 0. Those that take longer count as hung: from then on time goes on without them. A test of a hung
            thread sets it low.
    """

    # What BaseEventLoop keeps for its subclasses; its stub does not list them.
    _ready: deque[asyncio.Handle]
    _scheduled: list[_Timer]
    _stopping: bool
    _timer_cancelled_count: int
    _default_executor: Executor | None

    def __init__(self, seed: int | None = None, *, max_steps: int = 1_000_000, thread_seconds: float = 30.0) -> None:
        super().__init__()
        self.seed = seed
        self.steps = 0
        self.max_steps = max_steps
        self._now = 0.0
        self._random = None if seed is None else random.Random(seed)
        self._timers_set = 0
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._thread_seconds = thread_seconds
        self._woken = threading.Condition()  # on an RLock: a signal handler may wake the loop while it holds the lock
        self._outside: set[object] = set()
        self._hung = 0
        self._pools: weakref.WeakSet[Executor] = weakref.WeakSet()
        self._threads_before = weakref.WeakSet(threading.enumerate())

    # Time

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call ``callback`` at the virtual time ``when``; those set for one moment run in the order they were set."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when, callback, args, self, context)
        timer.order = self._timers_set
        timer._scheduled = True
        self._timers_set += 1
        heappush(self._scheduled, timer)
        return timer

    def _next_time(self) -> float:
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count > len(self._scheduled) // 2:
            # Timeouts that were not needed would otherwise stay until their time comes, which it may never.
            self._scheduled = [timer for timer in self._scheduled if not timer.cancelled()]
            heapify(self._scheduled)
            self._timer_cancelled_count = 0
        while self._scheduled and self._scheduled[0].cancelled():
            heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return self._scheduled[0].when() if self._scheduled else inf

    # Steps

    def _run_once(self) -> None:
        """What ``run_forever`` repeats: find what is runnable, moving time if nothing is, and run it."""
        if not self._ready and not self._stopping and self._next_time() > self._now:
            self._move_time()
        while self._next_time() <= self._now:
            timer = heappop(self._scheduled)
            timer._scheduled = False
            self._ready.append(timer)
        if self._random is None:
            # As asyncio: what this round makes runnable runs in the next one, behind the timers that are due then.
            for _ in range(len(self._ready)):
                self._step(self._ready.popleft())
        elif self._ready:
            chosen = self._random.randrange(len(self._ready))
            handle = self._ready[chosen]
            del self._ready[chosen]
            self._step(handle)
            del handle

    def _step(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        self.steps += 1
        if self.steps > self.max_steps:
            raise Livelock(f"no end after {self.max_steps} steps, at {self._now} s\n{describe_tasks(self)}")
        handle._run()
        del handle  # else the traceback of an exception, which knows these frames, keeps the task that failed alive

    def _move_time(self) -> None:
        if self._outside:
            if self._wait_outside(self._thread_seconds):
                return
            self._hung += len(self._outside)
            self._outside.clear()
        moment = self._next_time()
        if moment < inf:
            self._now = moment
        elif not (self._strangers() and self._wait_outside(_STRANGER_SECONDS)):
            hung = f"{self._hung} calls in threads did not return\n" if self._hung else ""
            raise Deadlock(f"nothing can run any more, at {self._now} s\n{hung}{describe_tasks(self)}")

    # Threads and processes

    @contextmanager
    def real_work(self) -> Iterator[None]:
        """While this is open, time does not move: something the loop knows nothing of is at work and will wake it.

        Calls by ``run_in_executor`` and ``asyncio.to_thread`` need no such word. Futures of other makers do, and
        threads that call ``call_soon_threadsafe``.
        """
        token = object()
        self._outside.add(token)
        try:
            yield
        finally:
            self._outside.discard(token)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Call ``func(*args)`` in the pool. Until the future is done, or cancelled, time does not move."""
        future = super().run_in_executor(executor, func, *args)
        pool = executor or self._default_executor
        assert pool is not None
        self._pools.add(pool)
        self._outside.add(future)
        future.add_done_callback(self._outside.discard)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the default pool to end. ``timeout`` is not looked at: it would be virtual, and ring at once."""
        with self.real_work():
            await super().shutdown_default_executor()

    def _write_to_self(self) -> None:
        with self._woken:
            self._woken.notify_all()

    def _wait_outside(self, seconds: float) -> bool:
        with self._woken:
            return self._woken.wait_for(lambda: bool(self._ready), seconds)

    def _strangers(self) -> bool:
        """Are there threads that may yet wake the loop, other than idle ones of pools whose calls are counted?"""
        pooled = {thread for pool in self._pools for thread in getattr(pool, "_threads", ())}
        return any(thread not in self._threads_before and thread not in pooled for thread in threading.enumerate())

    def _process_events(self, event_list: Any) -> None:
        """There are none: nothing is ever selected on."""

    # Tasks

    def create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """As asyncio's; the loop remembers the task, to tell at the end whether somebody looked at its exception."""
        task = super().create_task(coro, **kwargs)
        self._tasks.add(task)
        return task

    def unseen_errors(self) -> Iterator[tuple[str, BaseException]]:
        """The tasks that failed and were not asked for their exception, with it; asking clears them."""
        for task in list(self._tasks):
            # The flag is what asyncio's own "exception was never retrieved" goes by, but that is said only when the
            # task is freed, which may be after the test.
            if task.done() and getattr(task, "_log_traceback", False):
                error = task.exception()
                assert error is not None
                yield f"{task.get_name()} failed, and nobody awaited it", error


def run_virtual(
    main: Coroutine[Any, Any, T], *, seed: int | None = None, max_steps: int = 1_000_000, thread_seconds: float = 30.0
) -> T:
    """Run ``main`` on a fresh :class:`VirtualLoop` and return its result.

    Whatever ``main`` raises goes on, with the seed, the virtual time and the number of steps in its notes. What it left
    running is cancelled before this returns or raises.

    Args:
        main: What to run, as for ``asyncio.run``.
        seed: As for the loop; ``for seed in range(300)`` explores 300 schedules.
        max_steps: As for the loop.
        thread_seconds: As for the loop.

    Raises:
        Deadlock: Nothing could run any more, and ``main`` had not ended.
        Livelock: ``max_steps`` did not suffice.
        LeftBehind: ``main`` ended before a task did that was started in it, cancelled or not.
        Unhandled: A callback raised, a task failed that nobody awaited, or a coroutine was made and never awaited.
    """
    loop = VirtualLoop(seed, max_steps=max_steps, thread_seconds=thread_seconds)
    unseen: list[tuple[str, BaseException | None]] = []
    left: list[str] = []
    loop.set_exception_handler(lambda _, context: unseen.append((context["message"], context.get("exception"))))
    try:
        with _lost_coroutines(unseen):
            try:
                result = loop.run_until_complete(noting_left(main, left))
            finally:
                moment = f"at {loop.time()} virtual seconds, step {loop.steps}, seed={seed}"
                _shut_down(loop)
                unseen.extend(loop.unseen_errors())
        if left:
            raise LeftBehind("main ended before these tasks:\n" + "\n".join(left))
        if unseen:
            raise Unhandled("\n".join(_unseen_lines(unseen))) from unseen[0][1]
    except BaseException as error:
        error.add_note(moment)
        if not isinstance(error, Unhandled):
            for line in _unseen_lines(unseen):
                error.add_note(f"besides: {line}")
        raise
    finally:
        loop.close()
    return result


def _shut_down(loop: VirtualLoop) -> None:
    """Cancel what is left and close what is open, as ``asyncio.run`` does, but never for ever."""
    loop.max_steps += loop.steps
    # A task that refuses to be cancelled was reported already: as a deadlock, as a livelock or as left behind.
    with suppress(Deadlock, Livelock):
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
            for task in tasks:
                if not task.cancelled():
                    task.exception()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())


@contextmanager
def _lost_coroutines(unseen: list[tuple[str, BaseException | None]]) -> Iterator[None]:
    """Add to ``unseen`` the coroutines that were made but never awaited, of which Python only warns."""
    hook = sys.unraisablehook

    def heard(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, RuntimeWarning) and "was never awaited" in str(unraisable.exc_value):
            unseen.append((str(unraisable.exc_value), None))
        else:
            hook(unraisable)

    sys.unraisablehook = heard
    try:
        with warnings.catch_warnings():
            # Raised where a coroutine is freed, nobody can catch it: it ends in the hook.
            warnings.filterwarnings("error", ".*was never awaited", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _unseen_lines(unseen: list[tuple[str, BaseException | None]]) -> list[str]:
    return [message if error is None else f"{message}: {error!r}" for message, error in unseen]
