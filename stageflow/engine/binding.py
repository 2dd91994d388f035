"""From a stage's parameters to a call: what the handler is given for an item, or for a batch of items.

For each stage one expression such as ``target(item.record['query'], item.results['retrieve'], index)`` is built and
compiled once. A loop over the parameters would cost several times the call itself, per record and stage. The text is
made of parameter names, which are identifiers, and of names given here; no text of the user's is ever evaluated.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

from stageflow.engine.brakes import Told
from stageflow.engine.spending import Report
from stageflow.item import Exit, Item, Note, Outcome, ReadOnlyDict
from stageflow.plan import Plan
from stageflow.stage import Parameter, Stage

__all__ = ["CLOSED", "Binder", "Call", "read_only"]

CLOSED: Final = Exit("gone")
"""What a turn answers where it comes to an item that has been given up elsewhere."""

_TURN: Final = """
async def turn(bulk, each):
    for item in each:
        if item.closed:
            return CLOSED
        value = await {call}
        if type(value) is Exit or not bulk:
            return value
        item.results[{stage!r}] = value
"""
"""Calls the handler for each item of a bulk; answers at the first that has to be dealt with by itself. A bulk that was
emptied meanwhile has no next item, and even this one's result is left to whoever did that.
"""


def read_only(record: Any) -> Any:
    """The whole input record as a handler may see it."""
    return ReadOnlyDict(record) if isinstance(record, dict) else record


class Call:
    """What a handler can ask about its own call, as its parameter ``call``.

    Attributes:
        attempt: Which attempt this is, from 1.
        index: The record's place in the input, from 0.
        key: The value of the job's ``key`` field, or the index where there is none.
        outcomes: For each stage before this one ``"ok"``, ``"degraded"``, ``"skipped"`` or ``"done"``.
    """

    __slots__ = ("_binder", "_item", "attempt", "tokens")

    def __init__(self, item: Item, binder: Binder) -> None:
        self.attempt = item.attempt(binder.stage.name)
        self.tokens: int | None = None
        self._item = item
        self._binder = binder

    @property
    def index(self) -> int:
        return self._item.index

    @property
    def key(self) -> Any:
        record, key = self._item.record, self._binder.plan.key
        return record[key] if key is not None and isinstance(record, Mapping) and key in record else self._item.index

    @property
    def idempotency_key(self) -> str:
        """The same text for every attempt at this stage of this record: for services that can drop a repeated call."""
        place = "-".join(map(str, (self._item.index, *self._item.path)))
        return f"{self._binder.run}-{place}-{self._binder.stage.name}"

    @property
    def outcomes(self) -> dict[str, Outcome]:
        notes: dict[str, Note] = {}
        for item in self._item.lineage():
            notes = (item.notes or {}) | notes
        return {stage: notes[stage].outcome if stage in notes else "ok" for stage in self._binder.above}

    def __reduce__(self) -> tuple[type[Call], tuple[Any, ...]]:
        facts = _Facts(self.index, self.key, self.idempotency_key, self.outcomes)
        return _CallElsewhere, (self.attempt, facts)

    def report(
        self, *, tokens: int | None = None, input_tokens: int = 0, output_tokens: int = 0, model: str | None = None
    ) -> None:
        """Say how many tokens the call used; ``tokens_per_minute``, cost and budget go by it, also when it fails.

        Args:
            tokens: All of them; without it the sum of the others.
            input_tokens, output_tokens: Those of each kind. What ``tokens`` exceeds them by is of either kind.
            model: Which price holds; without it that of the stage's ``model``.
        """
        told = Report.of(tokens, input_tokens, output_tokens, model)
        self.tokens = (self.tokens or 0) + told.tokens
        self._tell(told)

    def report_limits(self, told: Told) -> None:
        """Say what the provider said of its rate limits with an answer: no more calls start than it says remain.

        Args:
            told: What ``stageflow.llm.limits_of`` reads off the answer's headers.
        """
        self._binder.limited(told)

    def _tell(self, report: Report) -> None:
        self._binder.reported(self._item, self.attempt, report)


@dataclass(frozen=True, slots=True)
class _Facts:
    index: int
    key: Any
    idempotency_key: str
    outcomes: dict[str, Outcome]


class _CallElsewhere(Call):
    """A call as a worker process sees it: the same facts; what it reports stays there."""

    __slots__ = ("_facts",)

    def __init__(self, attempt: int, facts: _Facts) -> None:
        self.attempt = attempt
        self.tokens = None
        self._facts = facts

    index = property(lambda self: self._facts.index)
    key = property(lambda self: self._facts.key)
    idempotency_key = property(lambda self: self._facts.idempotency_key)
    outcomes = property(lambda self: self._facts.outcomes)

    def report_limits(self, told: Told) -> None: ...

    def _tell(self, report: Report) -> None: ...


class Binder:
    """Makes the calls of one stage.

    Args:
        resources: What is opened for the run, by name.
        run: The identity of the run, for idempotency keys.
        reported: Called with the item, the attempt, and what a handler reports of that.
        limited: Called with what a provider said of its limits.
    """

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        resources: Mapping[str, Any],
        *,
        run: str,
        reported: Callable[[Item, int, Report], None],
        limited: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self.stage = stage
        self.plan = plan
        self.run = run
        self.reported = reported
        self.limited = limited
        self.above = tuple(name for name in plan.order if name in plan.ancestors[stage.name])
        self._resources = resources

    def call(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``call(item, ctx=None)``: ``target`` called with the stage's arguments for that item.

        ``call`` raises ``KeyError`` where a field is missing; :mod:`stageflow.engine.attempt` says so plainly.
        """
        return self._compile(target, self.stage.parameters, each="{}")

    def turn(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``turn(bulk, each)``: as many calls as the iterator ``each`` of the list ``bulk`` has items."""
        text, names = self._text(target, self.stage.parameters, each="{}")
        return self._compile_turn(text, names)

    def turn_of(self, invoke: Callable[[Item], Any]) -> Callable[..., Any]:
        """The same where more is to be done for each call than to give it its arguments."""
        return self._compile_turn("invoke(item)", {"invoke": invoke})

    def _compile_turn(self, call: str, names: dict[str, Any]) -> Callable[..., Any]:
        # By its file it belongs to stageflow, so that it is left out of the traces that users see.
        file = os.path.join(os.path.dirname(__file__), f"turn of {self.stage.name}")
        names |= {"CLOSED": CLOSED, "Exit": Exit}
        exec(compile(_TURN.format(call=call, stage=self.stage.name), file, "exec"), names)
        turn: Callable[..., Any] = names["turn"]
        return turn

    def batch_call(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``call(items)``: each argument that is the item's own is a list, with an element per item."""
        return self._compile(target, self.stage.parameters, each="[{} for item in items]")

    def condition(self, predicate: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``condition(item, ctx=None)``: the stage's ``when``."""
        return self._compile(predicate, self.stage.when_parameters, each="{}")

    def given(self) -> Callable[[Item], dict[str, Any]]:
        """Compile ``given(item)``: by name, the arguments that are the item's own, as far as a result depends on them.

        A field that may be missing is a list of its value or of nothing. Of ``call`` there is what the handler's own
        code names. It raises ``KeyError`` where a field is missing.
        """
        facts = [(parameter.name, self._fact(parameter)) for parameter in self.stage.parameters]
        parts = [f"{name!r}: {text}" for name, text in facts if text is not None]
        names = {"Call": Call, "Mapping": Mapping, "binder": self}
        compiled: Callable[[Item], dict[str, Any]] = eval(f"lambda item: {{{', '.join(parts)}}}", names)
        return compiled

    def _fact(self, parameter: Parameter) -> str | None:
        name = parameter.name
        match parameter.kind:
            case "resource" | "params":
                return None  # the same for all items
            case "field" if not parameter.required:
                return (
                    f"[item.record[{name!r}]] if isinstance(item.record, Mapping) and {name!r} in item.record else []"
                )
            case "record" | "ctx":
                return "item.record"
            case "call":
                asked = [fact for fact in ("index", "key", "outcomes") if _names(self.stage.handler, fact)]
                return "[" + ", ".join(f"Call(item, binder).{fact}" for fact in asked) + "]"
        return self._expression(parameter, "")

    def _compile(self, target: Callable[..., Any], parameters: Sequence[Parameter], *, each: str) -> Callable[..., Any]:
        text, names = self._text(target, parameters, each=each)
        own = "items" if "items" in each else "item, ctx=None"
        compiled: Callable[..., Any] = eval(f"lambda {own}: {text}", names)
        return compiled

    def _text(
        self, target: Callable[..., Any], parameters: Sequence[Parameter], *, each: str
    ) -> tuple[str, dict[str, Any]]:
        """An expression that calls ``target``, and the names in it but those of items."""
        names: dict[str, Any] = {
            "target": target,
            "read_only": read_only,
            "params": self.plan.params,
            "Call": Call,
            "Mapping": Mapping,
            "binder": self,
        }
        # Resources of a process live there; the child adds them by name.
        in_process = self.stage.run == "process" and target is not self.stage.when
        arguments = []
        for position, parameter in enumerate(parameters):
            if in_process and parameter.kind == "resource":
                continue
            given = f"given{position}"
            names[given] = self._resources.get(parameter.name) if parameter.kind == "resource" else parameter.default
            text = self._expression(parameter, given)
            if parameter.kind not in ("resource", "params"):
                text = each.format(text)
            arguments.append(
                f"{parameter.name}={text}"
                if parameter.by_keyword or (in_process and not parameter.by_position)
                else text
            )
        return f"target({', '.join(arguments)})", names

    def _expression(self, parameter: Parameter, given: str) -> str:
        name = parameter.name
        match parameter.kind:
            case "stage":
                return f"item.results[{name!r}]"
            case "resource":
                return given
            case "field":
                if parameter.required:
                    return f"item.record[{name!r}]"
                return f"item.record.get({name!r}, {given}) if isinstance(item.record, Mapping) else {given}"
            case "record":
                return "read_only(item.record)"
            case "results":
                return "{" + ", ".join(f"{need!r}: item.results[{need!r}]" for need in self.stage.dependencies) + "}"
            case "params":
                return "params"
            case "call":
                return "Call(item, binder)"
            case "ctx":
                return "ctx" if self.plan.context is not None else "read_only(item.record)"


def _names(handler: Callable[..., Any], attribute: str) -> bool:
    """Whether a function may ask for an attribute of that name; one whose code is not to be seen may."""
    code = getattr(inspect.unwrap(handler), "__code__", None)
    return code is None or _is_named_in(code, attribute)


def _is_named_in(code: CodeType, attribute: str) -> bool:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return attribute in code.co_names or any(_is_named_in(each, attribute) for each in inner)
