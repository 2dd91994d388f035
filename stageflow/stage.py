"""One named step of a job: its function, its workers, its channel, its policies. A value: it runs nothing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from stageflow.errors import DefinitionError, SettingError
from stageflow.graph import nearest
from stageflow.policies.batching import Batch
from stageflow.policies.failure import Degrade, OnError
from stageflow.policies.hedging import Hedge, is_share
from stageflow.policies.rate import RateLimit
from stageflow.policies.retry import Retry

__all__ = ["RESERVED", "Kind", "Parameter", "Run", "Setting", "Stage", "check_setting", "is_async", "parameters_of"]

Run = Literal["async", "thread", "process", "inline"]
Kind = Literal["stage", "resource", "field", "record", "results", "params", "call", "ctx"]

RESERVED: Final = ("record", "results", "params", "call", "ctx")
"""Parameter names that mean something by themselves; no stage and no resource may bear one."""

DEFAULT_MAX_IN_FLIGHT: Final = 16
DEFAULT_TIMEOUT: Final = 600.0
"""Seconds: longer than any call should take, and no run hangs for ever on one."""
SMALLEST_DEFAULT_QUEUE: Final = 64
"""``queue_size`` where none is set is ``max(64, max_in_flight)``: room for one turn of all workers."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a handler and what its name was found to mean.

    Args:
        default: ``inspect.Parameter.empty`` where there is none; a default makes a field optional.
        by_keyword, by_position: Whether it can be given by keyword, or by position, only.
    """

    name: str
    kind: Kind
    default: Any = inspect.Parameter.empty
    by_keyword: bool = False
    by_position: bool = False

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a setting and where it came from, for ``stageflow check``."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of the job, checked and resolved.

    Args:
        parameters: What the handler is called with, in its own order.
        dependencies: The stages it comes after, each once, in the order in which they were named.
        gpus: What one process of it takes of a machine, where the run is on a cluster; ``None``: it takes none.
        timeout: Seconds per attempt.
        cache: Whether its results are kept over runs, and looked up before a call.
        model: Whose price holds for its calls, where they do not tell another.
        max_tokens: The most that one call may use, of either kind or as ``(input, output)``.
        when_parameters: What ``when`` is called with.
        fans_out: Whether the handler is a generator: each value it yields is a child.
        where: The place of its definition, as ``job.py:12``.
        origins: For each setting where its value came from.
    """

    name: str
    handler: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    dependencies: tuple[str, ...]
    max_in_flight: int
    queue_size: int
    run: Run
    gpus: float | None
    on_error: OnError
    timeout: float
    retry: Retry | None
    hedge: Hedge | None
    rate_limit: RateLimit | None
    batch: Batch | None
    when: Callable[..., Any] | None
    when_parameters: tuple[Parameter, ...]
    fans_out: bool
    emit: bool
    version: str | None
    cache: bool
    model: str | None
    max_tokens: int | tuple[int, int] | None
    where: str
    origins: Mapping[str, str] = field(default_factory=dict)


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling ``handler`` gives a coroutine or an async generator."""
    inner = getattr(handler, "__call__", None)  # noqa: B004 - we ask what it is
    return any(test(f) for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction) for f in (handler, inner))


def is_generator(handler: Callable[..., Any]) -> bool:
    """Whether calling ``handler`` gives a generator of either kind."""
    inner = getattr(handler, "__call__", None)  # noqa: B004 - we ask what it is
    return any(test(f) for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction) for f in (handler, inner))


def parameters_of(owner: str, handler: Callable[..., Any], where: str) -> tuple[inspect.Parameter, ...]:
    """The parameters of a stage's or resource's function.

    Raises:
        DefinitionError: It is no function, has no signature, or takes ``*args`` or ``**kwargs``: names are the edges.
    """
    if not callable(handler):
        raise DefinitionError(f"{owner}: {handler!r} is not a function", hint="give a function", where=where)
    try:
        parameters = tuple(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        raise DefinitionError(
            f"{owner}: the parameters of {handler!r} can't be read", hint="wrap it in a function", where=where
        ) from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise DefinitionError(
                f"{owner} takes {star}{parameter.name}: a parameter's name is the edge, so each must be named",
                hint="take `record` for the whole input record, or `results` for all results it depends on",
                where=where,
            )
    return parameters


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _gpus(value: Any) -> bool:
    return value is None or (_seconds(value) and (value < 1 or value == int(value)))


def _tokens(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
    return value is None or _positive(value)


_CHECKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "max_in_flight": (_positive, "a positive integer"),
    "queue_size": (_positive, "a positive integer"),
    "run": (lambda value: value in get_args(Run), "one of " + ", ".join(map(repr, get_args(Run)))),
    "gpus": (_gpus, "a number of GPUs, more than 0: whole ones, or a part of one"),
    "on_error": (
        lambda value: isinstance(value, Degrade) or value in ("dead_letter", "skip", "abort"),
        '"dead_letter", "skip", "abort" or degrade(...)',
    ),
    "timeout": (_seconds, "seconds, more than 0"),
    "retry": (
        lambda value: value is None or isinstance(value, Retry) or _positive(value),
        "Retry(...) or the number of attempts, the first included",
    ),
    "hedge": (
        lambda value: value is None or isinstance(value, Hedge) or is_share(value),
        "Hedge(...) or the most extra calls, as a share above 0 and at most 1",
    ),
    "rate_limit": (lambda value: value is None or isinstance(value, RateLimit), "RateLimit(...)"),
    "batch": (lambda value: value is None or isinstance(value, Batch), "Batch(size, within)"),
    "when": (lambda value: value is None or callable(value), "a function"),
    "emit": (lambda value: isinstance(value, bool), "true or false"),
    "version": (lambda value: isinstance(value, str), "text"),
    "cache": (lambda value: isinstance(value, bool), "true or false"),
    "model": (lambda value: value is None or isinstance(value, str), "text, the name of a price"),
    "max_tokens": (_tokens, "a positive number of tokens, or (input, output)"),
}


_DEFAULTS_IN_WORDS: Final[Mapping[str, str]] = {
    "max_in_flight": str(DEFAULT_MAX_IN_FLIGHT),
    "queue_size": f"max({SMALLEST_DEFAULT_QUEUE}, max_in_flight)",
    "run": '"async" for an async function, "thread" for a plain one',
    "gpus": "none",
    "on_error": '"dead_letter"',
    "timeout": f"{DEFAULT_TIMEOUT:g}",
    "retry": "none",
    "hedge": "none",
    "rate_limit": "none; it is set in the job file",
    "batch": "none; it is set in the job file",
    "when": "none; it is set in the job file",
    "emit": "true",
    "version": "none",
    "cache": "false",
    "model": "none",
    "max_tokens": "none",
}


def check_setting(stage: str, name: str, value: Any, where: str | None = None) -> None:
    """Refuse a setting that is unknown or out of its range.

    Raises:
        SettingError: Naming the stage, the value and what is allowed.
    """
    if name not in _CHECKS:
        near = nearest(name, _CHECKS)
        hint = f'did you mean "{near}"?' if near else "settings are: " + ", ".join(_CHECKS)
        raise SettingError(f'stage "{stage}" has no setting "{name}"', hint=hint, where=where)
    if name == "max_in_flight" and value == "auto":
        raise SettingError(
            f'stage "{stage}": max_in_flight="auto" is not available yet', hint="give a number", where=where
        )
    accepted, allowed = _CHECKS[name]
    if not accepted(value):
        hint = f"its default is {_DEFAULTS_IN_WORDS[name]}"
        raise SettingError(f'stage "{stage}": {name} must be {allowed}, not {value!r}', hint=hint, where=where)
