"""What carries a run past one machine: something that starts a coordinator and replicas, and notices their ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from stageflow.cluster.messages import Progress
from stageflow.events import Event
from stageflow.options import Options
from stageflow.work import JobOrigin

__all__ = ["BEAT_SECONDS", "LEASE_SECONDS", "CoordinatorSetup", "Engine", "ReplicaSetup"]

LEASE_SECONDS: Final = 30.0
"""A replica that is silent for so long is taken for lost."""

BEAT_SECONDS: Final = 5.0
"""A replica reports at least so often, and whenever it has news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSetup:
    """What a coordinator begins with, each time it is started; what was done before it reads from the store.

    Args:
        store: The address of the output.
        shards: How many there are.
        limits: The rate limits of the whole run, in permits per second, by the first stage under each; ``None``: a
            limit that has none.
        most_deaths: Replicas that may die of a shard before it is given up.
    """

    store: str
    shards: int
    limits: Mapping[str, float | None]
    most_deaths: int = 4
    lease_seconds: float = LEASE_SECONDS
    beat_seconds: float = BEAT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSetup:
    """What a replica begins with.

    Args:
        store: The address of the output, where the plan is found, too.
        job: Where the job is, on the machine of the replica.
        options: What of the run's options concerns a replica.
        loop: ``"uvloop"``, ``"asyncio"``, or ``"auto"``: uvloop where the machine has it.
        env: Variables to set before the job is loaded; their values are secret, and are in no file and no log.
    """

    store: str
    job: JobOrigin
    options: Options
    loop: str = "auto"
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    beat_seconds: float = BEAT_SECONDS


class Engine(Protocol):
    """Carries one run. Every method is called on the driver's loop, one at a time but for :meth:`observe`."""

    async def start(self, coordinator: CoordinatorSetup, replica: ReplicaSetup, replicas: int) -> None:
        """Start everything, and return when there is a coordinator; replicas may still be on their way.

        From then on it starts another replica, under a new name, in the place of one that is lost, and tells the
        coordinator of the loss.

        Raises:
            RequestError: There is no such cluster, or it does not suit: another version of Python or of stageflow.
        """
        ...

    async def observe(self, cursor: int, order: Literal["", "stop", "cancel"] = "") -> Progress:
        """How the run stands, and what was committed beyond the first ``cursor`` commits.

        Args:
            order: What the replicas are to be told.

        Raises:
            StageflowError: The run can't go on: the job can't be loaded there, or all replicas end by themselves.
        """
        ...

    def events(self) -> tuple[Event, ...]:
        """What the user should hear of, since the last call: replicas that were lost, or could not be placed."""
        ...

    async def close(self) -> None:
        """End everything. Replicas that have ended by themselves are not waited for."""
        ...
