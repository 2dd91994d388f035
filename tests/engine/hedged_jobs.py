"""A stage whose calls are made a second time, and the service behind it: it takes as long as it is told, and counts."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final

from stageflow import Hedge, Pipeline

__all__ = ["KNOWN", "PATIENCE", "Answers", "Service", "now"]

KNOWN: Final = 100
"""Calls after which it is known how long they take; here a second each."""

PATIENCE: Final = 2.0**0.125
"""After how long they are made again: the end of the histogram's bucket in which a second is."""

Answers = Callable[[int, int], Any]
"""Of a record and which of its calls that is, from 1: the seconds it takes, or a coroutine function of the call."""


def now() -> float:
    return asyncio.get_running_loop().time()


_HEDGE: Final = Hedge(extra=0.5)


class Service:
    """What the handler calls.

    Attributes:
        begun, ended: By record, when its calls began and ended, whichever way.
        cut: How many of them were cancelled. ``peak``: the most there were at a time.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.begun: defaultdict[int, list[float]] = defaultdict(list)
        self.ended: defaultdict[int, list[float]] = defaultdict(list)
        self.cut: Counter[int] = Counter()
        self.flying = self.peak = 0
        self.keys: defaultdict[int, list[str]] = defaultdict(list)

    def pipeline(self, hedge: Any = _HEDGE, **settings: Any) -> Pipeline:
        """One stage, ``answer``, for records with an ``x``; the result is which call it is from."""
        pipeline = Pipeline("hedged")
        pipeline.add_stage("answer", self.answer, hedge=hedge, **settings)
        return pipeline

    def calls(self) -> tuple[list[float], list[float]]:
        """When first calls were made, and when second ones were; without attempts after the first."""
        firsts = sorted(begun[0] for begun in self.begun.values())
        return firsts, sorted(at for begun in self.begun.values() for at in begun[1:])

    async def answer(self, x: int, call: Any) -> Any:
        which = len(self.begun[x]) + 1
        self.begun[x].append(now())
        self.keys[x].append(call.idempotency_key)
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        try:
            said = self.answers(x, which)
            if callable(said):
                return await said(call)
            await asyncio.sleep(said)
            return which
        except asyncio.CancelledError:
            self.cut[x] += 1
            raise
        finally:
            self.flying -= 1
            self.ended[x].append(now())
