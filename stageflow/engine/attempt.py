"""One call of a stage's handler for one item, and what becomes of the item when it fails.

This is the only place where the engine calls foreign code. Whatever that code raises is the item's failure and nothing
else, ``SystemExit`` included; only a cancellation that was asked for goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from stageflow import contexts
from stageflow.engine.binding import Binder
from stageflow.errors import HandlerFailed, RecordError
from stageflow.item import Exit, Item, Note, Outcome
from stageflow.plan import Plan
from stageflow.policies.failure import Degrade
from stageflow.policies.redact import redact, secrets_of
from stageflow.stage import Stage

__all__ = ["GONE", "SKIPPED", "Attempts", "asked_for", "describe", "message_of", "place_of", "shown"]

SKIPPED: Final = Exit("skip")
"""What an attempt gives where ``when`` says no."""

GONE: Final = Exit("gone")
"""The item stops here."""


NOT_THE_USERS: Final = (
    os.path.dirname(os.path.dirname(__file__)),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
    "<",  # of the import system, or compiled from a text
)
"""Where the names of files begin that hold no code of the user's."""

MESSAGE_CHARS: Final = 2048
"""What is kept of an error's message."""

_SHOWN_CHARS: Final = 512
"""What is kept of an error inside the message of another."""


class Attempts:
    """The calls of one stage's handler.

    Attributes:
        invoke: Call the handler for an item and await its result. In the context style it also keeps what the handler
            made of the context. Costs nothing beyond the call where nothing is asked for.
        fenced: Whether the call that has just ended was abandoned before: nothing of it may be kept.
    """

    invoke: Callable[[Item], Awaitable[Any]]
    fenced: Callable[[], bool]

    def __init__(self, stage: Stage, plan: Plan, binder: Binder, target: Callable[..., Any]) -> None:
        self._stage = stage
        self._plan = plan
        self.fenced = lambda: False
        self._call = binder.call(target)
        self._arguments = binder.call(lambda *given, **named: (*given, *named.values()))
        self._condition = binder.condition(stage.when) if stage.when is not None else None
        self.invoke = self._call
        if plan.context is not None:
            self.invoke = self._in_context
        elif self._condition is not None:
            self.invoke = self._if_wanted

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to a call but the handler's arguments."""
        return self.invoke is self._call

    def watched(self, invoke: Callable[[Any], Awaitable[Any]], warn: Callable[[str], None]) -> Callable[[Any], Any]:
        """``invoke`` that tells, once, of a handler that changes a value it shares with others.

        Costs a ``repr`` of those values per call, twice.
        """
        needs, name = self._stage.dependencies, self._stage.name
        told: set[str] = set()

        def shared_by(items: Sequence[Item]) -> dict[str, list[str]]:
            shared = {f'the result of stage "{need}"': [repr(item.results[need]) for item in items] for need in needs}
            return shared | {"the input record": [repr(item.record) for item in items]}

        async def watched(given: Any) -> Any:
            items = given if isinstance(given, list) else [given]
            before = shared_by(items)
            try:
                return await invoke(given)
            finally:
                for what, after in shared_by(items).items():
                    if after != before[what] and what not in told:
                        told.add(what)
                        warn(f'stage "{name}" changed {what}, which others share: copy it first')

        return watched

    @property
    def call(self) -> Callable[..., Any]:
        """Call the handler for an item, with nothing around it; may be replaced before the first call."""
        return self._call

    @call.setter
    def call(self, call: Callable[..., Any]) -> None:
        if self.is_plain:
            self.invoke = call
        self._call = call

    async def wanted(self, item: Item, ctx: Any = None) -> bool:
        """Whether ``when`` lets the handler run for the item."""
        if self._condition is None:
            return True
        answer = self._condition(item, ctx)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def _if_wanted(self, item: Item) -> Any:
        return await self._call(item) if await self.wanted(item) else SKIPPED

    async def _in_context(self, item: Item) -> Any:
        """Call the handler on a copy of the context, and keep that copy only where the call succeeds."""
        context = self._plan.context
        assert context is not None, "a context style call without a context"
        before = self._view(item)
        after = contexts.fork(before)
        if not await self.wanted(item, after):
            self._keep(item, before)
            return SKIPPED
        value = await self._call(item, after)
        if self.fenced():
            return GONE
        if isinstance(value, Exit):
            self._keep(item, contexts.commit(before, after, self._stage.name))
            return value
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

    async def stand_in(self, item: Item, error: BaseException) -> Any:
        """The result to go on with after the last attempt, by ``on_error``: ``"skip"`` or ``degrade``.

        Raises:
            BaseException: What a function given to ``degrade`` raised; it is the item's failure then.
        """
        policy, value = self._stage.on_error, None
        if isinstance(policy, Degrade):
            # The arguments may be what is missing; then the function gets the error alone.
            arguments = () if isinstance(error, RecordError) else self._arguments(item)
            value = policy.stand_in(error, arguments)
            value = await value if inspect.isawaitable(value) else value
        if self._plan.context is not None:
            self._keep(item, self._view(item))
        outcome: Outcome = "degraded" if isinstance(policy, Degrade) else "skipped"
        item.note(self._stage.name, Note(outcome, describe(error), item.attempt(self._stage.name)))
        return value

    def reason(self, item: Item, error: BaseException) -> BaseException:
        """The error as it is reported: a missing field is named, what no function may raise is wrapped."""
        name = self._stage.name
        if isinstance(error, (KeyError, AttributeError, TypeError)):
            lacking = self._lacking(item)
            if lacking:
                return RecordError(lacking)
        if isinstance(error, asyncio.CancelledError):
            return _chained(HandlerFailed(f'cancelled inside stage "{name}"'), error)
        if isinstance(error, BaseExceptionGroup):
            return _chained(HandlerFailed(f'{_leaves(error)} raised in stage "{name}"'), error)
        if not isinstance(error, Exception):
            return _chained(HandlerFailed(f'{shown(error)} raised in stage "{name}"'), error)
        return error

    def _lacking(self, item: Item) -> str | None:
        for parameter in (*self._stage.when_parameters, *self._stage.parameters):
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
    except BaseException:  # noqa: BLE001 - foreign code
        return "(its message can't be read)"


def describe(error: BaseException) -> str:
    """Type and message, without secrets, cut to what is kept of it."""
    message = redact(message_of(error), secrets_of(os.environ), limit=MESSAGE_CHARS)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def place_of(error: BaseException) -> str:
    """The line of the user's own code that raised, as `` at job.py:12``; nothing where there is none."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_USERS)]
    return f" at {os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else ""


def asked_for(error: BaseException) -> bool:
    """Whether an error is a cancellation of this very task that somebody asked for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def shown(value: object) -> str:
    """A value as it is quoted inside a message: its ``repr``, without secrets, cut."""
    try:
        return redact(repr(value), secrets_of(os.environ), limit=_SHOWN_CHARS)
    except BaseException:  # noqa: BLE001 - foreign code
        return type(value).__name__


def _leaves(group: BaseExceptionGroup[BaseException]) -> str:
    """All errors of a nested group, flat."""
    found: list[str] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop(0)
        if isinstance(error, BaseExceptionGroup):
            rest = [*error.exceptions, *rest]
        else:
            found.append(shown(error))
    return f"{type(group).__name__}({', '.join(found)})"


def _chained(error: HandlerFailed, cause: BaseException) -> HandlerFailed:
    error.__cause__ = cause
    return error
