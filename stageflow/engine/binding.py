"""From a stage's parameters to a call: what the handler is given for an item.

For each stage one expression such as ``target(item.record['query'], item.results['retrieve'], index)`` is built and
compiled once. A loop over the parameters would cost several times the call itself, per record and stage. The text is
made of parameter names, which are identifiers, and of names given here; no text of the user's is ever evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stageflow.item import Item, Note, Outcome, ReadOnlyDict
from stageflow.plan import Plan
from stageflow.stage import Parameter, Stage

__all__ = ["Call", "bind", "read_only"]


def read_only(record: Any) -> Any:
    """The whole input record as a handler may see it."""
    return ReadOnlyDict(record) if isinstance(record, dict) else record


class Call:
    """What a handler can ask about its own call, as its parameter ``call``.

    Attributes:
        attempt: Which attempt this is, from 1.
        index: The record's place in the input, from 0.
        key: The value of the job's ``key`` field, or the index where there is none.
        outcomes: For each stage before this one ``"ok"``, ``"degraded"`` or ``"skipped"``.
    """

    __slots__ = ("_above", "_item", "_key", "_run", "_stage", "attempt")

    def __init__(
        self, item: Item, attempt: int, *, stage: str, key: str | None, run: str, above: tuple[str, ...]
    ) -> None:
        self.attempt = attempt
        self._item = item
        self._stage = stage
        self._key = key
        self._run = run
        self._above = above

    @property
    def index(self) -> int:
        return self._item.index

    @property
    def key(self) -> Any:
        record = self._item.record
        if self._key is not None and isinstance(record, Mapping) and self._key in record:
            return record[self._key]
        return self._item.index

    @property
    def idempotency_key(self) -> str:
        """The same text for every attempt at this stage of this record: for services that can drop a repeated call."""
        return f"{self._run}-{self._item.index}-{self._stage}"

    @property
    def outcomes(self) -> dict[str, Outcome]:
        notes: Mapping[str, Note] = self._item.notes or {}
        return {stage: notes[stage].outcome if stage in notes else "ok" for stage in self._above}

    def report(self, *, tokens: int) -> None:
        """Say how many tokens the call used."""


def bind(
    stage: Stage, plan: Plan, resources: Mapping[str, Any], target: Callable[..., Any], run: str
) -> Callable[..., Any]:
    """Compile ``call(item, attempt, ctx)``, which calls ``target`` with the stage's arguments for that item.

    ``call`` raises ``KeyError`` where a field is missing; :mod:`stageflow.engine.attempt` says so in the user's words.

    Args:
        target: What is called: the handler, or something that runs it elsewhere.
        run: The identity of the run, for idempotency keys.
    """
    names: dict[str, Any] = {"target": target, "read_only": read_only, "params": plan.params}
    above = tuple(name for name in plan.order if name in plan.ancestors[stage.name])

    def make_call(item: Item, attempt: int) -> Call:
        return Call(item, attempt, stage=stage.name, key=plan.key, run=run, above=above)

    names["make_call"] = make_call
    arguments = []
    in_process = stage.run == "process"
    for position, parameter in enumerate(stage.parameters):
        if in_process and parameter.kind == "resource":
            continue  # it lives in the child, which adds it by name
        expression = _expression(parameter, f"given{position}", stage, plan)
        names[f"given{position}"] = resources.get(parameter.name) if parameter.kind == "resource" else parameter.default
        arguments.append(f"{parameter.name}={expression}" if parameter.by_keyword or in_process else expression)
    source = f"lambda item, attempt=1, ctx=None: target({', '.join(arguments)})"
    return eval(source, names)  # type: ignore[no-any-return]


def _expression(parameter: Parameter, given: str, stage: Stage, plan: Plan) -> str:
    name = parameter.name
    match parameter.kind:
        case "stage":
            return f"item.results[{name!r}]"
        case "resource":
            return given
        case "field":
            return f"item.record[{name!r}]" if parameter.required else f"item.record.get({name!r}, {given})"
        case "record":
            return "read_only(item.record)"
        case "results":
            return "{" + ", ".join(f"{need!r}: item.results[{need!r}]" for need in stage.dependencies) + "}"
        case "params":
            return "params"
        case "call":
            return "make_call(item, attempt)"
        case "ctx":
            return "ctx" if plan.context is not None else "read_only(item.record)"
