"""What ``stageflow check`` prints: the stages of a job, their edges, and each setting with where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from stageflow.report.text import printable

__all__ = ["describe_plan"]

_ALWAYS = ("max_in_flight", "queue_size", "run", "timeout", "on_error")
_WHERE_SET = (
    "gpus",
    "retry",
    "hedge",
    "rate_limit",
    "batch",
    "when",
    "emit",
    "version",
    "cache",
    "model",
    "max_tokens",
)


class _Plan(Protocol):
    """What of a plan is listed; the report does not know the plan itself."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> Sequence[str]: ...
    @property
    def stages(self) -> Mapping[str, Any]: ...
    @property
    def resources(self) -> Mapping[str, Any]: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def required(self) -> Mapping[str, str]: ...
    @property
    def prices(self) -> Mapping[str, Any]: ...
    @property
    def price_origins(self) -> Mapping[str, str]: ...
    @property
    def max_open_records(self) -> int: ...


def describe_plan(plan: _Plan) -> str:
    """The job as lines of text, stages in execution order."""
    lines = [f"{printable(plan.name)}: {len(plan.order)} stages, at most {plan.max_open_records} records open"]
    if plan.params:
        lines.append("  params: " + ", ".join(f"{name}={value!r}" for name, value in plan.params.items()))
    if plan.resources:
        lines.append("  resources: " + ", ".join(plan.resources))
    if plan.required:
        lines.append("  required fields: " + ", ".join(plan.required))
    for model, price in plan.prices.items():
        per = f"input {price.input:g}, output {price.output:g} per million tokens"
        lines.append(f"  price of {printable(model)}: {per}  ({plan.price_origins[model]})")
    for name in plan.order:
        lines += _stage_lines(plan.stages[name])
    return "\n".join(lines)


def _stage_lines(stage: Any) -> Iterable[str]:
    after = f" after {', '.join(stage.dependencies)}" if stage.dependencies else ""
    yield f"{stage.name}({', '.join(p.name for p in stage.parameters)}){after}  [{stage.where}]"
    for setting in (*_ALWAYS, *_WHERE_SET):
        value, origin = getattr(stage, setting), stage.origins.get(setting, "default")
        if setting in _ALWAYS or origin != "default":
            value = getattr(value, "__name__", value)
            yield f"    {setting} = {printable(str(value))}" + ("" if origin == "default" else f"  ({origin})")
