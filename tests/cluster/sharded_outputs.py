"""Outputs of runs past one machine, made without any: each record's line is what it was, but those that are dead."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from stageflow.cluster.commits import Commits
from stageflow.cluster.messages import ShardCommit
from stageflow.cluster.plan import PlannedFile, Shard, ShardPlan
from stageflow.commit import JobIdentity
from stageflow.stores import Store

JOB = JobIdentity(file="job.py", rest="", stages={}, graph={})


def plan_over(store: Store, *paths: Path, shard_bytes: int = 40) -> ShardPlan:
    """Freeze a plan over files."""
    files = []
    for path in paths:
        there = os.stat(path)
        codec = "gz" if path.suffix == ".gz" else "plain"
        files.append(PlannedFile(path.name, str(path), there.st_size, there.st_mtime_ns, codec=codec))
    plan = ShardPlan("0123abcd", shard_bytes, tuple(files), JOB)
    assert plan.freeze(store)
    return plan


def lines_of(plan: ShardPlan, shard: Shard) -> list[bytes]:
    """The lines that begin in a shard, found by looking at the whole file."""
    text = Path(plan.files[shard.file].place).read_bytes()
    found, start = [], 0
    for line in text.splitlines(keepends=True):
        if shard.end is None or shard.start <= start < shard.end:
            found.append(line)
        start += len(line)
    return found


def letter(place: int, line: bytes, **where: object) -> bytes:
    """A dead letter as a replica writes it."""
    found = {"index": place, "line": place + 1, "path": None, "stage": "s", "record": line.decode().strip(), **where}
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def commit_all(store: Store, plan: ShardPlan, *, failed: Collection[int] = (), left: Collection[int] = ()) -> None:
    """Commit each shard: a record with "dead" in it is dead, one with "drop" is dropped, blank lines are no records."""
    for shard in plan.shards:
        if shard.number in failed:
            Commits(store).commit(ShardCommit(shard.number, 4, failed=True), b"", b"")
        elif shard.number not in left:
            commit(store, shard.number, lines_of(plan, shard))


def commit(store: Store, number: int, lines: list[bytes]) -> None:
    out = [line.rstrip(b"\n") + b"\n" for line in lines if line.strip() and b"dead" not in line and b"drop" not in line]
    dead = [letter(place, line) for place, line in enumerate(lines) if b"dead" in line]
    dropped = sum(b"drop" in line for line in lines)
    counts = {"written": len(out), "dropped": dropped, "dead": len(dead)}
    found = ShardCommit(number, 1, lines=len(lines), out_lines=len(out), dead_lines=len(dead), **counts)
    Commits(store).commit(found, b"".join(out), b"".join(dead))
