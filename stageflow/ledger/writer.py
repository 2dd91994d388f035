"""The ledger as the output of a run: one writer thread, grouped commits, and a sync every so often.

Everything that touches the disk happens in the one thread, one thing after another. The event loop hands it a commit
and waits without blocking; what settles meanwhile makes up the next commit. So at a low rate every record is written at
once, and at a high one groups grow by themselves. A sync takes its turn among the commits: the loop never waits in one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, TypeVar

from stageflow.commit import Commit, LetterPlace, OpenRequest, Resumption
from stageflow.errors import StorageError
from stageflow.ledger.disk import Disk
from stageflow.ledger.finish import Files, Stopped, final_line, finish
from stageflow.ledger.names import Names
from stageflow.ledger.opening import open_store, read_letter
from stageflow.ledger.store import OutOfSpace, Store
from stageflow.ledger.thread import WorkThread
from stageflow.protocols import Form

__all__ = ["Fsync", "LedgerOutput"]

T = TypeVar("T")

Fsync = Literal["interval", "group", "off"]

_SPACE_RETRY: Final = 5.0
"""Seconds between two tries to write to a full disk."""


class LedgerOutput:
    """Writes commits durably to ``path.partial``, a file of dead letters and ``path.ledger``.

    Args:
        path: The output as the user calls it.
        dead: The file of dead letters; ``None`` where they are kept elsewhere.
        fsync: ``"interval"`` syncs when something was written and the last sync is ``interval`` seconds ago;
            ``"group"`` after every commit; ``"off"`` only at the end, which survives a kill but no loss of power.
        disk_full_wait: Seconds to wait for space on a full disk before the run ends.
        tell: Tells the user something; called on the loop.
        form: What is made of the results in the end; ``None`` leaves them JSON lines.
        failed: Called on the loop when the disk reports an error between two commits; the next one would raise it.
    """

    def __init__(
        self,
        path: str,
        *,
        dead: str | None,
        fsync: Fsync = "interval",
        interval: float = 1.0,
        disk_full_wait: float = 600.0,
        tell: Callable[[str], None] = lambda text: None,
        failed: Callable[[StorageError], None] = lambda error: None,
        form: Form | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._names = Names(path, dead, made=form is not None)
        self._form = form
        self._disk = disk or Disk()
        self._fsync = fsync
        self._interval = interval
        self._disk_full_wait = disk_full_wait
        self._tell = tell
        self._failed = failed
        self._order = "input"
        self._store: Store | None = None
        self._thread: WorkThread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._hurry = threading.Event()  # wait for space no longer
        self._stop = threading.Event()  # end finishing early
        self._syncing: asyncio.Task[None] | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def path(self) -> str:
        """The output, as the user calls it."""
        return self._names.shown

    def open(self, request: OpenRequest) -> Resumption:
        """Begin the run or go on with it; blocking, for as long as the ledger takes to read.

        Raises:
            RequestError, OutputLocked, StateMismatch, StorageError: As :func:`open_store`.
        """
        self._order = request.order
        self._store, resumption = open_store(self._disk, self._names, request, self._form)
        return resumption

    def read_letter(self, place: LetterPlace) -> bytes:
        """The line of a dead letter."""
        return read_letter(self._open, place)

    @property
    def _open(self) -> Store:
        assert self._store is not None, "the ledger is not open"
        return self._store

    async def write(self, commit: Commit) -> None:
        """Write a commit; return when its line is in the ledger.

        A full disk holds the commit, and with it the records that wait for their turn, until there is room.

        Raises:
            StorageError: It can't be written; the files end with the last whole commit.
        """
        await self._in_thread(lambda: self._append(commit))
        if self._fsync == "interval" and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._sync_soon)

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """End the run: finish the files if it is ``complete``, else leave them for the next run to go on with.

        A run that wrote nothing, and spent nothing, leaves nothing behind. A cancellation ends a long copy early; the
        next run goes on.

        Args:
            complete: Everything that was asked for has settled.
            ended: That was the whole input.

        Raises:
            StorageError: That failed; nothing that was committed is lost.
        """
        if self._store is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._closing = True
        self._stop.clear()  # what was meant for a commit
        try:
            await self._in_thread(lambda: self._end(complete, ended))
        finally:
            self._hurry.set()
            if self._thread is not None:
                self._thread.shutdown(wait=True)
            self._open.close()
            self._store = None

    def give_up_waiting(self) -> None:
        """Wait for space on a full disk no longer; where the files are being finished, leave that to the next run."""
        self._hurry.set()
        self._stop.set()

    # On the loop

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = WorkThread("stageflow-ledger")
        self._loop = asyncio.get_running_loop()
        future = self._loop.run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # What the thread has begun it ends: half a commit would be none.
            self.give_up_waiting()
            future.add_done_callback(_retrieve)
            await asyncio.wait([future])
            raise

    def _sync_soon(self) -> None:
        self._timer = None
        self._syncing = asyncio.create_task(self._sync(), name="ledger sync")

    async def _sync(self) -> None:
        if self._closing:
            return  # behind the last line of a run nothing may follow
        try:
            await self._in_thread(self._open.sync)
        except OutOfSpace:
            pass  # there is no room for the marker; what it would say is true all the same
        except StorageError as error:
            self._failed(error)

    # In the thread

    def _append(self, commit: Commit) -> None:
        store = self._open
        deadline: float | None = None
        while True:
            try:
                store.append(commit)
                break
            except OutOfSpace as full:
                if deadline is None:
                    deadline = time.monotonic() + self._disk_full_wait
                    self._say(f"{full}, waiting up to {self._disk_full_wait:g} s for space")
                left = deadline - time.monotonic()
                if left <= 0 or self._hurry.wait(min(_SPACE_RETRY, left)):
                    raise
        if self._fsync == "group":
            with suppress(OutOfSpace):  # the commit is durable then; only the marker is missing
                store.sync()

    def _say(self, text: str) -> None:
        assert self._loop is not None, "asked for from the loop"
        self._loop.call_soon_threadsafe(self._tell, text)

    def _leave(self) -> None:
        """End an epoch that is not complete, in as good order as can be."""
        store = self._open
        if store.state.epoch == 1 and not store.state.commits and not store.state.spend.most:
            if self._names.letters is not None and store.letters is not None:  # made, and then there was no room
                self._disk.remove(self._names.letters)
            self._disk.remove(self._names.partial)
            self._disk.remove(self._names.ledger)
        elif store.failure is None:
            with suppress(OutOfSpace):  # the files are synced then; only the marker is missing
                store.sync(clean=True)

    def _end(self, complete: bool, ended: bool) -> None:
        store = self._open
        state = store.state
        if not complete:
            self._leave()
            return
        store.sync()
        names, stopped = self._names, self._stop.is_set
        files = Files(self._disk, names, store.ledger, store.results, store.letters, stopped, self._form)
        if any(self._disk.exists(path) for path in (names.output, names.made) if path is not None):
            raise StorageError(
                f"{self._names.shown} appeared during the run; the results are in {self._names.shown}.partial",
                hint="move it away",
            )
        try:
            store.complete(final_line(files, state, order=self._order, ended=ended))
            finish(files, state)
            for note in files.notes:
                self._say(note)
        except Stopped:
            raise StorageError(
                f"{self._names.shown} is not in order yet: stopped before that was done; nothing is lost",
                hint="run the same command again",
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {self._names.shown}: {error.strerror}; nothing is lost") from error


def _retrieve(future: asyncio.Future[T]) -> None:
    """Take notice of what a call came to whose caller was cancelled; unnoticed, the loop would log it."""
    if not future.cancelled():
        future.exception()
