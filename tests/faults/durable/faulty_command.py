"""The ``stageflow`` command in a process that dies at a moment of its choice, or writes to a disk that fails.

A script for the tests, told by the environment what shall go wrong:

* ``KILL_AT="commit written:3"``: the process kills itself when that moment comes for the third time;
* ``TELL_OPENING=5``: a byte is written to that descriptor when the outputs are about to be opened;
* ``FAIL_SYNC=3``: the third sync of a file fails with EIO, and every later one succeeds, as on Linux;
* ``SHORT_WRITES=1``: each write takes one byte of what it is given;
* ``KEEP_TAILS=1``: what no commit covers is not cut off. That is a fault of stageflow's, for the tests of the tests.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from typing import Any

from stageflow.cli import main
from stageflow.ledger.disk import Disk
from stageflow.ledger.writer import LedgerOutput


def kill_at(moment: str, nth: int) -> None:
    left = nth

    def reached(self: Disk, name: str) -> None:
        nonlocal left
        left -= name == moment
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Disk.reached = reached  # type: ignore[method-assign]


def tell_opening(descriptor: int) -> None:
    open_ = LedgerOutput.open

    def telling(self: LedgerOutput, request: Any) -> Any:
        os.write(descriptor, b".")
        return open_(self, request)

    LedgerOutput.open = telling  # type: ignore[method-assign]


def fail_sync(nth: int) -> None:
    sync, calls = Disk.sync, itertools.count(1)

    def failing(self: Disk, descriptor: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self, descriptor)

    Disk.sync = failing  # type: ignore[method-assign]


def write_shortly() -> None:
    def write(self: Disk, descriptor: int, data: Any) -> int:
        return os.write(descriptor, data[:1])

    Disk.write = write  # type: ignore[method-assign]


def keep_tails() -> None:
    def truncate(self: Disk, descriptor: int, size: int) -> None: ...

    Disk.truncate = truncate  # type: ignore[method-assign]


if __name__ == "__main__":
    if wanted := os.environ.pop("KILL_AT", None):
        moment, _, nth = wanted.partition(":")
        kill_at(moment, int(nth))
    if wanted := os.environ.pop("TELL_OPENING", None):
        tell_opening(int(wanted))
    if wanted := os.environ.pop("FAIL_SYNC", None):
        fail_sync(int(wanted))
    if os.environ.pop("SHORT_WRITES", None):
        write_shortly()
    if os.environ.pop("KEEP_TAILS", None):
        keep_tails()
    main()
