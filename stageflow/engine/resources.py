"""Resources: opened before the first record is read, closed after the last one settled, also when the run fails."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from stageflow.engine.attempt import asked_for, describe
from stageflow.errors import DefinitionError
from stageflow.plan import Plan

__all__ = ["open_one", "opened"]


@contextlib.asynccontextmanager
async def opened(plan: Plan, warn: Callable[[str], None]) -> AsyncIterator[Mapping[str, Any]]:
    """Open the run's resources in the order of their use and close them in the reverse one.

    A resource that fails to close is reported to ``warn``; the others are closed all the same.

    Raises:
        DefinitionError: A resource can't be opened; those that were open are closed again.
    """
    values: dict[str, Any] = {"params": plan.params}
    async with contextlib.AsyncExitStack() as stack:
        for resource in plan.resources.values():
            if resource.scope != "run":
                continue
            own = contextlib.AsyncExitStack()
            try:
                values[resource.name] = await open_one(own, resource.function, [values[name] for name in resource.uses])
            except BaseException as error:
                if asked_for(error):
                    raise
                message = f'resource "{resource.name}" could not be opened: {describe(error)}'
                hint = getattr(error, "hint", None) or "nothing was read and no output was made"
                raise DefinitionError(message, hint=hint, where=resource.where) from error
            stack.push_async_callback(_close, resource.name, own, warn)
        yield values


async def _close(name: str, stack: contextlib.AsyncExitStack, warn: Callable[[str], None]) -> None:
    try:
        await stack.aclose()
    except BaseException as error:  # the job's own code; the results are written already
        if asked_for(error):
            raise
        warn(f'resource "{name}" could not be closed: {describe(error)}')


async def open_one(stack: contextlib.AsyncExitStack, function: Callable[..., Any], uses: Sequence[Any]) -> Any:
    """Open one resource on ``stack``: from a generator or an async one (it yields the resource once), or a function."""
    if inspect.isasyncgenfunction(function):
        return await stack.enter_async_context(contextlib.asynccontextmanager(function)(*uses))
    if inspect.isgeneratorfunction(function):
        return stack.enter_context(contextlib.contextmanager(function)(*uses))
    value = function(*uses)
    return await value if inspect.isawaitable(value) else value
