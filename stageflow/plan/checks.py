"""What is right by itself, and not together: a stage's settings, its place in the graph, and the style of the job."""

from __future__ import annotations

import os
from itertools import pairwise

from stageflow.errors import DefinitionError, GraphError, SettingError
from stageflow.plan.frozen import Plan
from stageflow.stage import Stage

__all__ = ["check_plan"]


def check_plan(plan: Plan) -> None:
    """Refuse a job that could not run, or not as it is meant.

    Raises:
        DefinitionError: With the place in the job file.
    """
    _check_files(plan)
    for check in (_check_process, _check_fan_out, _check_batch, _check_hedge, _check_cache):
        for stage in plan.stages.values():
            check(plan, stage)


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


def _check_process(plan: Plan, stage: Stage) -> None:
    """A stage in processes can use what can be there: resources of that scope, and nothing bound to the loop."""
    if stage.gpus is not None and stage.run != "process":
        raise DefinitionError(
            f'stage "{stage.name}" has gpus=, which is for processes of its own, and runs as "{stage.run}"',
            hint='run="process", with the model as a @pipeline.resource(scope="process")',
            where=stage.where,
        )
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


def _check_fan_out(plan: Plan, stage: Stage) -> None:
    """Refuse what can't be told apart: the children of one fan-out meeting those of another that is not above it."""
    for outer, inner in pairwise(plan.fan_outs[stage.name]):
        if outer not in plan.ancestors[inner]:
            raise GraphError(
                f'stage "{stage.name}" depends on two unrelated fan-outs, "{outer}" and "{inner}": '
                "their children can't be joined",
                hint="let one of them return a list, or depend on the other",
                where=stage.where,
            )
    hint = "return a list instead"
    if stage.fans_out:
        _refuse(
            stage,
            "is a generator, and a fan-out is not possible {}",
            (stage.run == "process", "in a process", hint),
            (stage.batch is not None, "over a batch", hint),
            (plan.context is not None, "in the context style", hint),
        )


def _check_batch(plan: Plan, stage: Stage) -> None:
    """Refuse a batch that could never fill, or in a style that has no lists."""
    if stage.batch is None:
        return
    if plan.context is not None:
        raise DefinitionError(f'stage "{stage.name}": no batches in the context style', where=stage.where)
    if stage.batch.size > plan.max_open_records:
        raise SettingError(
            f'stage "{stage.name}": a batch of {stage.batch.size} is larger than what can be in flight '
            f"({plan.max_open_records} records)",
            hint="raise queue_size",
            where=stage.where,
        )


def _check_hedge(plan: Plan, stage: Stage) -> None:
    """Refuse a second call where one can't be told from the first, or can't be ended when it is not needed any more."""
    hint = "it is for async functions that take one record; else leave hedge= out"
    if stage.hedge is not None:
        _refuse(
            stage,
            "has hedge=, and a second call is not possible {}",
            (stage.batch is not None, "over a batch", hint),
            (stage.fans_out, "of a generator: its children would be made twice", hint),
            (plan.context is not None, "in the context style: both would fill in one context", hint),
            (stage.run != "async", f'as "{stage.run}": such a call can\'t be cancelled', hint),
        )


def _check_cache(plan: Plan, stage: Stage) -> None:
    """Refuse a cache where a result is more than what one call returns, or where the job's source can't be seen."""
    if stage.cache:
        _refuse(
            stage,
            "{}, and can't have a cache",
            (stage.batch is not None, "takes batches", "take one record at a time, or cache the stage before it"),
            (stage.fans_out, "is a generator", "return a list instead"),
            (plan.context is not None, "fills in a context", "take fields as parameters and return the result"),
            (
                plan.file is None,
                "was defined at a prompt",
                "write the job into a file: its source decides what is found",
            ),
        )


def _refuse(stage: Stage, message: str, *cases: tuple[bool, str, str]) -> None:
    """Refuse a stage by the first of the cases that holds.

    Args:
        message: What is said of the stage, with ``{}`` for the reason.
        cases: Whether it holds, the reason, and the hint.
    """
    for holds, reason, hint in cases:
        if holds:
            raise DefinitionError(f'stage "{stage.name}" ' + message.format(reason), hint=hint, where=stage.where)
