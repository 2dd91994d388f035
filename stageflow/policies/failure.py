"""What becomes of an item after the last attempt failed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Degrade", "OnError", "degrade"]


@dataclass(frozen=True, slots=True)
class Degrade:
    """Go on with a stand-in. Made by :func:`degrade`."""

    value: Any

    def stand_in(self, error: BaseException, arguments: Sequence[Any]) -> Any:
        """The result to go on with: a fresh copy of the value, or what the function makes of error and arguments."""
        if not callable(self.value):
            return copy.deepcopy(self.value)
        return self.value(*_as_many_as_fit(self.value, (error, *arguments)))


OnError = Literal["dead_letter", "skip", "abort"] | Degrade


def degrade(value: Any | Callable[..., Any]) -> Degrade:
    """For ``on_error=``: go on with ``value`` instead of a result, and mark the record as degraded.

    Args:
        value: Each record gets a fresh (deep) copy of it. Or a plain or async function: called with the error and the
            stage's own arguments, in the order of the stage's parameters; it may take fewer.

    Returns:
        The policy. What the function raises is the item's failure: it becomes a dead letter.
    """
    return Degrade(value)


def _as_many_as_fit(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments[:1]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return arguments
    return arguments[: sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)]
