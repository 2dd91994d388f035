"""One thread beside the event loop, which does one thing after another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

__all__ = ["WorkThread"]


class _Call(NamedTuple):
    """What is to be done, and whose answer it is."""

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class WorkThread(Executor):
    """Does what the event loop hands it in one daemon thread, in turn.

    For ``loop.run_in_executor``, so that a loop which keeps account of calls in threads knows of these. What is handed
    over is answered by a future of the loop itself: a pool of ``concurrent.futures`` makes a second one of each call,
    with a condition of its own, and that costs as much again as waking the thread and the loop.

    Args:
        name: The thread's. It is started with the first call.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        # Under this name a loop looks for the threads of a pool, to tell them from strangers.
        self._threads = {self._thread}

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have ``work`` done after all that was submitted before; from the loop only.

        Returns:
            A future of the running loop, which ``run_in_executor`` hands on as it is.
        """
        assert not kwargs, "run_in_executor has none"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._calls.put(_Call(work, args, future, loop))
        if self._thread.ident is None:
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; with ``wait``, return when what was submitted is done."""
        self._calls.put(None)
        if wait and self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            answer: Any = None
            error: BaseException | None = None
            try:
                answer = call.work(*call.arguments)
            except BaseException as raised:  # noqa: BLE001  # handed over, and raised where it is awaited
                error = raised
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                call.loop.call_soon_threadsafe(_settle, call.future, answer, error)
            del call, answer, error  # or they would be kept until there is something to do again


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():  # whoever waited for it was cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
