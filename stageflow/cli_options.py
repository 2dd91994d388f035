"""Options that several commands share, and the plan that they make of a job."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from stageflow.settings import from_amounts, from_environment, from_file, from_pairs, parse_params

if TYPE_CHECKING:  # each command loads what it needs, and --help none of it
    from stageflow.loader import Job
    from stageflow.plan import Override, Plan

__all__ = ["LOOP", "as_typed", "engine_options", "job_options", "overrides", "plan_of"]

F = TypeVar("F", bound=Callable[..., Any])

LOOP: Final = click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    help="The event loop; auto is uvloop where it is installed.",
)

_JOB_OPTIONS: Final = (
    click.option("--max-in-flight", metavar="[STAGE=]N", multiple=True, help="Calls in progress at once. Repeatable."),
    click.option(
        "--queue-size", metavar="[STAGE=]N", multiple=True, help="Items that may wait in front of a stage. Repeatable."
    ),
    click.option(
        "--set", "pairs", metavar="STAGE.SETTING=VALUE", multiple=True, help="Any setting of a stage. Repeatable."
    ),
    click.option("-p", "params", metavar="NAME=VALUE", multiple=True, help="A parameter of the job. Repeatable."),
)

_ENGINE_OPTIONS: Final = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray", "static"]),
        default="local",
        show_default=True,
        help="Where the stages run: here, on a Ray cluster, or as one of several runs that others start.",
    ),
    click.option(
        "--address",
        default="auto",
        show_default=True,
        metavar="auto|HOST:PORT|local",
        help="The Ray cluster; local is one that is started for the run.",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Replicas on the cluster, each with the limits of the job but for rates.",
    ),
    click.option(
        "--max-in-flight-total",
        metavar="[STAGE=]N",
        multiple=True,
        help="Calls in progress at once in all replicas together. Repeatable.",
    ),
    click.option("--shard", metavar="I/N", help="With --engine static: which one of how many this is, from 0/N."),
    click.option(
        "--shard-bytes",
        type=click.IntRange(min=1),
        metavar="N",
        help="Input that a replica takes at a time.  [default: at most 1 MiB, 20 for each replica]",
    ),
    click.option(
        "--max-shard-attempts",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        metavar="N",
        help="Replicas that may die of a shard before it is given up.",
    ),
    click.option(
        "--env",
        metavar="NAME",
        multiple=True,
        help="A variable that replicas get as it is here; it is kept in no file. Repeatable.",
    ),
    click.option(
        "--replica-cpus",
        type=click.FloatRange(min=0),
        default=1.0,
        show_default=True,
        metavar="N",
        help="What a replica takes of its node's CPUs, by Ray's count.",
    ),
    click.option(
        "--replica-gpus",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="N",
        help="The same of its GPUs.",
    ),
    click.option(
        "--model-actors",
        metavar="[STAGE=]N",
        multiple=True,
        help="Processes on the cluster for a stage with gpus=, which all replicas call.  [default: 1]",
    ),
)

_WORDS: Final = {"max_in_flight": "--max-in-flight", "queue_size": "--queue-size", "pairs": "--set", "params": "-p"}
"""What is typed for each of them, by the name under which commands get it."""


def job_options(command: F) -> F:
    """What changes the job: settings and parameters."""
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """What runs past one machine are told."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command


def as_typed(given: Mapping[str, Any]) -> list[str]:
    """The values of :func:`job_options` as words of a command line again."""
    return [word for name, option in _WORDS.items() for value in given[name] for word in (option, value)]


def overrides(job: Job, given: Mapping[str, Any]) -> tuple[Override, ...]:
    """All settings from outside the job file, weakest first.

    Args:
        given: The values of :func:`job_options`, by name.

    Raises:
        SettingError: One of them is not of the form it should have.
    """
    return (
        *from_file(job.folder),
        *from_environment(os.environ),
        # One for a stage is stronger than one for every stage.
        *sorted(
            [
                *from_pairs(given["pairs"]),
                *from_amounts("queue_size", given["queue_size"], "--queue-size"),
                *from_amounts("max_in_flight", given["max_in_flight"], "--max-in-flight"),
            ],
            key=lambda override: override.stage is not None,
        ),
    )


def plan_of(job: Job, given: Mapping[str, Any]) -> Plan:
    """The job as these options, the environment and ``stageflow.toml`` make it.

    Raises:
        DefinitionError: With them it is wrong.
    """
    return job.pipeline.plan(overrides(job, given), parse_params(given["params"], job.pipeline.parameters))
