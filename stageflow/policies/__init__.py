"""What decides, and never waits: numbers go in, numbers come out."""

from __future__ import annotations

from stageflow.policies.failure import degrade
from stageflow.policies.hedging import Hedge
from stageflow.policies.rate import RateLimit
from stageflow.policies.retry import Retry

__all__ = ["Hedge", "RateLimit", "Retry", "degrade"]
