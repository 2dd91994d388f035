"""A job that is known to be right, and what follows from its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stageflow import graph
from stageflow.contexts import required_fields
from stageflow.money import Price
from stageflow.plan.draft import Scope
from stageflow.plan.params import Params
from stageflow.stage import Stage

__all__ = ["Plan", "Resource"]


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
