"""A replica's shares of the rate limits: each is good for a time, and is nothing after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from stageflow.engine.limiter import Limiter
from stageflow.replicas.messages import Granted

__all__ = ["GrantedShares"]


class GrantedShares:
    """Sets limiters to what was granted last.

    Args:
        limiters: By the first stage under each.
    """

    def __init__(self, limiters: Mapping[str, Limiter]) -> None:
        self._limiters = limiters
        self._newest = 0.0

    def take(self, granted: Granted) -> None:
        """Shares have come."""
        self._newest = granted.at
        for name, share in granted.shares.items():
            self._limiters[name].set_share(share)
        left = max(0.0, granted.at + granted.seconds - time.monotonic())
        asyncio.get_running_loop().call_later(left, self._expire, granted.at)

    def nothing(self) -> None:
        """Let nothing through until a share comes."""
        for limiter in self._limiters.values():
            limiter.set_share(0.0)

    def _expire(self, granted: float) -> None:
        if granted == self._newest:  # no newer share has come
            self.nothing()
