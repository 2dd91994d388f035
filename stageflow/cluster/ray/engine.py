"""The driver's side of a run on a Ray cluster.

The coordinator is on the head of the cluster, which lives as long as the cluster does. Ray starts it again where it is
lost, and it goes on with what the store holds and the replicas tell. Values of the environment go with the call that
begins a replica, and are in nothing that Ray writes down.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from stageflow.cluster.engines import CoordinatorSetup, ReplicaSetup
from stageflow.cluster.messages import Progress
from stageflow.cluster.ray.calls import answered
from stageflow.cluster.ray.connecting import connect, is_submitted, is_there, refuse_client, refuse_missing, why
from stageflow.cluster.ray.places import AGAIN, Places
from stageflow.cluster.ray.shipping import LARGE_BYTES, Shipment, is_file, origin_there
from stageflow.errors import RequestError, RunStopped
from stageflow.events import Event

__all__ = ["RayEngine"]

_START_SECONDS: Final = 120.0
"""For the coordinator to begin: the job's files have to be there before, and what it needs installed."""

_PATIENCE_SECONDS: Final = 5.0
"""After so long without an answer of the coordinator it is seen whether there is a cluster."""

_HEAD: Final = {"node:__internal_head__": 0.001}
"""Of a resource that only the head has."""


class RayEngine:
    """Runs the replicas of a run as actors of a Ray cluster; see :class:`stageflow.cluster.engines.Engine`.

    Args:
        address: ``"auto"``: the cluster this machine belongs to. ``"host:port"``: of its head. ``"local"``: one on this
            machine that begins and ends with the run, to try it out.
        working_dir: The folder of the job, which is sent to every machine. Of a job that is a module it is the one this
            process works in, where the module is in that.
        replica_cpus, replica_gpus: What one replica is given of a machine.
        models: By stage with ``gpus``, what each of its models is given of a machine, and how many there are.
        pip: A file of requirements that every machine installs before the run.
        tell: Hears of what the user should know before there is a run.

    Raises:
        RequestError: The address is one of a Ray client, or Ray is not installed.
    """

    def __init__(
        self,
        address: str = "auto",
        *,
        working_dir: Path,
        replica_cpus: float = 1.0,
        replica_gpus: float = 0.0,
        models: Mapping[str, tuple[float, int]] | None = None,
        pip: str | None = None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        refuse_client(address)
        refuse_missing()
        self._address = address
        self._folder = working_dir
        self._resources = {"num_cpus": replica_cpus, "num_gpus": replica_gpus}
        self._wanted = models or {}
        self._pip = pip
        self._tell = tell
        self._ray: Any = None
        self._coordinator: Any = None
        self._places: Places | None = None
        self._models: Any = None
        self._gone = False

    async def start(self, coordinator: CoordinatorSetup, replica: ReplicaSetup, replicas: int) -> None:
        """Start everything, and return when there is a coordinator."""
        import ray

        replica, shipment = await asyncio.to_thread(self._packed, replica)
        for path, size in shipment.left_out:
            self._tell(f"{path} ({size >> 20} MB) is not sent to the machines: it is above {LARGE_BYTES >> 20} MB")
        cpus = replicas * self._resources["num_cpus"]
        try:
            # In a thread: it takes seconds, and elsewhere than in the main thread Ray leaves signals alone.
            await asyncio.to_thread(connect, ray, self._address, shipment, pip=self._pip, cpus=cpus)
            self._ray = ray
            await self._begin(coordinator, replicas)
            await self._begin_models(replica)
        except BaseException:
            await self.close()
            raise
        models = self._models.actors if self._models is not None else {}
        self._places = Places(ray, self._coordinator, replica, self._resources, coordinator.lease_seconds, models)
        self._places.fill(replicas)

    def _packed(self, replica: ReplicaSetup) -> tuple[ReplicaSetup, Shipment]:
        """What is sent, and what a replica begins with when it is there."""
        folder = self._folder
        if is_submitted() or not is_file(replica.job.reference):
            folder = Path.cwd()
        replica = dataclasses.replace(replica, job=origin_there(replica.job, folder))
        # A module that is not found from here is installed, and it is on the other machines, too.
        nothing = is_submitted() or not self._folder.is_relative_to(folder)
        return replica, Shipment(folder, (), ()) if nothing else Shipment.of(folder)

    async def _begin(self, setup: CoordinatorSetup, replicas: int) -> None:
        from stageflow.cluster.ray.actors import CoordinatorActor

        kind = self._ray.remote(CoordinatorActor)
        try:
            async with asyncio.timeout(_START_SECONDS):
                self._coordinator = kind.options(
                    num_cpus=0, resources=_HEAD, max_restarts=-1, max_task_retries=0
                ).remote(setup, replicas)
                await self._coordinator.observe.remote(0, "")
        except TimeoutError:
            raise RequestError(
                f"the coordinator of the run has not begun in {_START_SECONDS:g} s",
                hint="`ray status`, on the head of the cluster, says what it waits for",
            ) from None
        except self._ray.exceptions.RayError as error:
            raise RequestError(
                f"the run can't begin on the cluster: {why(error)}",
                hint="every machine needs the same Python, with what stageflow needs, and has to reach the output",
            ) from error

    async def _begin_models(self, setup: ReplicaSetup) -> None:
        """Before the replicas, which have nobody to call else."""
        from stageflow.cluster.ray.models import Models

        if self._wanted:
            self._models = Models(self._ray, self._wanted, self._tell)
            await self._models.begin(setup)

    async def observe(self, cursor: int, order: Literal["", "stop", "cancel"] = "") -> Progress:
        """How the run stands."""
        places = self._places
        assert places is not None, "it was not started"
        places.ending = places.ending or order != ""
        try:
            progress = await self._ask(cursor, order)
        except self._ray.exceptions.RayError as error:
            raise RunStopped(f"the coordinator of the run is lost: {why(error)}", hint=AGAIN) from error
        places.ending = places.ending or progress.finished
        await places.compare(progress.replicas)
        if places.failure is not None and progress.stopped is None and not places.ending:
            raise places.failure
        return progress

    async def _ask(self, cursor: int, order: str) -> Progress:
        """Ask the coordinator, unless there is no cluster any more: Ray ends a process that finds out for itself."""
        asking = asyncio.ensure_future(answered(lambda: self._coordinator.observe.remote(cursor, order)))
        try:
            while not (await asyncio.wait([asking], timeout=_PATIENCE_SECONDS))[0]:
                if not await asyncio.to_thread(is_there, self._ray):
                    self._gone = True
                    raise RunStopped("the Ray cluster is gone, with its head", hint=AGAIN)
            progress: Progress = asking.result()
        finally:
            asking.cancel()
        return progress

    def events(self) -> tuple[Event, ...]:
        """What the user should hear of, since the last call."""
        if self._places is None:
            return ()
        news, self._places.news = self._places.news, []
        return tuple(news)

    async def close(self) -> None:
        """End everything."""
        if self._ray is None:
            return
        actors = await self._places.clear() if self._places is not None else []
        if self._models is not None and not self._gone:
            actors += await self._models.close()
        if self._coordinator is not None:
            actors.append(self._coordinator)
        # Of a cluster that is gone nothing can be ended. It is left all the same: else Ray aborts this process.
        await asyncio.to_thread(self._disconnect, [] if self._gone else actors)

    def _disconnect(self, actors: list[Any]) -> None:
        for actor in actors:
            with contextlib.suppress(Exception):  # it is gone already, or the whole cluster is
                self._ray.kill(actor)
        self._ray.shutdown()
