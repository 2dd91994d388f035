"""Blocking file work beside the event loop, in daemon threads.

Daemon threads, because a read from a terminal or a FIFO may never return: the interpreter waits at its exit for
every other kind of thread, the default executor's included, so Ctrl-C would hang.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Generic, TypeVar

__all__ = ["BlockReader", "in_thread"]

T = TypeVar("T")


async def in_thread(func: Callable[[], T]) -> T:
    """Call ``func``, which may block, in a daemon thread of its own and wait for what it returns.

    A cancellation leaves the thread behind.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():  # its waiter was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = func()
        except Exception as raised:  # noqa: BLE001  # handed over, and raised where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="stageflow-file", daemon=True).start()
    return await future


class BlockReader(Generic[T]):
    """Takes what a generator yields in a daemon thread, at most ``ahead`` blocks ahead of who receives them.

    The thread starts with the first :meth:`receive`; there the generator is made, run and closed. What it raises is
    raised by :meth:`receive`, after the blocks before it.

    Args:
        blocks: Makes the generator. It may block, as the opening of a FIFO does.
        ahead: Blocks that may wait to be received; two let the disk work while the loop decodes.
    """

    def __init__(self, blocks: Callable[[], Generator[T]], *, ahead: int = 2) -> None:
        self._make = blocks
        self._blocks: deque[T | Exception | None] = deque()
        self._room = threading.Semaphore(ahead)
        self._arrived = asyncio.Event()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def receive(self) -> T | None:
        """Wait for the next block; ``None`` at the end. A cancelled wait loses nothing: it is there next time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, name="stageflow-reader", daemon=True).start()
        while not self._blocks:
            self._arrived.clear()
            await self._arrived.wait()
        block = self._blocks.popleft()
        self._room.release()
        if isinstance(block, Exception):
            raise block
        return block

    def stop(self) -> None:
        """Tell the thread to end; it does so at once unless it is blocked in a read."""
        self._stopped = True
        self._room.release()

    def _run(self) -> None:
        try:
            with closing(self._make()) as blocks:
                self._pump(blocks)
        except Exception as error:  # noqa: BLE001  # handed over, and raised where the next block is awaited
            self._hand_over(error)

    def _pump(self, blocks: Generator[T]) -> None:
        block: T | None
        while True:
            self._room.acquire()
            if self._stopped:
                return
            self._hand_over(block := next(blocks, None))
            if block is None:
                return

    def _hand_over(self, block: T | Exception | None) -> None:
        self._blocks.append(block)
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop was closed: nobody receives any more
            self._loop.call_soon_threadsafe(self._arrived.set)
