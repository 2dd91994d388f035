"""``stageflow bench``: the job over the same input at several settings, records per second as medians and as a curve.

The settings take turns, one run of each per round: what a service does slower at one time of the day, and what only a
first run pays for, falls on all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stageflow.cli_options import overrides
from stageflow.ends import source_of
from stageflow.entry import guarded, run_on_loop
from stageflow.errors import InputDamaged, RequestError, RunStopped, SettingError, StorageError
from stageflow.loader import Job
from stageflow.options import Options
from stageflow.plan import Override, Plan
from stageflow.report.curve import Curve, Point, Series, bars, knee_text, svg
from stageflow.report.stats import RunReport
from stageflow.report.summary import bottleneck
from stageflow.report.text import counted, duration, percent, printable
from stageflow.runner import Run
from stageflow.settings import parse_params

__all__ = ["sweep"]

_ROUNDS: Final = 10
"""Calls per worker that a run should have at least: starting up and running dry take about one more."""

_SLOWER: Final = 1.25
"""By how much calls take longer where it is the service that has enough of them; less may be chance."""

Setting = tuple[str, str, int]
"""Stage, setting, value."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One combination of the swept values, and what its runs came to."""

    combination: tuple[Setting, ...]
    plan: Plan
    reports: list[RunReport] = field(default_factory=list)

    @property
    def name(self) -> str:
        return printable(_name(self.combination)) or "as it stands"

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(report.per_second for report in self.reports)

    @property
    def typical(self) -> RunReport:
        """The run in the middle."""
        return sorted(self.reports, key=lambda report: report.per_second)[len(self.reports) // 2]


def sweep(
    job: Job, input_: str, given: Mapping[str, Any], *, tell: Callable[[str], None], show: Callable[[str], None]
) -> None:
    """Measure every combination of the swept values.

    Args:
        given: The options of the command, by name.
        tell: Says something while it goes.
        show: Prints what came out, also where it ends before its time: those calls were made.

    Raises:
        SettingError: A sweep is not of the form STAGE=N,N, or sweeps what another one does.
        RequestError: It can't be done, or neither ``--limit`` nor ``--yes`` says that the calls are wanted.
        RunStopped: A run was stopped by policy, so its throughput says nothing.
        StorageError: The picture can't be written; the rest was shown.
    """
    axes = list(_axes(given))
    _check_plot(given["plot"], axes)
    rows = _rows(job, axes, given)  # refuses a wrong stage before the first call is made
    _announce(rows, input_, given, tell)
    try:
        for number, row in itertools.product(range(1, given["repeat"] + 1), rows):
            report = _measure(row, input_, given, job)
            row.reports.append(report)
            tell(f"  round {number} of {given['repeat']}, {row.name}: {report.per_second:,.1f} records/s")
    except (KeyboardInterrupt, RunStopped):
        _account(job, axes, rows, given, show)
        raise
    _account(job, axes, rows, given, show)


# Before the first call


def _axes(given: Mapping[str, Any]) -> Iterator[list[Setting]]:
    seen: set[tuple[str, str]] = set()
    for option, setting in (("--sweep", "max_in_flight"), ("--sweep-queue", "queue_size")):
        for text in given[option.removeprefix("--").replace("-", "_")]:
            stage, numbers = _values(text)
            if (stage, setting) in seen:
                raise SettingError(f"{option}: {stage} is given twice", hint=f"give it once: {option} {stage}=N,N,...")
            seen.add((stage, setting))
            yield [(stage, setting, number) for number in numbers]


def _values(text: str) -> tuple[str, list[int]]:
    stage, equals, values = text.partition("=")
    try:
        numbers = [int(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not equals or not stage.strip() or not numbers or min(numbers) < 1:
        raise SettingError(f"{text}: expected STAGE=N,N,...", hint="for instance --sweep generate=8,16,32")
    return stage.strip(), list(dict.fromkeys(numbers))


def _check_plot(plot: str | None, axes: Sequence[Sequence[Setting]]) -> None:
    if plot is None:
        return
    if not plot.endswith(".svg"):
        raise RequestError(
            f"--plot {plot}: only SVG is drawn",
            hint="give a name that ends in .svg; a browser prints it as what you like",
        )
    if _axis(axes) is None:
        raise RequestError("--plot draws a curve over what is swept", hint="for instance --sweep generate=8,16,32")
    folder = os.path.dirname(plot) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(plot):
        raise RequestError(f"cannot write {plot}", hint="give a file in a folder that can be written to")


def _rows(job: Job, axes: Sequence[Sequence[Setting]], given: Mapping[str, Any]) -> list[_Row]:
    base, params = overrides(job, given), parse_params(given["params"], job.pipeline.parameters)
    combinations = itertools.product(*axes)
    return [_Row(each, job.pipeline.plan((*base, *_as_overrides(each)), params)) for each in combinations]


def _as_overrides(combination: Sequence[Setting]) -> tuple[Override, ...]:
    return tuple(Override(stage, setting, value, "--sweep") for stage, setting, value in combination)


def _announce(rows: Sequence[_Row], input_: str, given: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    records = _count(input_)
    if given["limit"] is not None:
        records = min(records, given["limit"])
    runs, stages = len(rows) * given["repeat"], rows[0].plan.stages
    retried = ", and what is tried again" if any(stage.retry is not None for stage in stages.values()) else ""
    tell(
        f"stageflow: {runs} runs of {records:,} records through {len(stages)} stages: "
        f"up to {runs * records * len(stages):,} calls{retried}"
    )
    if given["limit"] is None and not given["yes"]:
        raise RequestError(
            "a benchmark makes real calls", hint="pass --limit N for a part of the input, or --yes for all of it"
        )


def _count(path: str) -> int:
    """The records of an input, of whatever form."""
    source = source_of(path)
    if source.path == "-":
        raise RequestError("a benchmark reads its input several times", hint="give a file")
    source.check()
    if source.identity() is None:
        raise RequestError("a benchmark reads its input several times", hint="give a file")

    async def count() -> int:
        return sum([sum(1 for _ in portion) async for portion in source.read()])

    try:
        return asyncio.run(count())
    except (InputDamaged, RunStopped) as error:
        raise RequestError(f"cannot read {path}: {error.message}") from None


# One run


def _discard(record: object) -> None:
    """A sink for what is only to be timed."""


def _measure(row: _Row, input_: str, given: Mapping[str, Any], job: Job) -> RunReport:
    options = Options(limit=given["limit"], dead=_discard, cache=False)
    run = Run(row.plan, input_, _discard, options, job.pipeline._prepare)
    report = run_on_loop(lambda: guarded(run.execute()), given["loop"])
    if report.stopped is not None:
        hint = "a run that is cut short has no throughput; mend what stopped it, or leave this setting out"
        raise RunStopped(f"{row.name}: {report.stopped}", hint=hint)
    return report


# What came out


def _account(
    job: Job,
    axes: Sequence[Sequence[Setting]],
    rows: Sequence[_Row],
    given: Mapping[str, Any],
    show: Callable[[str], None],
) -> None:
    """Show the settings that were measured, and draw them."""
    rows = [row for row in rows if row.reports]
    if not rows:
        return
    curve = _curve(job, axes, rows)
    if given["as_json"]:
        show(json.dumps(_document(job, curve, rows)))
    else:
        encoding = sys.stdout.encoding if sys.stdout is not None else None
        text = _text(curve, rows, encoding)
        show(text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8"))
    if given["plot"] is not None and curve is not None:
        try:
            with open(given["plot"], "w", encoding="utf-8") as file:
                file.write(svg(curve) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {given['plot']}: {error.strerror}", hint="the figures are above"
            ) from None


def _axis(axes: Sequence[Sequence[Setting]]) -> tuple[str, str] | None:
    """The stage and the setting along the axis of the curve: the first that is in flight, else the first of all."""
    swept = [axis[0][:2] for axis in axes if len(axis) > 1]
    return next((axis for axis in swept if axis[1] == "max_in_flight"), swept[0] if swept else None)


def _curve(job: Job, axes: Sequence[Sequence[Setting]], rows: Sequence[_Row]) -> Curve | None:
    axis = _axis(axes)
    if axis is None:
        return None
    series: dict[str, list[Point]] = {}
    for row in rows:
        value = next(each[2] for each in row.combination if each[:2] == axis)
        others = _name([each for each in row.combination if each[:2] != axis])
        series.setdefault(others, []).append(Point(value, row.rates, row.name))
    drawn = (Series(name, tuple(sorted(points, key=lambda p: p.value))) for name, points in series.items())
    return Curve(job.pipeline.name, *axis, tuple(drawn))


def _name(combination: Sequence[Setting]) -> str:
    return " ".join(
        f"{stage}={value}" if setting == "max_in_flight" else f"{stage} queue={value}"
        for stage, setting, value in combination
    )


def _document(job: Job, curve: Curve | None, rows: Sequence[_Row]) -> dict[str, Any]:
    knees = {knee.name for series in curve.series if (knee := curve.knee(series))} if curve is not None else set()
    return {
        "pipeline": job.pipeline.name,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": [
            {
                "setting": [{"stage": stage, setting: value} for stage, setting, value in row.combination],
                "per_second": statistics.median(row.rates),
                "slowest": min(row.rates),
                "fastest": max(row.rates),
                "rates": row.rates,
                "knee": row.name in knees,
                "dead": row.typical.dead,
                "busy": {name: round(stage.busy, 3) for name, stage in row.typical.stages.items()},
                "p50": {name: stage.p50 for name, stage in row.typical.stages.items()},
                "bottleneck": bottleneck(row.typical),
            }
            for row in rows
        ],
    }


def _text(curve: Curve | None, rows: Sequence[_Row], encoding: str | None) -> str:
    width = max(len("setting"), *(len(row.name) for row in rows))
    parts = [_table(rows, width)]
    if curve is None:
        return "\n\n".join([*parts, bottleneck(rows[-1].typical)])
    columns = shutil.get_terminal_size((100, 24)).columns if sys.stdout is not None and sys.stdout.isatty() else 100
    parts.append(bars(curve, width=columns, encoding=encoding, names=width))
    return "\n\n".join(part for part in [*parts, knee_text(curve), *_why(curve, rows), *_notes(curve, rows)] if part)


def _table(rows: Sequence[_Row], width: int) -> str:
    """One line per setting, with the gain over the first one."""
    lines = [f"{'setting':<{width}}  {'records/s':>11}  {'ratio':>6}  {'slowest':>9}  {'fastest':>9}  {'dead':>6}"]
    first = statistics.median(rows[0].rates) or 1.0
    for row in rows:
        median = statistics.median(row.rates)
        lines.append(
            f"{row.name:<{width}}  {median:>11,.1f}  {median / first:>5.2f}x"
            f"  {min(row.rates):>9,.1f}  {max(row.rates):>9,.1f}  {row.typical.dead:>6,}"
        )
    return "\n".join(lines)


def _why(curve: Curve, rows: Sequence[_Row]) -> Iterator[str]:
    """What holds the widest setting of the fastest series back."""
    runs = {row.name: row.typical for row in rows}
    series = max(curve.series, key=lambda series: max(point.median for point in series.points))
    last, stage = series.points[-1], printable(curve.stage)
    before, after = (runs[point.name].stages[curve.stage].p50 for point in (curve.knee(series) or last, last))
    if before and after and after >= _SLOWER * before:
        longer = f"p50 {duration(before)} -> {duration(after)}"
        busy = "what they wait for, a service or this machine, has enough of them"
        yield f"Beyond the knee calls of {stage} take longer ({longer}): {busy}."
    else:
        yield f"At {printable(last.name)}: {bottleneck(runs[last.name])}"


def _notes(curve: Curve, rows: Sequence[_Row]) -> Iterator[str]:
    """What makes the figures mean less than it seems."""
    worst = max(rows, key=lambda row: row.typical.dead)
    if dead := worst.typical.dead:
        share = percent(dead / worst.typical.settled)
        yield f"Note: at {printable(worst.name)} {share} of the records are dead letters; they count as done here."
    most = max(point.value for point in curve.points)
    calls = min(row.typical.stages[curve.stage].received for row in rows)
    if curve.setting == "max_in_flight" and calls < _ROUNDS * most:
        yield (
            f"Note: {counted(calls, 'call')} for {most} in flight: a run starts up and runs dry, "
            f"which matters little from {_ROUNDS * most:,} calls on."
        )
