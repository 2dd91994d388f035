"""The command line of stageflow, with less patience than it has: a test has no half a minute for a lease to expire."""

from __future__ import annotations

import functools
import os
import sys

from stageflow.cli import main
from stageflow.cluster import sharded

LEASE_SECONDS = float(os.environ.get("HASTY_LEASE_SECONDS", "6"))
BEAT_SECONDS = 1.0

sharded.CoordinatorSetup = functools.partial(  # type: ignore[assignment,misc]
    sharded.CoordinatorSetup, lease_seconds=LEASE_SECONDS, beat_seconds=BEAT_SECONDS
)
sharded.ReplicaSetup = functools.partial(sharded.ReplicaSetup, beat_seconds=BEAT_SECONDS)  # type: ignore[assignment,misc]

if __name__ == "__main__":
    sys.exit(main())
