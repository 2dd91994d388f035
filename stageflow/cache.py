"""Results of earlier calls, kept in one SQLite file that runs share.

* Whoever asks or keeps waits for a thread, which deals with all that has come up meanwhile in one transaction: so at
  low rates each answer is there at once, and at high rates a transaction is of many.
* What :meth:`ResultCache.keep` has returned for survives a kill of the process: the file is in write-ahead mode. A loss
  of power may take the last of it, which is then paid for again.
* A file that fails while a run is on never ends that run: it is told of once, and from there on nothing is found.

SQLite locks the file between processes; one that waits longer than :data:`BUSY_SECONDS` for another gives up the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from stageflow.errors import RequestError

if TYPE_CHECKING:
    import sqlite3

__all__ = ["BUSY_SECONDS", "ResultCache", "check"]

BUSY_SECONDS: Final = 30.0

_APPLICATION: Final = 0x73666C77
"""By which SQLite files of ours are told from others."""
_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS results"
    " (key BLOB PRIMARY KEY, stage TEXT NOT NULL, value BLOB NOT NULL, kept_at REAL NOT NULL) WITHOUT ROWID"
)
_IN_ONE_QUERY: Final = 500
"""Keys that are asked for at once; SQLite takes some thousand parameters."""

_RETRY_SECONDS: Final = 0.02
"""Between two attempts to open a file that somebody else is making."""

_Row = tuple[bytes, str, bytes, float]


class ResultCache:
    """A file of results.

    Args:
        path: Where it is; it is made where there is none, readable by its owner only. So is its folder.
        warn: Told once, where the file fails.
    """

    def __init__(self, path: str, *, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn = warn
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "stageflow-cache")
        self._asked: list[tuple[bytes, asyncio.Future[bytes | None]]] = []
        self._kept: list[tuple[_Row, asyncio.Future[None]]] = []
        self._working: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Open the file. Blocks, for long only where another process is making it.

        Raises:
            RequestError: It can't be opened, or is something else.
        """
        self._database = _opened(self.path)

    async def find(self, key: bytes) -> bytes | None:
        """What was kept under a key; ``None`` where nothing was, or the file has failed."""
        if self._database is None:
            return None
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._asked.append((key, answer))
        self._work()
        return await answer

    async def keep(self, key: bytes, stage: str, value: bytes) -> None:
        """Keep a value, and return when it would survive a kill of this process."""
        if self._database is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kept.append(((key, stage, value, time.time()), done))
        self._work()
        # What was paid for is kept, whatever becomes of whoever waits.
        await asyncio.shield(done)

    async def close(self) -> None:
        """Finish what was begun, and close the file."""
        while self._working is not None:
            await asyncio.wait([self._working])
        database, self._database = self._database, None
        if database is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, _close, database)
        self._thread.shutdown(wait=False)

    def _work(self) -> None:
        if self._working is None:
            self._working = asyncio.create_task(self._work_off(), name="cache")

    async def _work_off(self) -> None:
        try:
            while self._asked or self._kept:
                asked, self._asked = self._asked, []
                kept, self._kept = self._kept, []
                found: dict[bytes, bytes] = {}
                try:
                    found = await self._turn([key for key, _ in asked], [row for row, _ in kept])
                finally:  # nobody waits for ever
                    for key, answer in asked:
                        if not answer.done():
                            answer.set_result(found.get(key))
                    for _, done in kept:
                        if not done.done():
                            done.set_result(None)
        finally:
            self._working = None

    async def _turn(self, keys: Sequence[bytes], rows: Sequence[_Row]) -> dict[bytes, bytes]:
        if self._database is None:
            return {}
        import sqlite3

        database = self._database
        turn = asyncio.get_running_loop().run_in_executor(self._thread, _transact, database, keys, rows)
        try:
            return await turn
        except sqlite3.Error as error:
            self._database = None
            self._warn(f"the cache {self.path} failed: {error}; the run goes on without it")
            await asyncio.get_running_loop().run_in_executor(self._thread, _close, database)
            return {}


def check(path: str) -> None:
    """Make a cache where there is none, and refuse what is something else. Blocks.

    Raises:
        RequestError: It can't be opened, or is something else.
    """
    _close(_opened(path))


def _opened(path: str) -> sqlite3.Connection:
    try:
        import sqlite3  # not for runs without a cache
    except ImportError as error:
        raise _refusal(path, "this Python was built without SQLite") from error
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise _refusal(path, reason) from error
    try:
        _prepare(database, path)
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise _refusal(path, error) from error
        if isinstance(error, sqlite3.Error):
            raise _stranger(path, error) from error
        raise
    return database


def _refusal(path: str, why: object) -> RequestError:
    return RequestError(f"cannot open the cache {path}: {why}", hint="choose another --cache, or run with --no-cache")


def _stranger(path: str, why: object) -> RequestError:
    return RequestError(f"{path} is no cache of results: {why}", hint="choose another --cache, or move it away")


def _prepare(database: sqlite3.Connection, path: str) -> None:
    """Make a new file a cache, and make sure that an older one is."""
    import sqlite3

    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            is_new = _is_new(database, path)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if is_new:
                _make(database)
            return
        except sqlite3.OperationalError as error:
            # To change the mode of a new file SQLite does not wait for whoever does the same.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def _is_new(database: sqlite3.Connection, path: str) -> bool:
    with _transaction(database, "DEFERRED"):  # or somebody may make it between the questions
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != _APPLICATION and tables:
        raise _stranger(path, "it is a database of something else")
    if application == _APPLICATION and version != _VERSION:
        raise RequestError(f"the cache {path} was made by another version of stageflow", hint="choose another --cache")
    return bool(application != _APPLICATION)


def _make(database: sqlite3.Connection) -> None:
    # In one transaction: who looks meanwhile sees nothing of it, or all.
    with _transaction(database):
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute(_SCHEMA)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    database.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _transact(database: sqlite3.Connection, keys: Sequence[bytes], rows: Sequence[_Row]) -> dict[bytes, bytes]:
    """Look for some and keep others. Runs in the thread."""
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), _IN_ONE_QUERY):
        some = keys[start : start + _IN_ONE_QUERY]
        places = ", ".join("?" * len(some))
        found |= dict(database.execute(f"SELECT key, value FROM results WHERE key IN ({places})", some))
    if rows:
        with _transaction(database):
            database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", rows)
    return found


def _close(database: sqlite3.Connection) -> None:
    import sqlite3

    with contextlib.suppress(sqlite3.Error):
        database.close()
