"""The rate limits of a run, each shared out among its replicas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Final

from stageflow.replicas.messages import AskShares, Granted
from stageflow.replicas.shares import Shares

__all__ = ["Rates"]

_SHARE_SECONDS: Final = 1.0
"""How long a share is good for in a fleet: four times the longest time between two askings."""

_TO_FORGET: Final = 12
"""Askings without any use after which a share is next to nothing."""


class Rates:
    """Answers what replicas ask of their limits.

    Args:
        limits: Permits per second, by the first stage under each limit; ``None``: a limit that has none.
        clock: Seconds.
        present: The names of the replicas there are.
        lifetime: Seconds that a share is good for; longer than the time between two askings.
        silent_until: Nothing is granted before: shares of before may still be out.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None],
        clock: Callable[[], float],
        present: Callable[[], Collection[str]],
        *,
        lifetime: float = _SHARE_SECONDS,
        silent_until: float = -inf,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._present = present
        self._lifetime = lifetime
        self._silent_until = silent_until
        self._shares: dict[str, Shares] = {}

    def join(self, who: str) -> None:
        """A replica begins."""
        for shares in self._shares.values():
            shares.join(who, self._clock())

    def leave(self, who: str) -> None:
        """A replica is gone."""
        for shares in self._shares.values():
            shares.leave(who)

    def drained(self, who: str) -> None:
        """A replica makes no more calls: what it holds is for the others at once."""
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
        return Granted(found, asking.at, self._lifetime)

    def _of(self, name: str) -> Shares:
        """By the first stage under a limit, its shares."""
        if name not in self._shares:
            assert name in self._limits, "a share of no limit"
            rate = self._limits[name]
            smallest, turn = (min(1.0, 1.0 / rate), 2.0 / rate) if rate is not None else (0.0, 0.0)
            shares = self._shares[name] = Shares(
                lifetime=self._lifetime, smallest=smallest, turn=turn, silent_until=self._silent_until
            )
            for who in self._present():
                shares.join(who, self._clock())
        return self._shares[name]
