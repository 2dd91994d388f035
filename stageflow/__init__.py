"""stageflow: batch throughput over slow services.

Write the steps as plain functions; run them as stages: worker pools joined by bounded channels.
"""

from __future__ import annotations

from stageflow.errors import (
    ContextConflict,
    DefinitionError,
    GraphError,
    HandlerFailed,
    ItemError,
    JobLoadError,
    RecordError,
    RequestError,
    ResultError,
    RunFailed,
    RunStopped,
    SettingError,
    StageflowError,
    StorageError,
)
from stageflow.pipeline import Pipeline
from stageflow.plan import Params
from stageflow.policies.failure import degrade
from stageflow.report.stats import RunReport, StageReport

__all__ = [
    # A job
    "Pipeline",
    "Params",
    "degrade",
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
    "RecordError",
    "ResultError",
    "ContextConflict",
    "RunStopped",
    "StorageError",
    "RunFailed",
]
