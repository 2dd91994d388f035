"""Who drives a run past one machine at the moment, as a note in its output that is renewed while that lasts.

It excludes nobody: two that work on one output do no harm to it, since each shard is committed once. But both make the
calls, which somebody pays for.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from typing import Any, Final

from stageflow.ledger import Holder
from stageflow.stores.base import Store

__all__ = ["LOCK_SECONDS", "RunLock"]

LOCK_SECONDS: Final = 60.0
"""A note that is older is of one who is gone."""

_NAME: Final = "_stageflow/lock.json"


class RunLock:
    """The note in one output."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def holder(self) -> Holder | None:
        """Who drives the run, where somebody does.

        Raises:
            OSError: The store can't be read.
        """
        try:
            found: Any = json.loads(self._store.read(_NAME))
            pid, host, at = int(found["pid"]), str(found["host"]), float(found["at"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if time.time() - at > LOCK_SECONDS or (host == socket.gethostname() and not _is_alive(pid)):
            return None
        return Holder(pid, host, datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds"))

    def keep(self) -> None:
        """This process does."""
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "at": time.time()}
        self._store.put(_NAME, json.dumps(mine).encode())

    def release(self) -> None:
        """It does no more."""
        self._store.delete(_NAME)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
