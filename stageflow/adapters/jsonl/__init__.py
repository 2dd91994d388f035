"""Records as JSON lines: one JSON object per line, in and out."""

from __future__ import annotations

from stageflow.adapters.jsonl.sink import JsonlSink
from stageflow.adapters.jsonl.source import JsonlSource
from stageflow.adapters.jsonl.streams import BrokenOutput

__all__ = ["BrokenOutput", "JsonlSink", "JsonlSource"]
