"""What is in an output that is to be filled by several: its plan and its commits, and how it is taken up or refused."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Final

from stageflow.cluster.commits import Commits
from stageflow.cluster.input import ShardedInput
from stageflow.cluster.lock import RunLock
from stageflow.cluster.messages import ShardCommit
from stageflow.cluster.plan import ShardPlan, shard_bytes
from stageflow.commit import OpenRequest, Totals
from stageflow.errors import RequestError, StorageError
from stageflow.stores.base import Store

__all__ = ["ShardedOutput", "blank_in", "totals_of"]

SUCCESS: Final = "_SUCCESS"
_SUMMARY: Final = "_stageflow/summary.json"
_LARGE_BYTES: Final = 64 * 1024 * 1024


class ShardedOutput:
    """An output in a store, from its opening to its end.

    Args:
        replicas: How many will share the work.
        asked_bytes: The size of a shard that the user wants.

    Attributes:
        plan: When it was opened, what is to be done. ``done``: what was.
    """

    def __init__(self, store: Store, source: ShardedInput, *, replicas: int, asked_bytes: int | None) -> None:
        self.store = store
        self.commits = Commits(store)
        self.run_lock = RunLock(store)
        self.plan: ShardPlan
        self.done: dict[int, ShardCommit] = {}
        self._source = source
        self._replicas = replicas
        self._asked = asked_bytes

    def open(self, request: OpenRequest) -> None:
        """Make a plan, or take up the one that is there.

        Raises:
            RequestError: It can't be written, or not once only.
            StateMismatch: Another run's, with another input or another job.
            StorageError: It can't be read.
        """
        self.store.check()
        try:
            found = ShardPlan.read(self.store)
            if found is not None and request.fresh:
                raise RequestError(f"{self.store.url} holds a run already", hint="choose another output, or delete it")
            self.plan = found if found is not None else self._frozen(request)
            self.done = self.commits.repair()
            self._refuse_other(request)
            if len(self.done) == len(self.plan.shards) and not self._is_finished():
                self.finish()  # whoever did the last of it was killed before it could say so
        except OSError as error:
            raise StorageError(f"cannot open {self.store.url}: {error.strerror or error}") from error

    def _frozen(self, request: OpenRequest) -> ShardPlan:
        self._refuse_foreign()
        files = self._source.files()
        size = shard_bytes(sum(file.size for file in files), self._replicas, self._asked)
        made = ShardPlan(uuid.uuid4().hex[:12], size, files, request.job)
        if made.freeze(self.store):
            return made
        found = ShardPlan.read(self.store)  # somebody else, who was started at the same time
        assert found is not None, "a plan that is there and is not"
        return found

    def _refuse_foreign(self) -> None:
        name, _ = next(iter(self.store.names()), (None, 0))
        if name is not None:
            raise RequestError(
                f"{self.store.url} holds other things, {name} for one",
                hint="give an empty folder, or one that is not there",
            )

    def _refuse_other(self, request: OpenRequest) -> None:
        files = self._source.files()
        plan = self.plan.mended(files, self.done)
        plan.refuse_other_input(files)
        if self._asked is not None and self._asked != plan.shard_bytes:
            raise RequestError(
                f"the run was begun with shards of {plan.shard_bytes:,} bytes",
                hint="leave --shard-bytes out to go on with them",
            )
        if not request.accept_job_change:
            plan.refuse_other_job(request.job, request.job_changes)
        else:
            plan = replace(plan, job=request.job)
        if plan != self.plan:
            self.plan = plan
            plan.rewrite(self.store)

    def is_whole(self) -> bool:
        """Whether all shards are committed, by whomever. Asks the store."""
        self.done = self.commits.all()
        return len(self.done) == len(self.plan.shards)

    def _is_finished(self) -> bool:
        try:
            return bool(self.store.read(_SUMMARY))
        except FileNotFoundError:
            return False

    def given_up(self, among: Iterable[int] | None = None) -> list[int]:
        """Shards of which nothing was made, of all of them or of some."""
        numbers = self.done if among is None else among
        return sorted(number for number in numbers if number in self.done and self.done[number].failed)

    def finish(self) -> None:
        """All shards are committed: say so, for whoever waits for it."""
        self.done = self.commits.repair()
        self.commits.compact(self.done)
        totals = totals_of(self.done)
        failed = self.given_up()
        found = {"run": self.plan.run, "shards": len(self.done), **asdict(totals), "failed_shards": failed}
        self.store.put(_SUMMARY, json.dumps(found, indent=1).encode() + b"\n")
        if not failed:
            self.store.put(SUCCESS, b"")

    def notes(self) -> list[str]:
        """What whoever starts the run should know of its input."""
        large = [file for file in self.plan.files if file.codec != "plain" and file.size > _LARGE_BYTES]
        if not large or len(self.done) == len(self.plan.shards):
            return []
        return [
            f"{large[0].path} is compressed, and so one shard: all its {large[0].size / 2**20:,.0f} MiB come to is "
            "kept in memory until it is done; smaller files, or one that is not compressed, can be shared"
        ]

    def lock(self, warn: Callable[[str], None]) -> None:
        """Note that this process drives the run; warn where another one seems to do that."""
        there = None
        with contextlib.suppress(OSError):
            there = self.run_lock.holder()
        if there is not None and (there.pid, there.host) != (os.getpid(), socket.gethostname()):
            warn(
                f"{self.store.url} seems to be written by pid {there.pid} on {there.host}: "
                "what both do is written once, and paid for twice"
            )
        self.keep_lock()

    def keep_lock(self) -> None:
        """This process still drives it. A store that fails now and then is no reason to end a run for a note."""
        with contextlib.suppress(OSError):
            self.run_lock.keep()

    def unlock(self) -> None:
        """It does no more."""
        with contextlib.suppress(OSError):
            self.run_lock.release()


def blank_in(commit: ShardCommit) -> int:
    """How many lines of a shard held no record."""
    return commit.lines - commit.written - commit.dropped - commit.dead


def totals_of(done: Mapping[int, ShardCommit]) -> Totals:
    """The records of all committed shards by what became of them."""
    totals = Totals()
    for commit in done.values():
        totals.written += commit.written
        totals.dropped += commit.dropped
        totals.dead += commit.dead
    return totals
