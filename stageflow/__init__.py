"""stageflow: batch throughput over slow services.

Write the steps as plain functions; run them as stages: worker pools joined by bounded channels.
"""

from __future__ import annotations

from stageflow.errors import (
    AttemptTimeout,
    BudgetSpent,
    ContextConflict,
    DefinitionError,
    GraphError,
    HandlerFailed,
    InputDamaged,
    ItemError,
    JobLoadError,
    OutOfMemory,
    OutputLocked,
    RecordError,
    RequestError,
    ResultError,
    RunFailed,
    RunStopped,
    SettingError,
    SourceFailed,
    StageflowError,
    StateMismatch,
    StorageError,
    WorkerDied,
)
from stageflow.files import Files
from stageflow.item import done, drop
from stageflow.money import Price
from stageflow.pipeline import Pipeline
from stageflow.plan import Params
from stageflow.policies.batching import Batch
from stageflow.policies.failure import degrade
from stageflow.policies.hedging import Hedge
from stageflow.policies.rate import RateLimit
from stageflow.policies.retry import Retry
from stageflow.report.stats import RunReport, StageReport

__all__ = [
    # A job
    "Pipeline",
    "Params",
    "Batch",
    "Hedge",
    "Price",
    "RateLimit",
    "Retry",
    "degrade",
    "done",
    "drop",
    # What it reads
    "Files",
    # What a run comes to
    "RunReport",
    "StageReport",
    # Errors
    "StageflowError",
    "DefinitionError",
    "GraphError",
    "SettingError",
    "JobLoadError",
    "RequestError",
    "ItemError",
    "HandlerFailed",
    "AttemptTimeout",
    "WorkerDied",
    "RecordError",
    "ResultError",
    "ContextConflict",
    "RunStopped",
    "BudgetSpent",
    "OutOfMemory",
    "StorageError",
    "OutputLocked",
    "StateMismatch",
    "InputDamaged",
    "SourceFailed",
    "RunFailed",
]
