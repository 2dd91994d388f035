"""Throughput over a setting, as ``stageflow bench --sweep`` measured it: bars, one sentence, and an SVG."""

from __future__ import annotations

from stageflow.report.curve.drawing import svg
from stageflow.report.curve.points import Curve, Point, Series, knee, knee_text
from stageflow.report.curve.terminal import bars

__all__ = ["Curve", "Point", "Series", "bars", "knee", "knee_text", "svg"]
