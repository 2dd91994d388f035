"""What runs on the machines of a Ray cluster: one coordinator, and replicas.

Both are plain classes here, and made actors by :mod:`stageflow.cluster.ray.engine`. What they are told and answer is
plain data. A replica's own errors are answers, too: an error that Ray raises means a process, a node or the talk with
them is lost, and nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from stageflow.cluster.commits import Commits
from stageflow.cluster.coordinator import ShardCoordinator
from stageflow.cluster.engines import CoordinatorSetup, ReplicaSetup
from stageflow.cluster.messages import Orders, Progress, Report, ShardCommit
from stageflow.cluster.ray.calls import answered
from stageflow.cluster.ray.idling import Idling
from stageflow.cluster.ray.models import models_there
from stageflow.cluster.ray.versions import Versions
from stageflow.cluster.replica import Fenced, run_replica
from stageflow.engine.attempt import describe
from stageflow.entry import run_on_loop
from stageflow.errors import StageflowError
from stageflow.replicas.messages import Stopped
from stageflow.stores import Store, store_of

__all__ = ["CoordinatorActor", "Ended", "Place", "ReplicaActor", "fair", "last_lines"]

COMPACT_SECONDS: Final = 60.0
_EPOCHS: Final = "_stageflow/epochs/"
_LEAST_HELD: Final = 4
"""Shards a replica may hold in any case: those that it works on at a time, when they are small."""

_LAST_LINES: Final = 20
_RAYS: Final = (":job_id:", ":actor_name:", ":task_name:")
"""With which Ray says in a log what comes next."""


# The coordinator


class CoordinatorActor:
    """A :class:`ShardCoordinator` that begins, each time Ray starts it, with what the store holds.

    Its methods are coroutines, so that one which writes to the store holds up no other.

    Args:
        replicas: How many there are to be.
    """

    def __init__(self, setup: CoordinatorSetup, replicas: int) -> None:
        store = store_of(setup.store)
        self._commits = Commits(store)
        epoch = next_epoch(store)
        self._known = self._commits.all()
        self._shards, self._replicas = setup.shards, replicas
        self._done = set(self._known)
        done = self._known.values()
        self._core = ShardCoordinator(setup, done, time.monotonic(), restarted=epoch > 0, epoch=epoch)
        self._idling = Idling()
        self._broken = ""
        self._compacted = len(self._known), time.monotonic()
        self._keeping: asyncio.Task[None] | None = None

    async def exchange(self, report: Report) -> Orders:
        """What a replica says, and the answer."""
        self._done.update(commit.number for commit in report.committed)
        asks = fair(report.asks, held=len(report.held), left=self._shards - len(self._done), replicas=self._replicas)
        report = dataclasses.replace(report, asks=asks)
        try:
            orders = self._core.exchange(report, time.monotonic())
        except Exception:
            self._broken = traceback.format_exc()
            raise
        if report.leaving or orders.fenced:
            self._idling.left(report.who)
        elif report.held or orders.leases or orders.finished:
            self._idling.works(report.who)
        return orders

    async def died(self, who: str) -> int:
        """A replica is gone.

        Returns:
            How many in a row have gone without having worked, while none works.
        """
        self._core.died(who, time.monotonic())
        self._idling.died(who)
        self._keep()
        return self._idling.count

    async def observe(self, cursor: int, order: Literal["", "stop", "cancel"]) -> Progress:
        """How the run stands."""
        assert not self._broken, self._broken  # a replica would only be started again, and told the same
        progress = self._core.observe(cursor, time.monotonic(), order)
        self._known.update((commit.number, commit) for commit in progress.commits)
        self._keep()
        return progress

    def _keep(self) -> None:
        """See that the store holds what it should; one thing at a time, in the background."""
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._write())

    async def _write(self) -> None:
        for lease in self._core.given_up:
            failed = ShardCommit(lease.number, lease.attempt, failed=True)
            self._core.committed(await asyncio.to_thread(self._commits.commit, failed, b"", b""))
        count, at = self._compacted
        if len(self._known) > count and time.monotonic() > at + COMPACT_SECONDS:
            self._compacted = len(self._known), time.monotonic()
            await asyncio.to_thread(self._commits.compact, dict(self._known))


def fair(asks: int, *, held: int, left: int, replicas: int) -> int:
    """How many leases a replica may ask for that asks for so many.

    It asks for some seconds of work ahead. Where all that is left is no more than that for all, those who ask first
    would have it, and the others, who are still loading the job, nothing: so nobody holds more than half of an even
    part of it, as the parts become smaller towards the end.

    Args:
        held: What it holds.
        left: Shards that are not committed, whoever holds them.

    Source: C. Polychronopoulos, D. Kuck, "Guided Self-Scheduling", 1987.
    """
    most = max(_LEAST_HELD, math.ceil(left / (2 * replicas)))
    return max(0, min(asks, most - held))


def next_epoch(store: Store) -> int:
    """How many coordinators of an output have begun before this one, in this run and others."""
    number = max((int(name.removeprefix(_EPOCHS)) + 1 for name, _ in store.names(_EPOCHS)), default=0)
    while not store.create(f"{_EPOCHS}{number:06}", b"{}"):
        number += 1
    return number


# A replica


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica is.

    Args:
        node: The machine, as Ray knows it.
        log: The file there with all that it prints.
    """

    machine: str
    node: str
    process: int
    log: str
    versions: Versions

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A replica has ended by itself.

    Args:
        how: ``"done"``: it has nothing more to do. ``"fenced"``: it was taken for lost. ``"stopped"``: for ``error``,
            which is the user's. ``"failed"``: for something unforeseen.
        error: What stops the run.
        said: What was unforeseen; the traceback is in its log.
    """

    how: Literal["done", "fenced", "stopped", "failed"]
    error: Stopped | None = None
    said: str = ""


class ReplicaActor:
    """Runs the job over the shards it is leased."""

    def hello(self) -> Place:
        """It is placed, and its process has begun."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Place(socket.gethostname(), node, os.getpid(), _log(), Versions.here())

    def run(self, setup: ReplicaSetup, name: str, coordinator: Any, models: Mapping[str, Sequence[Any]]) -> Ended:
        """The whole life of a replica, on a loop of its own."""

        def ask(report: Report) -> Awaitable[Orders]:
            return answered(lambda: coordinator.exchange.remote(report))

        elsewhere = models_there(setup, models)
        return lived(lambda: run_on_loop(lambda: run_replica(setup, name, ask, elsewhere), setup.loop))


def lived(life: Callable[[], None]) -> Ended:
    """Run it, and say how it ended."""
    try:
        life()
    except Fenced:
        return Ended("fenced")
    except StageflowError as error:
        return Ended("stopped", Stopped.of(error))
    except Exception as error:  # noqa: BLE001 - whatever it is: an error that goes through Ray means a loss
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)  # noqa: T201 - its log
        return Ended("failed", said=describe(error))
    return Ended("done")


def _log() -> str:
    """The file this process prints to: Ray gives each one of its own, in the logs of its session."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return path if os.path.isfile(path) else ""


def last_lines(path: str) -> str:
    """The end of what a process has printed."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - (8 << 10)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    own = [line for line in text.splitlines(keepends=True) if not line.startswith(_RAYS)]
    return "".join(own[-_LAST_LINES:])
