"""How far a run past one machine is, by what is in its output; nothing is locked, and nothing is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

from stageflow.cluster.commits import Commits
from stageflow.cluster.lock import RunLock
from stageflow.cluster.messages import ShardCommit
from stageflow.cluster.opening import totals_of
from stageflow.cluster.plan import ShardPlan
from stageflow.commit import Totals
from stageflow.errors import RequestError
from stageflow.files import is_url
from stageflow.ledger import Holder
from stageflow.report.text import counted
from stageflow.stores import Store, store_of

__all__ = ["ShardedStatus", "failed_shards", "is_sharded", "plan_in", "sharded_json", "sharded_status", "sharded_text"]


_NAMED: Final = 5
"""Failed shards that are named, of those there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedStatus:
    """A run as its output has it.

    Args:
        state: ``"running"``: somebody holds the lock. ``"interrupted"``: the same command goes on with it.
        shards: How many there are; ``committed``: those that are done, ``failed`` ones included.
        failed: What is to be said of the failed ones, a line each.
        totals: Records of what is committed.
        left: Records still to do, about, by the bytes they have; ``None`` where that can't be told.
        holder: Who was heard of last, and when (ISO 8601).
        input, job: As they were called.
    """

    state: Literal["running", "interrupted", "complete"]
    shards: int
    committed: int
    failed_shards: tuple[int, ...]
    failed: tuple[str, ...]
    totals: Totals
    left: int | None
    run: str
    holder: Holder | None
    input: str
    job: str


def is_sharded(path: str) -> bool:
    """Whether an output is a folder or a bucket, as only that of a run past one machine is."""
    return is_url(path) or os.path.isdir(path)


def sharded_text(path: str) -> str:
    """How far the run is, a line for each thing there is to say.

    Raises:
        RequestError: No run has begun there.
        StorageError: It can't be read.
    """
    found = sharded_status(path)
    totals, holder = found.totals, found.holder
    by = f" (pid {holder.pid} on {holder.host}, heard of at {holder.since})" if holder is not None else ""
    left = f", about {found.left:,} left" if found.left else ""
    lines = [
        f"{path}: {found.state}{by}",
        f"  {found.committed:,} of {counted(found.shards, 'shard')} committed",
        f"  {counted(totals.settled, 'record')} done = {totals.written:,} written + {totals.dropped:,} dropped + "
        f"{totals.dead:,} dead{left}",
        f"  run {found.run}: {found.job} over {found.input}",
        *(f"  {line}" for line in found.failed),
    ]
    return "\n".join(lines)


def sharded_json(path: str) -> str:
    """The same as one line of JSON.

    Raises:
        RequestError, StorageError: As :func:`sharded_text`.
    """
    found = sharded_status(path)
    known = asdict(found)
    del known["failed"]
    return json.dumps({"output": path, **known, "settled": found.totals.settled})


def sharded_status(path: str) -> ShardedStatus:
    """Read the output of a run past one machine.

    Raises:
        RequestError: No run has begun there.
        StorageError: It can't be read.
    """
    store = store_of(path)
    plan = plan_in(store)
    # Before the commits: a run that ends meanwhile is told as running, not as interrupted.
    holder = _holder(store)
    commits = Commits(store).all()
    whole = len(commits) == len(plan.shards)
    more = f" and {len(plan.files) - 1:,} more" if len(plan.files) > 1 else ""
    return ShardedStatus(
        state="running" if holder is not None else "complete" if whole else "interrupted",
        shards=len(plan.shards),
        committed=len(commits),
        failed_shards=tuple(sorted(commit.number for commit in commits.values() if commit.failed)),
        failed=failed_shards(plan, commits),
        totals=totals_of(commits),
        left=_left(plan, commits),
        run=plan.run,
        holder=holder,
        input=f"{plan.files[0].path}{more}" if plan.files else "nothing",
        job=plan.job.file,
    )


def plan_in(store: Store) -> ShardPlan:
    """The plan of a run that has begun.

    Raises:
        RequestError: None has.
        StorageError: It can't be read.
    """
    plan = ShardPlan.read(store)
    if plan is None:
        raise RequestError(f"{store.url} holds no run", hint="OUT is what was given to -o of a run with --engine")
    return plan


def failed_shards(plan: ShardPlan, commits: Mapping[int, ShardCommit]) -> tuple[str, ...]:
    """What is to be said of shards that were given up, a line each; nothing where there are none."""
    failed = [plan.shards[commit.number] for commit in commits.values() if commit.failed]
    if not failed:
        return ()
    lines = [
        f"{counted(len(failed), 'shard')} failed: replicas died again and again, and nothing of it is in the output"
    ]
    for shard in failed[:_NAMED]:
        where = f", bytes {shard.start:,} to {shard.end:,}" if shard.end is not None else ""
        lines.append(f"  shard {shard.number}: {plan.files[shard.file].path}{where}")
    if len(failed) > _NAMED:
        lines.append(f"  and {len(failed) - _NAMED:,} more")
    return tuple(lines)


def _left(plan: ShardPlan, commits: Mapping[int, ShardCommit]) -> int | None:
    """Records still to do, at the length of those that were done."""
    lines = bytes_done = bytes_left = 0
    for shard in plan.shards:
        size = plan.files[shard.file].size if shard.end is None else shard.end - shard.start
        commit = commits.get(shard.number)
        if commit is None:
            bytes_left += size
        elif not commit.failed:
            lines, bytes_done = lines + commit.lines, bytes_done + size
    if not bytes_left:
        return 0
    return round(lines * bytes_left / bytes_done) if bytes_done else None


def _holder(store: Store) -> Holder | None:
    try:
        return RunLock(store).holder()
    except OSError:
        return None
