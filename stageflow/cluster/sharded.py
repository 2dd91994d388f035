"""A run over shards, put together: its input, its output, and the work that an engine does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stageflow.cluster.engines import CoordinatorSetup, Engine, ReplicaSetup
from stageflow.cluster.input import ShardedInput
from stageflow.cluster.opening import ShardedOutput
from stageflow.cluster.static import StaticInput, StaticOutput, StaticWork, parse_place
from stageflow.cluster.work import ClusterWork, DriverOutput
from stageflow.errors import RequestError, StorageError
from stageflow.files import is_url
from stageflow.graph import nearest
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.stores import store_of
from stageflow.work import JobOrigin, Work, WorkRequest

if TYPE_CHECKING:
    from stageflow.protocols import Source

__all__ = ["Sharded"]

_NOT_FOR_SHARDS: Final[Mapping[str, Any]] = {
    "dead": None,
    "limit": None,
    "retry_failed": False,
    "spool": False,
    "processes": 1,
    "budget": None,
    "max_input_bytes": None,
}
"""Options of a run on one machine, with what they are when nobody asks for them."""

_NEVER_SECONDS: Final = 1e8


class Sharded:
    """A run past one machine.

    Args:
        failed: Told that the store failed.

    Raises:
        RequestError: The input or the output is not for that, or an option is not.

    Attributes:
        source, ends: The two ends of the run, as it starts here.
    """

    def __init__(
        self, plan: Plan, source: Any, sink: Any, options: Options, failed: Callable[[StorageError], None]
    ) -> None:
        _refuse_options(options)
        self._plan = plan
        self._options = options
        self._url = _address(sink)
        self._replicas = parse_place(options.shard)[1] if options.shard else options.nodes
        self._divided = _divided(plan, options, self._replicas)
        self._models = _models(plan, options)
        self.source: Source
        self._output: DriverOutput | StaticOutput
        if options.engine == "static":
            self.source = static = StaticInput(source, options)
            self._output = static.output = StaticOutput(self._filled_by(static), parse_place(options.shard), failed)
        else:
            self.source = given = ShardedInput(source, options)
            self._output = DriverOutput(self._filled_by(given))
        self.ends = replace(self._output.ends(), notes=self._notes())

    def _filled_by(self, source: ShardedInput) -> ShardedOutput:
        asked = self._options.shard_bytes
        return ShardedOutput(store_of(self._url), source, replicas=self._replicas, asked_bytes=asked)

    def _notes(self) -> tuple[str, ...]:
        """What the limits of a stage come to."""
        if self._replicas == 1:
            return ()
        kind = "replicas" if self._options.engine != "static" else "shares"
        found = []
        capped = {override.stage: override.value for override in self._divided}
        for stage in self._plan.stages.values():
            each = capped.get(stage.name, stage.max_in_flight)
            found.append(f"{self._replicas} {kind} x {each} = {self._replicas * each:,} {stage.name} calls")
        return (", ".join(found) + " in flight at most",)

    def work(
        self,
        request: WorkRequest,
        prepare: Callable[[], object] | None,
        elsewhere: Callable[[Sequence[Override]], JobOrigin] | None,
    ) -> Work:
        """What does the records."""
        if isinstance(self._output, StaticOutput):
            return StaticWork(request, prepare, self._output)
        assert elsewhere is not None, "a job that nobody knows the place of"
        options = self._options
        origin = elsewhere(self._divided)
        limits = {
            name: limit.rate_per_second
            for name, stage in self._plan.stages.items()
            if (limit := stage.rate_limit) is not None
        }
        store = self._url if is_url(self._url) else os.path.abspath(self._url)
        return ClusterWork(
            request,
            self._engine(request.warn),
            self._output.whole,
            coordinator=CoordinatorSetup(
                store=store,
                shards=0,  # when it is opened, the plan says
                limits=limits,
                most_deaths=options.max_shard_attempts,
            ),
            replica=ReplicaSetup(
                store=store,
                job=origin,
                options=_options_of(options),
                env={name: os.environ[name] for name in options.env},
            ),
            replicas=self._replicas,
        )

    def _engine(self, tell: Callable[[str], None]) -> Engine:
        from stageflow.cluster.ray import RayEngine  # not for those that need no cluster

        options = self._options
        return RayEngine(
            options.address,
            working_dir=Path(self._plan.file or os.getcwd()).parent,
            replica_cpus=options.replica_cpus,
            replica_gpus=options.replica_gpus,
            models=self._models,
            tell=tell,
        )


def _models(plan: Plan, options: Options) -> dict[str, tuple[float, int]]:
    """By stage with ``gpus``, how many each of its models takes, and how many models there are."""
    asked = options.model_actors
    gpus = {stage.name: stage.gpus for stage in plan.stages.values() if stage.gpus is not None}
    counts = asked if isinstance(asked, Mapping) else dict.fromkeys(gpus, asked)
    for name in counts:
        if name not in gpus:
            hint = "stages that have are: " + ", ".join(gpus) if gpus else "set gpus= for the stage that needs them"
            raise RequestError(f'--model-actors: there is no stage "{name}" with gpus=', hint=hint)
    return {name: (each, counts.get(name, 1)) for name, each in gpus.items()}


def _divided(plan: Plan, options: Options, replicas: int) -> list[Override]:
    """The part of each replica in what all of them may have in flight together."""
    totals = options.max_in_flight_total
    if totals is None:
        return []
    if options.engine == "static":
        raise RequestError(
            "--max-in-flight-total is for replicas that are started together",
            hint=f"give each of the {replicas} its part, as --max-in-flight",
        )
    by_stage = dict.fromkeys(plan.stages, totals) if isinstance(totals, int) else dict(totals)
    found = []
    for name, total in by_stage.items():
        if name not in plan.stages:
            near = nearest(name, plan.stages)
            hint = f'did you mean "{near}"?' if near else "stages are: " + ", ".join(plan.stages)
            raise RequestError(f'--max-in-flight-total: there is no stage "{name}"', hint=hint)
        if total < replicas:
            raise RequestError(
                f"--max-in-flight-total {name}={total} is not one for each of {replicas} replicas",
                hint=f"run with --nodes {total}, or with {name}={replicas}",
            )
        part = min(plan.stages[name].max_in_flight, total // replicas)
        found.append(Override(name, "max_in_flight", part, "--max-in-flight-total"))
    return found


def _refuse_options(options: Options) -> None:
    for name, usual in _NOT_FOR_SHARDS.items():
        if getattr(options, name) != usual:
            raise RequestError(
                f"--{name.replace('_', '-')} is for runs on one machine, and not for --engine {options.engine}",
                hint="leave it out",
            )
    if options.order == "completion":
        raise RequestError(
            f"with --engine {options.engine} results are in the order of the input", hint="leave --order out"
        )
    if options.engine != "static" and options.shard:
        raise RequestError("--shard is for --engine static", hint=f"leave it out with --engine {options.engine}")
    for name in options.env:
        if name not in os.environ:
            near = nearest(name, os.environ)
            raise RequestError(
                f"--env {name}: there is no such variable",
                hint=f'did you mean "{near}"?' if near else "export it first",
            )


def _address(sink: Any) -> str:
    """Where the output is to be."""
    if not isinstance(sink, (str, os.PathLike)) or str(sink) == "-":
        raise RequestError(
            "an output that several machines write is a folder or an address", hint="for instance -o out/"
        )
    url = str(sink)
    if not is_url(url) and os.path.exists(url) and not os.path.isdir(url):
        raise RequestError(f"{url} is no folder", hint="give one, for instance -o out/")
    return url


def _options_of(options: Options) -> Options:
    """What of the run's options concerns a replica."""
    return Options(
        order="completion",
        strict=options.strict,
        on_bad_input=options.on_bad_input,
        max_open_records=options.max_open_records,
        max_retry_after=options.max_retry_after,
        debug=options.debug,
        cache=False if options.cache is None else options.cache,  # beside the job there is no place that lasts
        grace=_NEVER_SECONDS,  # it is the driver that gives up waiting
    )
