"""A job as the job file gave it, nothing resolved yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stageflow.money import Price

__all__ = ["Draft", "ResourceDraft", "Scope", "StageDraft"]

Scope = Literal["run", "process"]


@dataclass(slots=True)
class StageDraft:
    """A stage as the job file gave it."""

    name: str
    handler: Callable[..., Any]
    depends_on: tuple[str, ...]
    settings: dict[str, Any]
    where: str


@dataclass(slots=True)
class ResourceDraft:
    """A resource as the job file gave it."""

    name: str
    function: Callable[..., Any]
    scope: Scope
    where: str


@dataclass(slots=True)
class Draft:
    """A job as the job file gave it, nothing resolved yet."""

    name: str
    where: str
    key: str | None
    params: dict[str, Any]
    context: type | None
    on_partial: str = "keep"
    emitted: tuple[str, ...] | None = None
    file: str | None = None
    files: tuple[str, ...] = ()
    stages: list[StageDraft] = field(default_factory=list)
    resources: list[ResourceDraft] = field(default_factory=list)
    prices: dict[str, Price] = field(default_factory=dict)
