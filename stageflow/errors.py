"""Every exception stageflow raises.

::

    StageflowError
      DefinitionError           the job is wrong; nothing has run              exit 2
        GraphError              its stages can't form a graph
        SettingError            a setting is out of range (also a ValueError)
        JobLoadError            the job file can't be loaded
      RequestError              what the caller asked for can't be done        exit 2
      ItemError                 one item's trouble; becomes a dead letter      exit 3 if any remain
        HandlerFailed           a stage's function did what no function may: exit, cancel itself
        AttemptTimeout          one call took longer than the stage's timeout
        WorkerDied              the process that ran the call ended
        RecordError             a record that can't be read, or lacks a field
        ResultError             a result that can't be used or written
        ContextConflict         two branches set one field of the context differently
      RunStopped                the run was stopped by policy                  exit 4
        BudgetSpent             the next call might cost more than is left      exit 4
        OutOfMemory             a stage ran out of memory again and again      exit 5
      InputDamaged              the input ends before it should                exit 3
      StorageError              the output can't be written                    exit 5
        OutputLocked            another run writes to it                       exit 6
        StateMismatch           what is there is not what this run would go on with   exit 7
      SourceFailed              the caller's own source raised                 exit 5
    RunFailed                   a bug in stageflow, raised once after cleanup  exit 1

An item's trouble is data, a stage's trouble ends the run, a job's trouble is found before the run.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AttemptTimeout",
    "BudgetSpent",
    "ContextConflict",
    "DefinitionError",
    "GraphError",
    "HandlerFailed",
    "InputDamaged",
    "ItemError",
    "JobLoadError",
    "OutOfMemory",
    "OutputLocked",
    "RecordError",
    "RequestError",
    "ResultError",
    "RunFailed",
    "RunStopped",
    "SettingError",
    "SourceFailed",
    "StageflowError",
    "StateMismatch",
    "StorageError",
    "WorkerDied",
]


class StageflowError(Exception):
    """The root of what stageflow raises on purpose.

    Args:
        message: What happened, naming the stage, the item or the value that was refused.
        hint: What to do next; one line.
        where: The place in the user's own files, as ``job.py:12``.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class DefinitionError(StageflowError):
    """The job is wrong. Found before anything is read or opened."""

    exit_code = 2


class GraphError(DefinitionError):
    """The stages can't form a graph: a cycle, an unknown dependency, two stages of one name."""


class SettingError(DefinitionError, ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


class JobLoadError(DefinitionError):
    """The job file is missing, does not compile, raises while it is imported, or holds no pipeline."""


class RequestError(StageflowError):
    """The job may be right, but what was asked for can't be done: no such input, an output that exists."""

    exit_code = 2


class ItemError(StageflowError):
    """The trouble of one item. It never ends the run; the item becomes a dead letter."""

    exit_code = 3


class HandlerFailed(ItemError):
    """A handler did what no function may do to its caller: exited, cancelled itself, stopped iteration."""


class AttemptTimeout(ItemError):
    """One call of a handler took longer than the stage's ``timeout``."""


class WorkerDied(HandlerFailed):
    """The process in which a handler ran ended before it answered."""


class RecordError(ItemError):
    """A record that can't be read, or lacks a field that a stage requires.

    Args:
        line: The line of the input it stands on, from 1, where the input has lines.
        column: The column in that line, from 1, where it is known.
    """

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class ResultError(ItemError):
    """A stage returned what can't be used: a value JSON has no form for, or a context of another class."""


class ContextConflict(ItemError):
    """Two branches of the graph, neither before the other, set one field of the context differently."""


class RunStopped(StageflowError):
    """The run was stopped by policy: ``on_error="abort"``, or bad input with ``on_bad_input="stop"``."""

    exit_code = 4


class BudgetSpent(RunStopped):
    """What is left of the run's budget is less than the next call may cost. A higher one goes on."""


class OutOfMemory(RunStopped):
    """A stage ran out of memory, and soon after once more: the records to come would fare no better."""

    exit_code = 5


class StorageError(StageflowError):
    """The output can't be written, or the input not read to its end: no space, no permission, a disk error."""

    exit_code = 5


class OutputLocked(StorageError):
    """Another run holds the output; it is not disturbed."""

    exit_code = 6


class StateMismatch(StorageError):
    """The ledger, the output, the input or the job is not what it was; nothing was changed."""

    exit_code = 7


class InputDamaged(StageflowError):
    """The input ends in the middle of something; what came before was processed. Resumable once it is whole."""

    exit_code = 3


class SourceFailed(StageflowError):
    """The iterable that a caller gave as source raised; its error is the cause."""

    exit_code = 5


class RunFailed(ExceptionGroup[Exception]):
    """Something inside stageflow broke. Raised once, after everything was closed; please report it."""

    exit_code: ClassVar[int] = 1
