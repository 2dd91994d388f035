"""What of a run's settings belongs to each of its processes; and what can't be divided."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

from stageflow.errors import DefinitionError, RequestError
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.work import JobOrigin

__all__ = ["loading", "options_of", "origins"]

loading: Final[set[str]] = set()
"""In a process of a run, the job that is just being loaded."""

_NEVER_SECONDS: Final = 1e8


def origins(plan: Plan, options: Options, elsewhere: Callable[[Sequence[Override]], JobOrigin]) -> list[JobOrigin]:
    """Where each process finds the job, with its part of the limits. Rate limits are divided as they are used.

    Raises:
        RequestError: A limit is too small for so many, or something can't be sent there.
        DefinitionError: With its part of the limits the job is wrong.
    """
    count = options.processes
    if loading:
        raise RequestError(
            "the job starts a run of its own while a process of a run loads it",
            hint='put it under `if __name__ == "__main__":`',
        )
    _refuse_small_limits(plan, options)
    elsewhere(())  # can it be found there at all?
    try:
        found = [elsewhere(_divided(plan, count, place)) for place in range(count)]
    except DefinitionError as error:
        error.message = f"--processes {count}: with its part of the limits in each process, {error.message}"
        raise
    try:
        pickle.dumps(found)
    except Exception as error:
        raise RequestError(
            f"--processes {count}: the settings and parameters can't be sent to another process: {error}",
            hint="give parameters that can be pickled",
        ) from error
    return found


def options_of(options: Options, place: int) -> Options:
    """What of the run's options concerns one process."""
    return Options(
        order="completion",
        strict=options.strict,
        on_bad_input=options.on_bad_input,
        max_open_records=_part(options.max_open_records, options.processes, place),
        max_retry_after=options.max_retry_after,
        debug=options.debug,
        cache=options.cache,
        grace=_NEVER_SECONDS,  # it is the fleet that gives up waiting
    )


def _refuse_small_limits(plan: Plan, options: Options) -> None:
    count = options.processes
    limits = [
        (f'stage "{stage.name}" has {setting}', f"--{setting.replace('_', '-')} {stage.name}=", getattr(stage, setting))
        for stage in plan.stages.values()
        for setting in ("max_in_flight", "queue_size")
    ]
    if options.max_open_records is not None:
        limits.append(("there is max_open_records", "--max-open-records ", options.max_open_records))
    for what, option, limit in limits:
        if limit < count:
            raise RequestError(
                f"--processes {count}: {what} {limit}, which is not one for each process",
                hint=f"run with --processes {limit}, or with {option}{count}",
            )


def _divided(plan: Plan, count: int, place: int) -> list[Override]:
    return [
        Override(stage.name, setting, _part(getattr(stage, setting), count, place), "--processes")
        for stage in plan.stages.values()
        for setting in ("max_in_flight", "queue_size")
    ]


def _part(whole: int | None, count: int, place: int) -> Any:
    return None if whole is None else whole // count + (place < whole % count)
