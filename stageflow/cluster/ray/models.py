"""The models of a run on a Ray cluster: actors that make the calls of stages with ``gpus``, for all replicas.

They belong to the driver, and outlive replicas. Ray starts one again that is lost. It is empty then, and the replica
that notices sets it up: that takes values of the environment, which are in nothing that Ray keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stageflow.cluster.engines import ReplicaSetup
from stageflow.cluster.ray.connecting import why
from stageflow.cluster.ray.pool import MOST_CALLS, WITHIN_SECONDS, ModelPool
from stageflow.engine.attempt import describe
from stageflow.engine.processes import child_setups, opened_handler
from stageflow.engine.targets import Elsewhere
from stageflow.errors import DefinitionError, WorkerDied
from stageflow.loader import load
from stageflow.stage import Stage

__all__ = ["ModelActor", "Models", "RemoteModel", "models_there"]

_ROOM_SECONDS: Final = 10.0
"""After so long the user hears of a stage that has not all its models."""

_CLOSE_SECONDS: Final = 5.0
"""In which models may close their resources."""

_PAUSES: Final = 0.05, 5.0
"""The first pause before a model that is lost is asked again, and the longest, in seconds."""


class ModelActor:
    """Makes calls of one stage, one after another, on a loop that its resources were opened on."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._call: Callable[[tuple[Any, ...], Mapping[str, Any]], bytes] | None = None

    def begin(self, setup: ReplicaSetup, stage: str) -> str:
        """Set up what calls need, if that was not done.

        Returns:
            Why it failed, or nothing.
        """
        if self._call is not None:
            return ""
        try:
            os.environ.update(setup.env)
            pipeline = load(setup.job.reference).pipeline
            plan = pipeline.plan(setup.job.overrides, setup.job.params)
            needs = child_setups(plan, None)[stage]
            self._call = self._runner.run(opened_handler(self._stack, needs))
        except Exception as error:  # noqa: BLE001 - the job's own code; whoever asks is told
            print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)  # noqa: T201 - its log
            return describe(error)
        return ""

    def calls(self, messages: list[bytes]) -> list[bytes] | None:
        """Make them; nothing where it is not set up."""
        call = self._call
        return None if call is None else self._runner.run(_made(call, messages))

    def close(self) -> None:
        """Close its resources."""
        self._call = None
        self._runner.run(self._stack.aclose())


async def _made(call: Callable[[tuple[Any, ...], Mapping[str, Any]], bytes], messages: list[bytes]) -> list[bytes]:
    return [call(*pickle.loads(message)) for message in messages]


class RemoteModel:
    """A model as a replica has it; see :class:`stageflow.cluster.ray.pool.Model`."""

    def __init__(self, actor: Any, setup: ReplicaSetup, stage: str) -> None:
        self._actor = actor
        self._setup = setup
        self._stage = stage

    async def calls(self, messages: list[bytes]) -> list[bytes]:
        """Have it make them."""
        from ray.exceptions import RayError

        try:
            answers: list[bytes] | None = await self._actor.calls.remote(messages)
        except RayError as error:
            raise WorkerDied(f"worker died: {why(error)}") from None
        if answers is None:
            raise WorkerDied("worker died: it was lost before")
        return answers

    async def back(self) -> None:
        """Set it up again, as soon as Ray has started it."""
        from ray.exceptions import RayError

        pause, longest = _PAUSES
        while True:
            try:
                trouble = await self._actor.begin.remote(self._setup, self._stage)
                break
            except RayError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
        if trouble:
            raise WorkerDied(f"no model can be set up: {trouble}")

    async def end(self) -> None:
        """Have Ray start another."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            await asyncio.to_thread(ray.kill, self._actor, no_restart=False)


def models_there(setup: ReplicaSetup, actors: Mapping[str, Sequence[Any]]) -> Elsewhere:
    """Where a replica finds the models, by stage."""

    def elsewhere(stage: Stage) -> ModelPool:
        models = [RemoteModel(actor, setup, stage.name) for actor in actors[stage.name]]
        # A batch is what the stage has asked for itself: it goes as it is, at once.
        most, within = (MOST_CALLS, WITHIN_SECONDS) if stage.batch is None else (1, 0.0)
        return ModelPool(models, most=most, within=within)

    return elsewhere


class Models:
    """Those of a run, kept by its driver.

    Args:
        wanted: By stage the GPUs of each, and how many there are to be.
        tell: Hears of what the user should know.

    Attributes:
        actors: By stage; others may use them, also before each is there.
    """

    def __init__(self, ray: Any, wanted: Mapping[str, tuple[float, int]], tell: Callable[[str], None]) -> None:
        self._ray = ray
        self._wanted = wanted
        self._tell = tell
        self._begun: dict[asyncio.Task[str], Any] = {}
        self._looking: list[asyncio.Task[None]] = []
        self.actors: dict[str, list[Any]] = {}

    async def begin(self, setup: ReplicaSetup) -> None:
        """Start them all, and wait for one of each stage.

        Raises:
            DefinitionError: One can't be set up.
        """
        kind = self._ray.remote(ModelActor)
        for stage, (gpus, count) in self._wanted.items():
            placed = kind.options(
                num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
            )
            self.actors[stage] = [placed.remote() for _ in range(count)]
        await asyncio.gather(*(self._first(setup, stage) for stage in self._wanted))

    async def _first(self, setup: ReplicaSetup, stage: str) -> None:
        begun = {asyncio.create_task(_begun(actor, setup, stage)): actor for actor in self.actors[stage]}
        self._begun |= begun
        self._looking.append(asyncio.create_task(self._look_for_room(stage, list(begun))))
        done, _ = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            if trouble := each.result():
                raise DefinitionError(
                    f'stage "{stage}": its worker process could not be set up: {trouble}',
                    hint="nothing was read and no output was made",
                )

    async def _look_for_room(self, stage: str, begun: Sequence[asyncio.Task[str]]) -> None:
        """Say so where not all are there: the others do the work until they are."""
        done, later = await asyncio.wait(begun, timeout=_ROOM_SECONDS)
        if later:
            gpus, count = self._wanted[stage]
            self._tell(f'{len(done)} of {count} models of stage "{stage}" are there, with {gpus:g} GPUs each')

    async def close(self) -> list[Any]:
        """Let them close their resources.

        Returns:
            The actors there are.
        """
        there = [actor for task, actor in self._begun.items() if task.done()]
        for task in (*self._begun, *self._looking):
            task.cancel()
        actors = [actor for several in self.actors.values() for actor in several]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.gather(*(_closed(actor) for actor in there), return_exceptions=True)
        return actors


async def _begun(actor: Any, setup: ReplicaSetup, stage: str) -> str:
    from ray.exceptions import RayError

    try:
        trouble: str = await actor.begin.remote(setup, stage)
    except RayError as error:
        return why(error)
    return trouble


async def _closed(actor: Any) -> None:
    await actor.close.remote()
