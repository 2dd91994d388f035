"""``stageflow bench``: the job over the same input at several settings, records per second as medians."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from stageflow.entry import guarded, run_on_loop
from stageflow.errors import RequestError, SettingError
from stageflow.loader import Job
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.report.stats import RunReport
from stageflow.report.summary import bottleneck
from stageflow.runner import Run
from stageflow.settings import parse_params

__all__ = ["sweep"]

Setting = tuple[str, str, int]
"""Stage, setting, value."""


def sweep(job: Job, input_: str, given: Mapping[str, Any], overrides: Callable[..., tuple[Override, ...]]) -> int:
    """Measure every combination of the swept values.

    Raises:
        SettingError: A sweep is not of the form STAGE=N,N.
        RequestError: Neither ``--limit`` nor ``--yes`` says that the calls are wanted.
    """
    if input_ == "-":
        raise RequestError("a benchmark reads its input several times", hint="give a file")
    axes = [*_axes("max_in_flight", given["sweep"]), *_axes("queue_size", given["sweep_queue"])]
    combinations = list(itertools.product(*axes))
    base = overrides(job, given)
    params = parse_params(given["params"], job.pipeline.parameters)
    for combination in combinations:  # refuse a wrong stage before the first call is made
        plan = job.pipeline.plan((*base, *_as_overrides(combination)), params)
    records = given["limit"] or _count(input_)
    runs = len(combinations) * given["repeat"]
    calls = runs * records * len(plan.stages)
    click.echo(
        f"stageflow: {runs} runs of {records:,} records through {len(plan.stages)} stages: up to {calls:,} calls",
        err=True,
    )
    if given["limit"] is None and not given["yes"]:
        raise RequestError(
            "a benchmark makes real calls", hint="pass --limit N for a part of the input, or --yes for all of it"
        )
    rows = []
    for combination in combinations:
        plan = job.pipeline.plan((*base, *_as_overrides(combination)), params)
        reports = [_measure(plan, input_, given, job) for _ in range(given["repeat"])]
        rows.append(_row(combination, reports))
        click.echo(f"  {_name(combination)}: {rows[-1]['per_second']:,.1f} records/s", err=True)
    click.echo(json.dumps(_document(job, rows)) if given["as_json"] else _table(rows))
    return 0


def _axes(setting: str, given: Iterable[str]) -> Iterator[list[Setting]]:
    for text in given:
        stage, equals, values = text.partition("=")
        try:
            numbers = [int(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not equals or not numbers or min(numbers) < 1:
            raise SettingError(f"{text}: expected STAGE=N,N,...", hint="for instance --sweep generate=8,16,32")
        yield [(stage.strip(), setting, number) for number in numbers]


def _as_overrides(combination: Sequence[Setting]) -> tuple[Override, ...]:
    return tuple(Override(stage, setting, value, "--sweep") for stage, setting, value in combination)


def _count(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def _discard(record: object) -> None:
    """A sink for what is only to be timed."""


def _measure(plan: Plan, input_: str, given: Mapping[str, Any], job: Job) -> RunReport:
    options = Options(limit=given["limit"], dead=_discard)
    run = Run(plan, input_, _discard, options, job.pipeline._prepare)
    return run_on_loop(lambda: guarded(run.execute()), given["loop"])


def _row(combination: Sequence[Setting], reports: Sequence[RunReport]) -> dict[str, Any]:
    rates = [report.per_second for report in reports]
    median = sorted(reports, key=lambda report: report.per_second)[len(reports) // 2]
    return {
        "setting": [{"stage": stage, setting: value} for stage, setting, value in combination],
        "per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "dead": median.dead,
        "busy": {name: round(stage.busy, 3) for name, stage in median.stages.items()},
        "bottleneck": bottleneck(median),
    }


def _name(combination: Sequence[Setting]) -> str:
    names = (
        f"{stage}={value}" if setting == "max_in_flight" else f"{stage} queue={value}"
        for stage, setting, value in combination
    )
    return " ".join(names) or "as it stands"


def _document(job: Job, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "pipeline": job.pipeline.name,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": rows,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per setting, with the gain over the first one."""
    names = [
        " ".join(
            f"{s['stage']}={s['max_in_flight']}" if "max_in_flight" in s else f"{s['stage']} queue={s['queue_size']}"
            for s in row["setting"]
        )
        or "as it stands"
        for row in rows
    ]
    width = max(len("setting"), *map(len, names))
    lines = [f"{'setting':<{width}}  {'records/s':>11}  {'ratio':>6}  {'slowest':>9}  {'fastest':>9}  {'dead':>6}"]
    first = rows[0]["per_second"] or 1.0
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"{name:<{width}}  {row['per_second']:>11,.1f}  {row['per_second'] / first:>5.2f}x"
            f"  {row['slowest']:>9,.1f}  {row['fastest']:>9,.1f}  {row['dead']:>6,}"
        )
    return "\n".join([*lines, "", rows[-1]["bottleneck"]])
