"""Tokens and money in the summary: what the calls used, and what the whole input would cost."""

from __future__ import annotations

from collections.abc import Sequence

from stageflow.money import amount_of, shown
from stageflow.report.stats import RunReport, StageReport
from stageflow.report.text import count, counted, duration

__all__ = ["cost_columns", "cost_lines"]


def cost_columns(stages: Sequence[StageReport]) -> list[tuple[str, list[str]]]:
    """Columns of the table by title; only those of which some stage has something."""
    either = [stage.tokens if stage.tokens > stage.input_tokens + stage.output_tokens else 0 for stage in stages]
    columns = [
        ("tokens", list(map(count, either))),
        ("tokens\nin", [count(stage.input_tokens) for stage in stages]),
        ("tokens\nout", [count(stage.output_tokens) for stage in stages]),
        ("cost", [_amount(stage.cost) if stage.cost else "0" for stage in stages]),
        ("unsure", [_amount(stage.cost_unsure) if stage.cost_unsure else "0" for stage in stages]),
    ]
    return [(title, values) for title, values in columns if any(value != "0" for value in values)]


def cost_lines(report: RunReport) -> list[str]:
    """What the calls have cost, and what the whole input would; nothing where no call told of anything."""
    stages = report.stages.values()
    lines = []
    if report.cost + report.cost_earlier + report.cost_unsure + report.cost_unsure_earlier:
        lines.append(_total(report))
    if over := sum(stage.over for stage in stages):
        lines.append(f"{counted(over, 'call')} cost more than max_tokens allow")
    if unpriced := sum(stage.unpriced for stage in stages):
        lines.append(f"{counted(unpriced, 'token')} have no price and are not in the cost")
    if report.forecast is not None:
        lines.append(_forecast(report))
    return lines


def _total(report: RunReport) -> str:
    cost, unsure = report.cost + report.cost_earlier, report.cost_unsure + report.cost_unsure_earlier
    terms = [f"cost: {_amount(cost)}"]
    if unsure:
        untold = sum(stage.untold for stage in report.stages.values())
        calls = f" ({counted(untold, 'call')} did not report)" if untold else ""
        terms.append(f"at most {_amount(cost + unsure)}{calls}")
    if report.cost_earlier or report.cost_unsure_earlier:
        terms.append(f"{_amount(report.cost_earlier + report.cost_unsure_earlier)} of it in earlier runs")
    if report.budget is not None:
        terms.append(f"of a budget of {_amount(report.budget)}")
    return ", ".join(terms)


def _forecast(report: RunReport) -> str:
    found = report.forecast
    assert found is not None, "a forecast that was not made"
    cost = f"cost about {_amount(found.cost)} and " if found.cost else ""
    records = f"about {counted(found.records, 'record')}"
    return f"the whole input ({records}) would {cost}take about {duration(found.seconds)} at this rate: an estimate"


def _amount(number: float) -> str:
    return shown(amount_of(number))
