"""The frozen job: stages whose parameters are resolved, whose edges form a DAG, and whose settings are in range.

A :class:`Draft` is what a job file wrote down (:mod:`~stageflow.plan.draft`); :func:`freeze` resolves the names
(:mod:`~stageflow.plan.freezing`), lets the strongest settings win (:mod:`~stageflow.plan.overrides`), checks everything
(:mod:`~stageflow.plan.checks`), and answers with a :class:`Plan` (:mod:`~stageflow.plan.frozen`). Nothing runs here, so
a plan can as well be drawn, counted or tested.
"""

from __future__ import annotations

from stageflow.plan.draft import Draft, ResourceDraft, Scope, StageDraft
from stageflow.plan.freezing import freeze
from stageflow.plan.frozen import Plan, Resource
from stageflow.plan.overrides import Override
from stageflow.plan.params import Params

__all__ = ["Draft", "Override", "Params", "Plan", "Resource", "ResourceDraft", "Scope", "StageDraft", "freeze"]
