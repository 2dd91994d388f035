"""The replicas of a run on a Ray cluster: so many places, with one after another at work in each.

* A replica that is lost is started anew by us, under a new name, and never by Ray: one that Ray calls lost may be
  alive. It is killed first; then the coordinator is told, which fences its name.
* Nobody waits for a replica that the cluster has no room for. It begins when there is some.
* One that ends with an error of the user's ends the run. One that ends otherwise before its time has a successor, until
  several in a row have gone without having worked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from stageflow.cluster.engines import ReplicaSetup
from stageflow.cluster.ray.calls import answered
from stageflow.cluster.ray.connecting import why
from stageflow.cluster.ray.versions import Versions
from stageflow.errors import RequestError, RunStopped, StageflowError
from stageflow.events import Event, Warned

__all__ = ["AGAIN", "Places"]

AGAIN: Final = "what is committed is safe: the same command goes on with it"
_SILENT: Final = "it was not heard of for too long"

_ROOM_SECONDS: Final = 10.0
"""After so long the user hears of replicas without a place."""

_PAUSES: Final = 1.0, 60.0
"""Before the successor of a replica that has not worked, the first time and at most, in seconds."""

_IDLE: Final = 3
"""Replicas that go one after another without having worked: it is not by chance."""

_READING_SECONDS: Final = 10.0

_MISSED_SECONDS: Final = 10.0
"""At least so long a replica that the coordinator has taken for lost may take to notice that itself."""


class Places:
    """Keeps the replicas of a run at work.

    Args:
        coordinator: The actor.
        resources: What each replica is given of a machine, as Ray spells it.
        lease_seconds: After so long the coordinator takes a silent one for lost.
        models: By stage the actors that make its calls, where it is not the replicas.

    Attributes:
        failure: What ends the run.
        news: What the user should hear of; who takes it empties it.
        ending: No more successors.
    """

    def __init__(
        self,
        ray: Any,
        coordinator: Any,
        setup: ReplicaSetup,
        resources: dict[str, float],
        lease_seconds: float,
        models: Mapping[str, Sequence[Any]],
    ) -> None:
        self._ray = ray
        self._coordinator = coordinator
        self._setup = setup
        self._resources = resources
        self._models = models
        self._missed_seconds = max(lease_seconds, _MISSED_SECONDS)
        self._numbers = itertools.count(1)
        self._actors: dict[str, Any] = {}
        self._placed: dict[str, Any] = {}  # where each replica is
        self._joined: set[str] = set()  # those the coordinator knew when it was asked last
        self._missed: dict[str, float] = {}  # since when it does not know one any more
        self._count = 0
        self._short = False  # the user was told that not all are placed
        self._over = False  # no replica was left when this was last looked at
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: StageflowError | None = None
        self.news: list[Event] = []
        self.ending = False

    def fill(self, count: int) -> None:
        """Begin with so many."""
        self._count = count
        self._tasks = [asyncio.create_task(self._keep(), name=f"place {n}") for n in range(count)]
        self._tasks.append(asyncio.create_task(self._look_for_room(), name="room"))

    async def clear(self) -> list[Any]:
        """Begin no more.

        Returns:
            The actors there are.
        """
        self.ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return list(self._actors.values())

    async def compare(self, known: Iterable[str]) -> None:
        """End a replica that the coordinator has taken for lost, and that does not end: it is frozen, or cut off.

        Raises:
            RunStopped: No replica is left, nor one to come.
        """
        self._look_for_end()
        now = asyncio.get_running_loop().time()
        self._joined |= set(known)
        gone = self._joined.intersection(self._actors).difference(known)
        self._missed = {name: self._missed.get(name, now) for name in gone}
        for name, since in self._missed.items():
            if now > since + self._missed_seconds and not self.ending:
                await self._kill(self._actors[name])

    def _look_for_end(self) -> None:
        places = self._tasks[:-1]
        if self.ending or self.failure is not None or not all(task.done() for task in places):
            return
        if not self._over:  # what was known when the coordinator was asked may be older than their end
            self._over = True
            return
        for task in places:
            task.result()
        raise RunStopped("all replicas have ended, and not all is done", hint=AGAIN)

    # One place

    async def _keep(self) -> None:
        """Have a replica at work here, one after another, until one has nothing more to do."""
        pause, longest = _PAUSES
        while True:
            name = f"replica {next(self._numbers)}"
            lost = await self._live(name)
            if lost is None:
                self._actors.pop(name, None)
                return
            place = self._placed.pop(name, None)
            if name in self._missed:
                lost = _SILENT
            idle = await self._bury(name)
            if self.ending:
                return
            shown = f"{name} ({place})" if place is not None else name
            self.news.append(Warned(f"{shown} was lost: {lost}; another takes its place"))
            if idle >= _IDLE:
                said = await self._last_lines(place)
                self._fail(RunStopped(f"replicas end before they have done anything: {lost}{said}", hint=AGAIN))
                return
            if name in self._joined:
                pause = _PAUSES[0]
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _live(self, name: str) -> str | None:
        """The whole life of a replica.

        Returns:
            Of what it was lost, or nothing.
        """
        from stageflow.cluster.ray.actors import ReplicaActor

        kind = self._ray.remote(ReplicaActor)
        try:
            actor = kind.options(**self._resources, max_restarts=0, scheduling_strategy="SPREAD").remote()
            self._actors[name] = actor
            place = await actor.hello.remote()
            self._placed[name] = place
            if self._short and len(self._placed) == self._count:
                self._short = False
                self._say_placed()
            if not place.versions.suits(here := Versions.here()):
                raise RequestError(
                    f"{place.machine} has {place.versions}, and this machine has {here}",
                    hint="install the same on all of them",
                )
            ended = await actor.run.remote(self._setup, name, self._coordinator, self._models)
        except self._ray.exceptions.RayError as error:
            return why(error)
        except StageflowError as error:
            self._fail(error)
            return None
        if ended.how == "stopped":
            self._fail(ended.error.error())
        return {"fenced": _SILENT, "failed": ended.said}.get(ended.how)

    async def _bury(self, name: str) -> int:
        """End what may be left of a replica, and tell the coordinator.

        Returns:
            How many in a row have gone without having worked.
        """
        await self._kill(self._actors.pop(name, None))
        try:
            return int(await answered(lambda: self._coordinator.died.remote(name)))
        except self._ray.exceptions.RayError:
            return 0  # the driver asks it, too, and says what is wrong

    async def _kill(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            await asyncio.to_thread(self._ray.kill, actor)

    async def _last_lines(self, place: Any) -> str:
        """What a replica that is gone has printed last, if its machine still knows."""
        from stageflow.cluster.ray.actors import last_lines

        if place is None or not place.log:
            return ""
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.node, soft=False)
        reading = self._ray.remote(last_lines).options(num_cpus=0, scheduling_strategy=there)
        try:
            async with asyncio.timeout(_READING_SECONDS):
                text = await reading.remote(place.log)
        except (TimeoutError, self._ray.exceptions.RayError):
            text = ""
        return f"\n{text.rstrip()}\n(from {place.log} on {place.machine})"

    def _fail(self, error: StageflowError) -> None:
        self.failure = self.failure or error

    async def _look_for_room(self) -> None:
        """Say so where the cluster has no room for all."""
        await asyncio.sleep(_ROOM_SECONDS)
        self._short = len(self._placed) < self._count
        if self._short:
            self._say_placed()

    def _say_placed(self) -> None:
        self.news.append(Warned(f"{len(self._placed)} of {self._count} replicas placed"))
