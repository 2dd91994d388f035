"""A disk in memory that loses power, kills the process, is full, or reports errors, at any numbered operation.

What a loss of power leaves:

* Of a file, all that was synced. Of the rest, sector by sector (512 bytes): what was written, what was there before,
  zeros, the first half of what was written, or garbage. Bytes that were synced and not written since are never hurt.
  The length is anything between the one that was synced and the newest.
* Of the names in a folder, those that a sync of the folder made durable, and the first few of the changes since, in
  their order: a journal keeps that, and no more.

A kill leaves all that was written. In the middle of an operation, part of it was done.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from stageflow.ledger.disk import Disk

__all__ = ["SECTOR_BYTES", "Crash", "SimulatedDisk"]

SECTOR_BYTES = 512

Names = dict[str, "_File"]
Change = Callable[[Names], None]


class Crash(BaseException):
    """The process is gone; nothing it does from here on has an effect."""


@dataclass(eq=False)
class _File:
    mode: int
    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: set[int] = field(default_factory=set)

    def append(self, data: bytes) -> None:
        start = len(self.live)
        self.live += data
        self.dirty.update(range(start // SECTOR_BYTES, (len(self.live) - 1) // SECTOR_BYTES + 1) if data else ())

    def sync(self) -> None:
        self.durable = bytes(self.live)
        self.dirty.clear()

    def lose_power(self, rng: random.Random) -> None:
        shortest, longest = sorted((len(self.durable), len(self.live)))
        length = rng.choice((shortest, longest, rng.randint(shortest, longest)))
        left = bytearray(self.durable[:length].ljust(length, b"\0"))
        for sector in sorted(self.dirty):
            start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, length)
            if start < end:
                left[start:end] = self._sector(rng, start, end)
        self.live, self.durable = left, bytes(left)
        self.dirty.clear()

    def _sector(self, rng: random.Random, start: int, end: int) -> bytes:
        size = end - start
        written = bytes(self.live[start:end]).ljust(size, b"\0")
        before = self.durable[start:end].ljust(size, b"\0")
        kept = max(0, min(len(self.durable) - start, size))  # bytes that a disk may not hurt: old or new, and whole
        fate = rng.choices(("written", "before", "zeros", "torn", "garbage"), (5, 3, 1, 1, 1))[0]
        if fate == "written":
            return written
        if fate == "zeros":
            return before[:kept].ljust(size, b"\0")
        if fate == "torn":
            half = rng.randint(0, size)
            return written[:half] + before[half:]
        if fate == "garbage":
            return written[:kept] + rng.randbytes(size - kept)
        return before


class SimulatedDisk(Disk):
    """Everything a ledger asks of a file system, in memory.

    Args:
        rng: Decides what a crash leaves, and how much of an operation was done before it.

    Attributes:
        operations: How many were asked for that change something, and moments that were reached.
        crash_at: The number of the operation in which to crash; 0 for never.
        capacity: Bytes that all files together may have; ``None`` is no bound.
        largest_file: Bytes that one file may have.
        largest_write: Bytes that one write takes.
        largest_read: Bytes that one read gives.
        failing_syncs: How many of the next syncs report an error.
        calls: What was asked for, by name, in order.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self.operations = 0
        self.crash_at = 0
        self.capacity: int | None = None
        self.largest_file: int | None = None
        self.largest_write: int | None = None
        self.largest_read: int | None = None
        self.failing_syncs = 0
        self.calls: list[str] = []
        self.crashed = False
        self._rng = rng or random.Random(0)
        self._names: Names = {}
        self._durable: Names = {}
        self._changes: dict[str, list[Change]] = {}
        self._open: dict[int, _File] = {}
        self._locks: dict[int, _File] = {}
        self._next = 100

    # For a test

    def contents(self) -> dict[str, bytes]:
        """All files by path."""
        return {path: bytes(file.live) for path, file in self._names.items()}

    def put(self, path: str, data: bytes) -> None:
        """Write a file durably, from outside."""
        file = self._names.setdefault(path, _File(0o644))
        file.live = bytearray(data)
        file.sync()
        self._durable[path] = file

    def delete(self, path: str) -> None:
        """Remove a file durably, from outside."""
        self._names.pop(path, None)
        self._durable.pop(path, None)

    @property
    def descriptors(self) -> int:
        """How many are open."""
        return len(self._open)

    def restart(self, *, power_lost: bool) -> None:
        """Begin anew after a crash."""
        if power_lost:
            for directory in sorted(self._changes):
                changes = self._changes[directory]
                for change in changes[: self._rng.randint(0, len(changes))]:
                    change(self._durable)
            self._names = dict(self._durable)
            for file in dict.fromkeys(self._names.values()):
                file.lose_power(self._rng)
            self._changes.clear()
        self._open.clear()
        self._locks.clear()
        self.crashed, self.crash_at = False, 0

    # Crashing

    def _step(self, name: str) -> bool:
        """Count an operation; True where the process ends in it."""
        if self.crashed:
            raise Crash
        self.operations += 1
        self.calls.append(name)
        return self.operations == self.crash_at

    def _crash(self) -> None:
        self.crashed = True
        raise Crash

    def _change(self, name: str, directory: str, change: Change) -> None:
        ends = self._step(name)
        if not ends or self._rng.random() < 0.5:
            change(self._names)
            self._changes.setdefault(directory, []).append(change)
        if ends:
            self._crash()

    def reached(self, moment: str) -> None:
        if self._step(moment):
            self._crash()

    # Names

    def create(self, path: str, mode: int = 0o600) -> int:
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        file = _File(mode)
        self._change("create", os.path.dirname(path), lambda names: names.__setitem__(path, file))
        return self._descriptor(file)

    def open(self, path: str, *, write: bool = True) -> int:
        if self.crashed:
            raise Crash
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._descriptor(self._names[path])

    def _descriptor(self, file: _File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next

    def close(self, descriptor: int) -> None:
        if self.crashed:
            raise Crash
        del self._open[descriptor]
        self._locks.pop(descriptor, None)

    def lock(self, descriptor: int) -> bool:
        if self._open[descriptor] in self._locks.values():
            return False
        self._locks[descriptor] = self._open[descriptor]
        return True

    def is_at(self, descriptor: int, path: str) -> bool:
        return self._names.get(path) is self._open[descriptor]

    def exists(self, path: str) -> bool:
        return path in self._names

    def list(self, directory: str) -> list[str]:
        return [os.path.basename(path) for path in self._names if os.path.dirname(path) == directory]

    def rename(self, old: str, new: str) -> None:
        def change(names: Names) -> None:
            names[new] = names.pop(old)

        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        self._change("rename", os.path.dirname(new), change)

    def remove(self, path: str) -> None:
        if self.crashed:
            raise Crash
        if path in self._names:
            self._change("remove", os.path.dirname(path), lambda names: names.__delitem__(path))

    def sync_directory(self, path: str) -> None:
        ends = self._step("sync_directory")
        self._fail_sync()
        if ends:
            self._crash()
        for change in self._changes.pop(path, ()):
            change(self._durable)

    def try_directory(self, path: str) -> None:
        pass

    def scratch(self, directory: str) -> BinaryIO:
        return tempfile.TemporaryFile(buffering=0)

    # Contents

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        file, data = self._open[descriptor], bytes(data)
        ends = self._step("write")
        if ends:
            file.append(data[: self._rng.randint(0, len(data))])
            self._crash()
        room = len(data) if self.largest_write is None else min(len(data), self.largest_write)
        if self.capacity is not None:
            used = sum(len(each.live) for each in dict.fromkeys((*self._names.values(), *self._open.values())))
            room = min(room, max(0, self.capacity - used))
        if data and room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.largest_file is not None:
            room = min(room, self.largest_file - len(file.live))
            if data and room <= 0:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        file.append(data[:room])
        return room

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        if self.crashed:
            raise Crash
        if self.largest_read is not None:
            count = min(count, self.largest_read)
        return bytes(self._open[descriptor].live[offset : offset + count])

    def size(self, descriptor: int) -> int:
        return len(self._open[descriptor].live)

    def mode(self, descriptor: int) -> int:
        return self._open[descriptor].mode

    def truncate(self, descriptor: int, size: int) -> None:
        file = self._open[descriptor]
        ends = self._step("truncate")
        if not ends or self._rng.random() < 0.5:
            del file.live[size:]
        if ends:
            self._crash()

    def sync(self, descriptor: int) -> None:
        ends = self._step("sync")
        self._fail_sync()
        if not ends or self._rng.random() < 0.5:
            self._open[descriptor].sync()
        if ends:
            self._crash()

    def _fail_sync(self) -> None:
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
