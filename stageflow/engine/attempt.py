"""One call of a stage's handler for one item, and what becomes of the item when it fails.

This is the only place where the engine calls foreign code. Whatever that code raises is the item's failure and nothing
else, ``SystemExit`` included; only a cancellation that was asked for goes on.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from stageflow import contexts
from stageflow.engine.binding import bind
from stageflow.errors import HandlerFailed, ItemError, RecordError
from stageflow.item import Failure, Item, Note, Outcome
from stageflow.plan import Plan
from stageflow.policies.failure import Degrade
from stageflow.stage import Stage

__all__ = ["GIVEN_UP", "Attempts", "describe", "message_of"]

GIVEN_UP: Final = object()
"""What :meth:`Attempts.failed` answers where the item does not go on."""

_PROGRAMMING = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)


class Attempts:
    """The calls of one stage's handler.

    Attributes:
        invoke: Call the handler for an item and await its result. In the context style it also keeps what the handler
            made of the context.
    """

    invoke: Callable[[Item], Awaitable[Any]]

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        resources: Mapping[str, Any],
        target: Callable[..., Any],
        *,
        run: str,
        aborted: Callable[[int, str, BaseException], None],
    ) -> None:
        self._stage = stage
        self._aborted = aborted
        self._plan = plan
        self._call = bind(stage, plan, resources, target, run)
        self._arguments = bind(stage, plan, resources, lambda *given, **named: (*given, *named.values()), run)
        self.invoke = self._call if plan.context is None else self._in_context

    async def _in_context(self, item: Item) -> Any:
        """Call the handler on a copy of the context, and keep that copy only where the call succeeds."""
        context = self._plan.context
        assert context is not None, "a context style call without a context"
        before = self._view(item)
        after = contexts.fork(before)
        value = await self._call(item, 1, after)
        if isinstance(value, context):
            after, value = value, None
        self._keep(item, contexts.commit(before, after, self._stage.name))
        return value

    def _view(self, item: Item) -> contexts.View:
        if item.contexts is None:
            assert self._plan.context is not None, "a view without a context"
            item.contexts = {"": contexts.start(self._plan.context, item.record)}
        above = self._stage.dependencies or ("",)
        return contexts.merge([item.contexts[name] for name in above], self._plan.ancestors)

    def _keep(self, item: Item, view: contexts.View) -> None:
        assert item.contexts is not None, "a context was kept that never began"
        item.contexts[self._stage.name] = view

    async def failed(self, item: Item, error: BaseException) -> Any:
        """Apply the stage's ``on_error`` to an attempt that raised ``error``.

        Returns:
            The result to go on with, or :data:`GIVEN_UP`; then ``item.failure`` is set.

        Raises:
            asyncio.CancelledError: The error is a cancellation that the engine asked for.
        """
        if isinstance(error, asyncio.CancelledError) and _asked_for():
            raise error
        reason = self._reason(item, error)
        policy = self._stage.on_error
        if policy == "skip" or isinstance(policy, Degrade):
            try:
                value = await self._stand_in(item, policy, reason)
                if self._plan.context is not None:
                    self._keep(item, self._view(item))
            except BaseException as second:
                if isinstance(second, asyncio.CancelledError) and _asked_for():
                    raise
                reason = self._reason(item, second)
            else:
                outcome: Outcome = "skipped" if policy == "skip" else "degraded"
                item.note(self._stage.name, Note(outcome, describe(reason), 1))
                return value
        if policy == "abort":
            self._aborted(item.index, self._stage.name, reason)
        if item.failure is not None:
            return GIVEN_UP  # another branch was first; a record has one failure
        item.aborted = policy == "abort"
        item.failure = Failure(
            self._stage.name, reason, 1, retryable=not isinstance(reason, (*_PROGRAMMING, ItemError))
        )
        return GIVEN_UP

    async def _stand_in(self, item: Item, policy: Degrade | str, reason: BaseException) -> Any:
        if not isinstance(policy, Degrade):
            return None
        # The arguments may be what is missing; then the function gets the error alone.
        arguments = () if isinstance(reason, RecordError) else self._arguments(item)
        value = policy.stand_in(reason, arguments)
        return await value if inspect.isawaitable(value) else value

    def _reason(self, item: Item, error: BaseException) -> BaseException:
        """The error as it is reported: a missing field is named, what no function may raise is wrapped."""
        name = self._stage.name
        if isinstance(error, (KeyError, AttributeError, TypeError)):
            lacking = self._lacking(item)
            if lacking:
                return RecordError(lacking)
        if isinstance(error, asyncio.CancelledError):
            return _chained(HandlerFailed(f'cancelled inside stage "{name}"'), error)
        if not isinstance(error, Exception):
            return _chained(HandlerFailed(f'{error!r} raised in stage "{name}"'), error)
        return error

    def _lacking(self, item: Item) -> str | None:
        for parameter in self._stage.parameters:
            if parameter.kind != "field":
                continue
            if not isinstance(item.record, Mapping):
                return f'stage "{self._stage.name}" takes the field "{parameter.name}", but the record is no object'
            if parameter.required and parameter.name not in item.record:
                return f'the record has no field "{parameter.name}", which stage "{self._stage.name}" requires'
        return None


def message_of(error: BaseException) -> str:
    """What an error says; one whose ``__str__`` raises is no second failure."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - foreign code
        return "(its message can't be read)"


def describe(error: BaseException) -> str:
    """Type and message on one line."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _chained(error: ItemError, cause: BaseException) -> ItemError:
    error.__cause__ = cause
    return error


def _asked_for() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
