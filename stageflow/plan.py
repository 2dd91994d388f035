"""The frozen job: stages whose parameters are resolved, whose edges form a DAG, and whose settings are in range.

A :class:`Draft` is what a job file wrote down; :func:`freeze` resolves the names, checks everything, and answers with a
:class:`Plan`. Nothing runs here, so a plan can as well be drawn, counted or tested.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

from stageflow import graph
from stageflow.contexts import required_fields
from stageflow.errors import DefinitionError, GraphError, SettingError
from stageflow.money import Price
from stageflow.policies.hedging import hedge_of
from stageflow.policies.retry import retry_of
from stageflow.stage import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_TIMEOUT,
    RESERVED,
    SMALLEST_DEFAULT_QUEUE,
    Kind,
    Parameter,
    Setting,
    Stage,
    check_setting,
    is_async,
    is_generator,
    parameters_of,
)

__all__ = ["Draft", "Override", "Params", "Plan", "Resource", "ResourceDraft", "StageDraft", "freeze"]

Scope = Literal["run", "process"]


class Params(Mapping[str, Any]):
    """The job's parameters: ``params["model"]`` and ``params.model`` are the same."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattribute__(self, name: str) -> Any:
        # A parameter may be called "items": its value comes before the method of a mapping.
        values = object.__getattribute__(self, "__dict__").get("_values", {})
        return values[name] if name in values else object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            near = graph.nearest(name, self._values)
            raise AttributeError(
                f"the job has no parameter {name!r}" + (f"; did you mean {near!r}?" if near else "")
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Params({self._values!r})"


@dataclass(slots=True)
class StageDraft:
    """A stage as the job file gave it."""

    name: str
    handler: Callable[..., Any]
    depends_on: tuple[str, ...]
    settings: dict[str, Any]
    where: str


@dataclass(slots=True)
class ResourceDraft:
    """A resource as the job file gave it."""

    name: str
    function: Callable[..., Any]
    scope: Scope
    where: str


@dataclass(slots=True)
class Draft:
    """A job as the job file gave it, nothing resolved yet."""

    name: str
    where: str
    key: str | None
    params: dict[str, Any]
    context: type | None
    on_partial: str = "keep"
    emitted: tuple[str, ...] | None = None
    file: str | None = None
    files: tuple[str, ...] = ()
    stages: list[StageDraft] = field(default_factory=list)
    resources: list[ResourceDraft] = field(default_factory=list)
    prices: dict[str, Price] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Override:
    """A setting given from outside the job file; ``stage`` is ``None`` where it is for every stage.

    ``prices``, by model, are the job's own: they are for no stage, and hold beside those of the job file.
    """

    stage: str | None
    setting: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What is opened before reading and closed after the drain; it may use the job's params and other resources."""

    name: str
    function: Callable[..., Any]
    scope: Scope
    uses: tuple[str, ...]
    where: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job that is known to be right.

    Args:
        stages: By name, in the order of definition.
        order: Their names in execution order: each after its dependencies.
        resources: By name, each after those it uses.
        key: The field of the input record that names it in messages, or ``None``.
        context: The dataclass of the context style, or ``None``.
        emitted: The fields of the output record, or ``None`` for all.
        on_partial: What becomes of what a fan-out yielded where some of it failed: ``"keep"`` or ``"drop"``.
        file: The job file, where there is one.
        files: Others whose contents are part of the job, relative to the folder of ``file``.
        prices: What tokens cost, by model; ``price_origins``: where each price comes from.
    """

    name: str
    where: str
    stages: Mapping[str, Stage]
    order: tuple[str, ...]
    resources: Mapping[str, Resource]
    params: Params
    key: str | None
    context: type | None
    emitted: tuple[str, ...] | None
    on_partial: str = "keep"
    file: str | None = None
    files: tuple[str, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    price_origins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        return {name: stage.dependencies for name, stage in self.stages.items()}

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        return graph.children(self.dependencies)

    @cached_property
    def ancestors(self) -> Mapping[str, frozenset[str]]:
        return graph.ancestors(self.dependencies, self.order)

    @property
    def first(self) -> tuple[str, ...]:
        """The stages that depend on none: the source feeds them."""
        return tuple(name for name in self.order if not self.stages[name].dependencies)

    @property
    def last(self) -> tuple[str, ...]:
        """The stages that none depends on."""
        return tuple(name for name in self.order if not self.children[name])

    @cached_property
    def fan_outs(self) -> Mapping[str, tuple[str, ...]]:
        """For each stage the fan-outs above it, outermost first: it runs once per child of the innermost of them."""
        return {
            name: tuple(above for above in self.order if above in self.ancestors[name] and self.stages[above].fans_out)
            for name in self.order
        }

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """``(from, to)`` in the order of execution."""
        return tuple((need, name) for name in self.order for need in self.stages[name].dependencies)

    @cached_property
    def required(self) -> Mapping[str, str]:
        """The fields that a record must have, each with the stage (or context) that requires it."""
        needed = {
            parameter.name: f'stage "{stage.name}"'
            for stage in reversed(list(self.stages.values()))
            for parameter in (*stage.when_parameters, *stage.parameters)
            if parameter.kind == "field" and parameter.required
        }
        if self.context is not None:
            needed |= dict.fromkeys(required_fields(self.context), f"the context {self.context.__name__}")
        return needed

    @property
    def context_fields(self) -> tuple[str, ...]:
        """The fields that the context adds to the output."""
        return tuple(field.name for field in dataclasses.fields(self.context)) if self.context is not None else ()

    @property
    def max_open_records(self) -> int:
        """The default bound on records admitted and not yet settled: as many as workers and channels hold."""
        return sum(stage.max_in_flight + stage.queue_size for stage in self.stages.values())


def freeze(draft: Draft, overrides: Sequence[Override] = (), params: Mapping[str, Any] | None = None) -> Plan:
    """Resolve the names of a draft and check all of it.

    Args:
        overrides: Settings from outside, weakest first.
        params: Values that replace the defaults of the job's parameters.

    Raises:
        DefinitionError: With the place in the job file.
    """
    if not draft.stages:
        raise GraphError(
            f'pipeline "{draft.name}" has no stages', hint="put @pipeline.stage above a function", where=draft.where
        )
    _check_names(draft)
    values = dict(draft.params)
    for name, value in (params or {}).items():
        if name not in values:
            raise SettingError(f'the job has no parameter "{name}"', hint=_near(name, values, "parameters are"))
        values[name] = value
    for override in overrides:
        if override.stage is not None and all(override.stage != stage.name for stage in draft.stages):
            raise SettingError(
                f'{override.origin}: unknown stage "{override.stage}"; stages are: '
                + ", ".join(s.name for s in draft.stages),
                hint=_near(override.stage, [s.name for s in draft.stages], "stages are"),
            )
    prices = {name: Setting(price, draft.where) for name, price in draft.prices.items()}
    for override in overrides:
        if _is_of_prices(override):
            prices |= {name: Setting(price, override.origin) for name, price in override.value.items()}
    overrides = [override for override in overrides if not _is_of_prices(override)]
    stages = {stage.name: _stage(stage, draft, overrides) for stage in draft.stages}
    order = _order(stages)
    plan = Plan(
        name=draft.name,
        where=draft.where,
        stages=stages,
        order=order,
        resources=_resources(draft),
        params=Params(values),
        key=draft.key,
        context=draft.context,
        emitted=draft.emitted,
        on_partial=draft.on_partial,
        file=draft.file,
        files=draft.files,
        prices={name: setting.value for name, setting in prices.items()},
        price_origins={name: setting.origin for name, setting in prices.items()},
    )
    _check_files(plan)
    _check_processes(plan)
    _check_fan_out(plan)
    _check_batches(plan)
    _check_hedges(plan)
    _check_caches(plan)
    return plan


def _is_of_prices(override: Override) -> bool:
    return override.setting == "prices" and override.stage is None


def _near(name: str, names: Any, otherwise: str) -> str:
    near = graph.nearest(name, names)
    return f'did you mean "{near}"?' if near else f"{otherwise}: " + (", ".join(names) or "none")


def _check_names(draft: Draft) -> None:
    """Stages and resources have names of their own."""
    seen: dict[str, tuple[str, str]] = {}
    for kind, owner in [("stage", s) for s in draft.stages] + [("resource", r) for r in draft.resources]:
        if owner.name in RESERVED:
            raise DefinitionError(
                f'a {kind} can\'t be named "{owner.name}": the name is reserved',
                hint=f'reserved names are: {", ".join(RESERVED)}; give it another with name="..."',
                where=owner.where,
            )
        if not (isinstance(owner.name, str) and owner.name.isidentifier()):
            raise DefinitionError(
                f"{owner.name!r} can't name a {kind}: others take its result as a parameter of that name",
                hint='give it a name with name="..."',
                where=owner.where,
            )
        if owner.name in seen:
            other, where = seen[owner.name]
            both = f"two {kind}s are" if other == kind else f"a {other} and a {kind} are both"
            raise GraphError(
                f'{both} named "{owner.name}" ({where}, {owner.where})',
                hint='give one of them another name="..."',
                where=owner.where,
            )
        seen[owner.name] = (kind, owner.where)


def _stage(draft: StageDraft, job: Draft, overrides: Sequence[Override]) -> Stage:
    owner = f'stage "{draft.name}"'
    parameters = tuple(_resolve(p, job) for p in parameters_of(owner, draft.handler, draft.where))
    settings = _settings(draft, overrides)
    values = {name: setting.value for name, setting in settings.items()}
    values["retry"] = retry_of(values["retry"])
    values["hedge"] = hedge_of(values["hedge"])
    if isinstance(values["max_tokens"], list):  # as TOML has it
        values["max_tokens"] = tuple(values["max_tokens"])
    conditions: tuple[Parameter, ...] = ()
    if values["when"] is not None:
        conditions = tuple(_resolve(p, job) for p in parameters_of(f"when of {owner}", values["when"], draft.where))
    return Stage(
        name=draft.name,
        handler=draft.handler,
        parameters=parameters,
        dependencies=_dependencies(draft, (*parameters, *conditions), job),
        when_parameters=conditions,
        fans_out=is_generator(draft.handler),
        where=draft.where,
        origins={name: setting.origin for name, setting in settings.items()},
        **values,
    )


def _resolve(parameter: inspect.Parameter, job: Draft) -> Parameter:
    """What a parameter's name means: a stage, a resource, a reserved name, else a field of the input record."""
    name = parameter.name
    kind: Kind = "field"
    if any(stage.name == name for stage in job.stages):
        kind = "stage"
    elif any(resource.name == name for resource in job.resources):
        kind = "resource"
    elif name in RESERVED:
        kind = name  # type: ignore[assignment]
    elif job.context is not None and parameter.annotation in (job.context, job.context.__name__):
        kind = "ctx"
    return Parameter(
        name,
        kind,
        parameter.default,
        by_keyword=parameter.kind is parameter.KEYWORD_ONLY,
        by_position=parameter.kind is parameter.POSITIONAL_ONLY,
    )


def _dependencies(draft: StageDraft, parameters: Sequence[Parameter], job: Draft) -> tuple[str, ...]:
    names = [stage.name for stage in job.stages]
    for need in draft.depends_on:
        if need not in names:
            near = graph.nearest(need, names)
            raise GraphError(
                f'stage "{draft.name}" depends on unknown stage "{need}"'
                + (f' (did you mean "{near}"?)' if near else ""),
                hint="stages are: " + ", ".join(names),
                where=draft.where,
            )
    return tuple(dict.fromkeys([*draft.depends_on, *(p.name for p in parameters if p.kind == "stage")]))


_DEFAULTS: Final[Mapping[str, Any]] = {
    "max_in_flight": DEFAULT_MAX_IN_FLIGHT,
    "queue_size": None,
    "run": None,
    "on_error": "dead_letter",
    "timeout": DEFAULT_TIMEOUT,
    "retry": None,
    "hedge": None,
    "rate_limit": None,
    "batch": None,
    "when": None,
    "emit": True,
    "version": None,
    "cache": False,
    "model": None,
    "max_tokens": None,
}


def _settings(draft: StageDraft, overrides: Sequence[Override]) -> dict[str, Setting]:
    """The settings of a stage: the defaults, then the job file's, then those from outside, weakest first."""
    settings = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    given = [(name, Setting(value, draft.where)) for name, value in draft.settings.items()]
    mode = _run_mode(draft, overrides)
    for override in overrides:
        # A bare --max-in-flight is about calls to a service; a process costs a core and its memory.
        spared = override.stage is None and override.setting == "max_in_flight" and mode.value == "process"
        if override.stage == draft.name or (override.stage is None and not spared):
            given.append((override.setting, Setting(override.value, override.origin)))
    for name, setting in given:
        if name == "version" and setting.value is None:
            continue
        check_setting(draft.name, name, setting.value, setting.origin)
        settings[name] = setting
    settings["run"] = mode
    if settings["queue_size"].value is None:
        size = max(SMALLEST_DEFAULT_QUEUE, settings["max_in_flight"].value)
        settings["queue_size"] = Setting(size, "default")
    return settings


def _run_mode(draft: StageDraft, overrides: Sequence[Override]) -> Setting:
    """Where the handler runs: as set, else by what it is."""
    natural = "async" if is_async(draft.handler) else "thread"
    mode = Setting(draft.settings.get("run") or natural, draft.where if draft.settings.get("run") else "default")
    for override in overrides:
        if override.setting == "run" and override.stage in (None, draft.name):
            mode = Setting(override.value, override.origin)
    check_setting(draft.name, "run", mode.value, mode.origin)
    if (mode.value == "async") != (natural == "async"):
        kind = "an async function" if natural == "async" else "a plain function"
        allowed = '"async"' if natural == "async" else '"thread", "process" or "inline"'
        raise SettingError(
            f'stage "{draft.name}": {kind} can\'t run as "{mode.value}"',
            hint=f"run must be {allowed}",
            where=draft.where,
        )
    return mode


def _order(stages: Mapping[str, Stage]) -> tuple[str, ...]:
    dependencies = {name: stage.dependencies for name, stage in stages.items()}
    order = graph.topological_order(dependencies)
    if order is None:
        cycle = graph.find_cycle(dependencies)
        assert cycle is not None, "no order, yet no cycle"
        raise GraphError(
            "stages form a cycle: " + " -> ".join(cycle),
            hint="a parameter named after a stage is an edge; rename a parameter or a stage",
            where=stages[cycle[0]].where,
        )
    return order


def _resources(draft: Draft) -> dict[str, Resource]:
    """The resources, each after those it uses."""
    names = {resource.name: resource for resource in draft.resources}
    uses: dict[str, tuple[str, ...]] = {}
    for resource in draft.resources:
        owner = f'resource "{resource.name}"'
        taken = [parameter.name for parameter in parameters_of(owner, resource.function, resource.where)]
        for name in taken:
            if name not in names and name != "params":
                hint = "a resource is opened before any record is read: it may take `params` and other resources"
                raise DefinitionError(f'{owner} takes "{name}", which is no resource', hint=hint, where=resource.where)
            if name in names and resource.scope == "process" != names[name].scope:
                raise DefinitionError(
                    f'{owner} lives in worker processes and can\'t use "{name}"',
                    hint=f'declare "{name}" @pipeline.resource(scope="process"), too',
                    where=resource.where,
                )
        uses[resource.name] = tuple(taken)
    edges = {name: tuple(n for n in taken if n != "params") for name, taken in uses.items()}
    order = graph.topological_order(edges)
    if order is None:
        cycle = graph.find_cycle(edges)
        assert cycle is not None, "no order, yet no cycle"
        raise GraphError(
            "resources form a cycle: " + " -> ".join(cycle),
            hint="a parameter named after a resource is an edge; rename a parameter or a resource",
            where=names[cycle[0]].where,
        )
    return {
        name: Resource(name, names[name].function, names[name].scope, uses[name], names[name].where) for name in order
    }


def _check_files(plan: Plan) -> None:
    """The files that the job declares are there."""
    for name in plan.files:
        try:
            if os.path.isfile(path := os.path.join(os.path.dirname(plan.file or ""), name)):
                continue
            os.stat(path)
            problem = "it is no file"
        except OSError as error:
            problem = error.strerror or "it can't be read"
        raise DefinitionError(
            f"Pipeline(files=...): cannot read {name}: {problem}",
            hint="paths are relative to the job file",
            where=plan.where,
        )


def _check_processes(plan: Plan) -> None:
    """A stage in processes can use what can be there: resources of that scope, and nothing bound to the loop."""
    for stage in plan.stages.values():
        for parameter in stage.parameters:
            if stage.run == "process" and parameter.kind == "ctx" and plan.context is not None:
                raise DefinitionError(
                    f'stage "{stage.name}" runs in processes and can\'t fill in the context: its copy stays there',
                    hint="take the fields it needs as parameters, or run it elsewhere",
                    where=stage.where,
                )
            if parameter.kind != "resource":
                continue
            scope = plan.resources[parameter.name].scope
            if (scope == "process") != (stage.run == "process"):
                there = "runs in processes" if stage.run == "process" else "does not run in processes"
                raise DefinitionError(
                    f'stage "{stage.name}" {there} and can\'t use resource "{parameter.name}" (scope "{scope}")',
                    hint='declare it @pipeline.resource(scope="process"), or run the stage elsewhere',
                    where=stage.where,
                )


def _check_fan_out(plan: Plan) -> None:
    """Refuse what can't be told apart: the children of one fan-out meeting those of another that is not above it."""
    for stage in plan.stages.values():
        above = plan.fan_outs[stage.name]
        for outer, inner in pairwise(above):
            if outer not in plan.ancestors[inner]:
                raise GraphError(
                    f'stage "{stage.name}" depends on two unrelated fan-outs, "{outer}" and "{inner}": '
                    "their children can't be joined",
                    hint="let one of them return a list, or depend on the other",
                    where=stage.where,
                )
        if not stage.fans_out:
            continue
        for refused, why in (
            (stage.run == "process", "in a process"),
            (stage.batch is not None, "over a batch"),
            (plan.context is not None, "in the context style"),
        ):
            if refused:
                raise DefinitionError(
                    f'stage "{stage.name}" is a generator, and a fan-out is not possible {why}',
                    hint="return a list instead",
                    where=stage.where,
                )


def _check_batches(plan: Plan) -> None:
    """Refuse a batch that could never fill, or in a style that has no lists."""
    for stage in plan.stages.values():
        if stage.batch is None:
            continue
        if plan.context is not None:
            raise DefinitionError(f'stage "{stage.name}": no batches in the context style', where=stage.where)
        if stage.batch.size > plan.max_open_records:
            raise SettingError(
                f'stage "{stage.name}": a batch of {stage.batch.size} is larger than what can be in flight '
                f"({plan.max_open_records} records)",
                hint="raise queue_size",
                where=stage.where,
            )


def _check_hedges(plan: Plan) -> None:
    """Refuse a second call where one can't be told from the first, or can't be ended when it is not needed any more."""
    for stage in plan.stages.values():
        if stage.hedge is None:
            continue
        for refused, why in (
            (stage.batch is not None, "over a batch"),
            (stage.fans_out, "of a generator: its children would be made twice"),
            (plan.context is not None, "in the context style: both would fill in one context"),
            (stage.run != "async", f'as "{stage.run}": such a call can\'t be cancelled'),
        ):
            if refused:
                raise DefinitionError(
                    f'stage "{stage.name}" has hedge=, and a second call is not possible {why}',
                    hint="it is for async functions that take one record; else leave hedge= out",
                    where=stage.where,
                )


def _check_caches(plan: Plan) -> None:
    """Refuse a cache where a result is more than what one call returns, or where the job's source can't be seen."""
    for stage in plan.stages.values():
        for refused, why, hint in (
            (stage.batch is not None, "takes batches", "take one record at a time, or cache the stage before it"),
            (stage.fans_out, "is a generator", "return a list instead"),
            (plan.context is not None, "fills in a context", "take fields as parameters and return the result"),
            (
                plan.file is None,
                "was defined at a prompt",
                "write the job into a file: its source decides what is found",
            ),
        ):
            if stage.cache and refused:
                raise DefinitionError(
                    f'stage "{stage.name}" {why}, and can\'t have a cache', hint=hint, where=stage.where
                )
