"""Output that is no regular file: standard output, a FIFO, a device. Bytes go out as they are taken, and stay out."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
from typing import BinaryIO

from stageflow.adapters.jsonl.threads import in_thread
from stageflow.errors import StorageError

__all__ = ["BrokenOutput", "StreamOutput"]

# What a pipe that polls as writable takes without blocking.
_CHUNK_BYTES = select.PIPE_BUF


class BrokenOutput(StorageError):
    """Whoever read the output went away: ``... -o - | head -1``."""

    exit_code = 141


class StreamOutput:
    """Writes to a descriptor or a binary stream without blocking the event loop on a slow reader.

    The descriptor stays in blocking mode, because its mode is shared with other processes: instead, it is asked before
    each chunk whether it would take one.

    Args:
        name: What messages call it.
        target: A path to open for writing, an open descriptor, or a binary stream. Only the first is closed in the end.
    """

    def __init__(self, name: str, target: str | int | BinaryIO) -> None:
        self._name = name
        self._target = target
        self._stream: BinaryIO | None = None
        self._descriptor: int | None = None
        self._polls = False
        self._records = 0
        if isinstance(target, int):
            self._use(target)
        elif not isinstance(target, str):
            try:
                target.flush()
                self._use(target.fileno())
            except OSError:  # a stream in memory has no descriptor
                self._stream = target

    async def write(self, data: bytes, records: int) -> None:
        """Write all of ``data``; waits for the reader.

        Args:
            records: How many lines these are.

        Raises:
            BrokenOutput: Nobody reads any more.
            StorageError: It can't be written.
        """
        sent = 0
        try:
            if self._stream is not None:
                self._stream.write(data)
                sent = len(data)
            elif self._descriptor is None:
                await self._open()
            while sent < len(data):
                sent += await self._send(data[sent : sent + _CHUNK_BYTES] if self._polls else data[sent:])
        except OSError as error:
            raise self._failure(error, self._records + data[:sent].count(b"\n")) from error
        self._records += records

    async def close(self, *, complete: bool) -> None:
        """Flush, and close what was opened here. A FIFO that got nothing is opened once, for its reader to see the end.

        Raises:
            StorageError: It can't be flushed.
        """
        try:
            if self._stream is not None:
                self._stream.flush()
            elif isinstance(self._target, str):
                if self._descriptor is None and complete:
                    await self._open()
                if self._descriptor is not None:
                    os.close(self._descriptor)
        except OSError as error:
            raise self._failure(error, self._records) from error

    async def _open(self) -> None:
        target = self._target
        assert isinstance(target, str)
        # In a thread: a FIFO opens when somebody reads from it.
        self._use(await in_thread(lambda: os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)))

    def _use(self, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        self._descriptor = descriptor
        self._polls = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)

    async def _send(self, chunk: bytes) -> int:
        assert self._descriptor is not None
        if self._polls and not _would_take(self._descriptor):
            await _until_writable(self._descriptor)
        return os.write(self._descriptor, chunk)

    def _failure(self, error: OSError, records: int) -> StorageError:
        if error.errno == errno.EPIPE:
            return BrokenOutput(f"{self._name} closed after {records} records", hint="use -o FILE to be able to resume")
        return StorageError(f"cannot write {self._name}: {error.strerror}")


def _would_take(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


async def _until_writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(descriptor, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(descriptor)
