"""What a run came to, on one screen: the balance, a table of the stages, and the one sentence about the bottleneck."""

from __future__ import annotations

import json

from stageflow.report.bottleneck import bottleneck
from stageflow.report.costs import cost_lines
from stageflow.report.stats import RunReport
from stageflow.report.table import tables
from stageflow.report.text import count, counted, duration, printable

__all__ = ["bottleneck", "summary_json", "summary_text"]


def summary_text(report: RunReport, *, width: int = 100) -> str:
    """The balance, the table and the bottleneck, for a terminal; no line ends in a newline but the inner ones.

    Args:
        report: The run.
        width: Columns there are, >= 20. A table that is wider is cut into several, by columns; the sentence is not cut.
    """
    parts = ["\n".join(_head(report))]
    if report.stages:
        parts += tables(list(report.stages.values()), width)
    if lines := [*_cache_lines(report), *cost_lines(report)]:
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, bottleneck(report)])


def summary_json(report: RunReport) -> str:
    """The report as one line of JSON, ASCII only, with the sentence under ``bottleneck``."""
    return json.dumps({**report.as_dict(), "bottleneck": bottleneck(report)})


def _head(report: RunReport) -> list[str]:
    terms = [f"{count(report.written)} written", f"{count(report.dropped)} dropped", f"{count(report.dead)} dead"]
    if report.not_done:
        terms.append(f"{count(report.not_done)} not done")
    speed = f"{report.per_second:,.0f}" if report.per_second >= 9.95 else f"{report.per_second:.2g}"
    lines = [f"{count(report.read)} read = {' + '.join(terms)} in {duration(report.seconds)} ({speed} records/s)"]
    notes = []
    if report.earlier:
        notes.append(f"{count(report.earlier)} of them in earlier runs")
    if report.bad:
        notes.append(f"{count(report.bad)} of the dead could not be read as records")
    if report.blank:
        notes.append(f"{counted(report.blank, 'blank line')} left out")
    if notes:
        lines.append("; ".join(notes))
    if report.stopped is not None:
        lines.append(f"stopped: {printable(report.stopped)}")
    return lines


def _cache_lines(report: RunReport) -> list[str]:
    """For each stage with a cache, how much of its work was done before."""
    return [
        f"{printable(stage.name)}: {count(stage.cached)} of {count(stage.received)} from the cache, "
        f"{counted(stage.calls, 'call')}"
        for stage in report.stages.values()
        if stage.cached is not None
    ]
