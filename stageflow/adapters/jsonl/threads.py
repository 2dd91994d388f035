"""Blocking file work beside the event loop, in daemon threads.

Daemon threads, because a read from a terminal or a FIFO may never return: the interpreter waits at its exit for
every other kind of thread, the default executor's included, so Ctrl-C would hang.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["BlockReader", "in_thread"]

T = TypeVar("T")


async def in_thread(func: Callable[[], T], *, stop: threading.Event | None = None) -> T:
    """Call ``func`` in a daemon thread of its own and wait for what it returns.

    Args:
        func: What to call; it may block.
        stop: Set when the wait is cancelled; ``func`` looks at it, ends early, and the cancellation waits for that.
            Without it a cancellation leaves the thread behind.
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
    if stop is None:
        return await future
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with suppress(Exception):
            await future
        raise


class BlockReader:
    """Reads a file block by block in a daemon thread, at most ``ahead`` blocks ahead of who receives them.

    The thread starts with the first :meth:`receive`. What it raises, in ``open_file`` or while reading, is raised by
    :meth:`receive`, after the blocks before it.

    Args:
        open_file: Opens the file and returns its descriptor, and whether it is to be closed in the end. It may
            block, as the opening of a FIFO does.
        block_bytes: The most that is read at once; a pipe gives what it has.
        ahead: Blocks that may wait to be received; two let the disk work while the loop decodes.
    """

    def __init__(self, open_file: Callable[[], tuple[int, bool]], block_bytes: int, *, ahead: int = 2) -> None:
        self._open_file = open_file
        self._block_bytes = block_bytes
        self._blocks: deque[bytes | Exception] = deque()
        self._room = threading.Semaphore(ahead)
        self._arrived = asyncio.Event()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def receive(self) -> bytes:
        """Wait for the next block; ``b""`` at the end. A cancelled wait loses nothing: the block is there next time."""
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
            descriptor, owned = self._open_file()
            try:
                self._pump(descriptor)
            finally:
                if owned:
                    os.close(descriptor)
        except Exception as error:  # noqa: BLE001  # handed over, and raised where the next block is awaited
            self._hand_over(error)

    def _pump(self, descriptor: int) -> None:
        block = b"-"
        while block:
            self._room.acquire()
            if self._stopped:
                return
            block = os.read(descriptor, self._block_bytes)
            self._hand_over(block)

    def _hand_over(self, block: bytes | Exception) -> None:
        self._blocks.append(block)
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop was closed: nobody receives any more
            self._loop.call_soon_threadsafe(self._arrived.set)
