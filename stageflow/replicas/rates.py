"""The rate limits of a run, each shared out among its processes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from stageflow.plan import Plan
from stageflow.replicas.messages import AskShares, Granted
from stageflow.replicas.shares import Shares

__all__ = ["Rates"]

_SHARE_SECONDS: Final = 1.0
"""How long a share is good for: four times the longest time between two askings."""

_TO_FORGET: Final = 12
"""Askings without any use after which a share is next to nothing."""


class Rates:
    """Answers what processes ask of their limits.

    Args:
        clock: Seconds.
        present: The names of the processes there are.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float], present: Callable[[], Collection[str]]) -> None:
        self._plan = plan
        self._clock = clock
        self._present = present
        self._shares: dict[str, Shares] = {}

    def join(self, who: str) -> None:
        """A process begins."""
        for shares in self._shares.values():
            shares.join(who, self._clock())

    def leave(self, who: str) -> None:
        """A process is gone."""
        for shares in self._shares.values():
            shares.leave(who)

    def drained(self, who: str) -> None:
        """A process makes no more calls: what it holds is for the others at once."""
        now = self._clock()
        for shares in self._shares.values():
            for _ in range(_TO_FORGET):  # what it has used of late counts for less with each asking
                shares.ask(who, now, used=0.0, waiting=False)
            shares.leave(who)

    def granted(self, who: str, asking: AskShares) -> Granted:
        """What it may use of each limit that it asks for."""
        now = self._clock()
        found = {
            name: self._of(name).ask(who, now, used=asked.used, waiting=asked.waiting)
            for name, asked in asking.limits.items()
        }
        return Granted(found, asking.at, _SHARE_SECONDS)

    def _of(self, name: str) -> Shares:
        """By the first stage under a limit, its shares."""
        if name not in self._shares:
            limit = self._plan.stages[name].rate_limit
            assert limit is not None, "a share of no limit"
            rate = limit.rate_per_second
            smallest, turn = (min(1.0, 1.0 / rate), 2.0 / rate) if rate is not None else (0.0, 0.0)
            shares = self._shares[name] = Shares(lifetime=_SHARE_SECONDS, smallest=smallest, turn=turn)
            for who in self._present():
                shares.join(who, self._clock())
        return self._shares[name]
