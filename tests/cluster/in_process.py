"""An engine whose coordinator and replicas are in this process: all that an engine does, without one."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from typing import Literal

from stageflow.cluster.commits import Commits
from stageflow.cluster.coordinator import ShardCoordinator
from stageflow.cluster.engines import CoordinatorSetup, ReplicaSetup
from stageflow.cluster.messages import Orders, Progress, Report, ShardCommit
from stageflow.cluster.replica import Fenced, run_replica
from stageflow.events import Event
from stageflow.stores import store_of

BEAT = 0.1
LEASE = 0.6


class InProcess:
    """Replicas as tasks. What a test does to them, it does by name.

    Attributes:
        reports: All that replicas have said.
        deaf: Names of replicas whose reports do not arrive.
    """

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.deaf: set[str] = set()
        self.replicas: dict[str, asyncio.Task[None]] = {}
        self.failure: BaseException | None = None
        self._epochs = itertools.count()
        self._names = (f"replica-{number}" for number in itertools.count(1))
        self._tending: list[asyncio.Task[None]] = []
        self._ending = False

    async def start(self, coordinator: CoordinatorSetup, replica: ReplicaSetup, replicas: int) -> None:
        self._coordinator_setup, self._replica_setup, self._ending = coordinator, replica, False
        self.restart_coordinator(restarted=False)
        self._tending = [asyncio.create_task(self._tend()) for _ in range(replicas)]

    def restart_coordinator(self, *, restarted: bool = True) -> None:
        """One that knows nothing but what is in the store."""
        setup = self._coordinator_setup
        done = Commits(store_of(setup.store)).all().values()
        self.coordinator = ShardCoordinator(
            setup, done, time.monotonic(), restarted=restarted, epoch=next(self._epochs)
        )

    async def _tend(self) -> None:
        while not self._ending:
            name = next(self._names)
            task = self.replicas[name] = asyncio.create_task(run_replica(self._replica_setup, name, self.ask))
            await asyncio.wait([task])
            del self.replicas[name]
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, Fenced):
                self.failure = error
            if not (task.cancelled() or isinstance(error, Fenced)):
                return
            self.coordinator.died(name, time.monotonic())

    async def ask(self, report: Report) -> Orders:
        await asyncio.sleep(0)
        while report.who in self.deaf:  # noqa: ASYNC110 - a test says when it hears again
            await asyncio.sleep(0.01)
        self.reports.append(report)
        return self.coordinator.exchange(report, time.monotonic())

    @property
    def known(self) -> list[ShardCommit]:
        """What the coordinator knows to be committed, once there is one."""
        return self.coordinator.commits if hasattr(self, "coordinator") else []

    async def committed(self, shards: int) -> None:
        """Wait until so many are."""
        while len(self.known) < shards:  # noqa: ASYNC110 - replicas tell it to no test
            await asyncio.sleep(0.005)

    def kill(self, name: str) -> None:
        self.replicas[name].cancel()

    async def observe(self, cursor: int, order: Literal["", "stop", "cancel"] = "") -> Progress:
        if self.failure is not None:
            raise self.failure
        return self.coordinator.observe(cursor, time.monotonic(), order)

    def events(self) -> tuple[Event, ...]:
        return ()

    async def close(self) -> None:
        self._ending = True
        for task in (*self._tending, *self.replicas.values()):
            task.cancel()
        await asyncio.gather(*self._tending, *self.replicas.values(), return_exceptions=True)


class Quick(InProcess):
    """Beats and leases of a test's length."""

    async def start(self, coordinator: CoordinatorSetup, replica: ReplicaSetup, replicas: int) -> None:
        await super().start(
            replace(coordinator, beat_seconds=BEAT, lease_seconds=LEASE), replace(replica, beat_seconds=BEAT), replicas
        )
