"""From a draft to a plan: what each name means, and in which order stages and resources come."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stageflow import graph
from stageflow.errors import DefinitionError, GraphError, SettingError
from stageflow.plan.checks import check_plan
from stageflow.plan.draft import Draft, ResourceDraft, StageDraft
from stageflow.plan.frozen import Plan, Resource
from stageflow.plan.overrides import Override, prices_of, settings_of
from stageflow.plan.params import Params
from stageflow.policies.hedging import hedge_of
from stageflow.policies.retry import retry_of
from stageflow.stage import RESERVED, Kind, Parameter, Stage, is_generator, parameters_of

__all__ = ["freeze"]


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
    values = _values(draft, params or {})
    _check_overrides(draft, overrides)
    prices = prices_of(draft, overrides)
    stages = {stage.name: _stage(stage, draft, overrides) for stage in draft.stages}
    plan = Plan(
        name=draft.name,
        where=draft.where,
        stages=stages,
        order=_ordered("stage", {name: stage.dependencies for name, stage in stages.items()}, stages),
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
    check_plan(plan)
    return plan


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


def _values(draft: Draft, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the parameters: their defaults, where none is given."""
    values = dict(draft.params)
    for name, value in given.items():
        if name not in values:
            raise SettingError(f'the job has no parameter "{name}"', hint=_near(name, values, "parameters are"))
        values[name] = value
    return values


def _check_overrides(draft: Draft, overrides: Sequence[Override]) -> None:
    """What is set from outside is for stages that there are."""
    names = [stage.name for stage in draft.stages]
    for override in overrides:
        if override.stage is not None and override.stage not in names:
            raise SettingError(
                f'{override.origin}: unknown stage "{override.stage}"; stages are: ' + ", ".join(names),
                hint=_near(override.stage, names, "stages are"),
            )


def _near(name: str, names: Collection[str], otherwise: str) -> str:
    near = graph.nearest(name, names)
    return f'did you mean "{near}"?' if near else f"{otherwise}: " + (", ".join(names) or "none")


def _stage(draft: StageDraft, job: Draft, overrides: Sequence[Override]) -> Stage:
    owner = f'stage "{draft.name}"'
    parameters = tuple(_resolve(p, job) for p in parameters_of(owner, draft.handler, draft.where))
    settings = settings_of(draft, overrides)
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
    return {
        name: Resource(name, names[name].function, names[name].scope, uses[name], names[name].where)
        for name in _ordered("resource", edges, names)
    }


def _ordered(
    kind: str, dependencies: Mapping[str, tuple[str, ...]], owners: Mapping[str, Stage] | Mapping[str, ResourceDraft]
) -> tuple[str, ...]:
    """The names, each after those it depends on."""
    order = graph.topological_order(dependencies)
    if order is None:
        cycle = graph.find_cycle(dependencies)
        assert cycle is not None, "no order, yet no cycle"
        raise GraphError(
            f"{kind}s form a cycle: " + " -> ".join(cycle),
            hint=f"a parameter named after a {kind} is an edge; rename a parameter or a {kind}",
            where=owners[cycle[0]].where,
        )
    return order
