"""Faults of handlers, planned beforehand: what shall go wrong in which call of a job's own functions."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Generator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["CallCount", "FaultPlan"]


@dataclass(slots=True)
class CallCount:
    """The calls of one handler so far: how many began, are in progress, and were in progress at most."""

    calls: int = 0
    in_progress: int = 0
    peak: int = 0


@dataclass(frozen=True, slots=True)
class _Fault:
    seconds: tuple[float, float]
    error: BaseException | Callable[[], BaseException] | None
    hang: bool
    calls: Collection[int] | None
    share: float
    where: Callable[..., bool] | None


class FaultPlan:
    """What shall go wrong in which handler, decided beforehand; and a count of what was called.

    A fault strikes the calls that meet each of its conditions: ``calls``, their numbers within the stage, from 1;
    ``where``, a predicate that gets what the handler gets; ``share``, a part of them (0 to 1) drawn by the seed. The
    draw depends on the stage, on the ``repr`` of the arguments and on how often they came, and so not on the order of
    calls: another schedule meets the same faults, and a retry may fare better. Without conditions, every call.

    One call first takes its time, then hangs, then fails::

        plan = FaultPlan(seed=1)
        plan.takes("generate", (0.5, 2.0))
        plan.fails("generate", ConnectionError, share=0.1)
        plan.hangs("generate", where=lambda query: query == "q7")

        pipeline = Pipeline("job")
        pipeline.stage(max_in_flight=8, timeout=30, retry=3)(plan.wrap(generate))
        ...
        assert plan["generate"].peak == 8

    Args:
        seed: Draws the ``share`` and the durations.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._faults: defaultdict[str, list[_Fault]] = defaultdict(list)
        self._counts: defaultdict[str, CallCount] = defaultdict(CallCount)
        self._repeats: Counter[tuple[str, str]] = Counter()

    def __getitem__(self, stage: str) -> CallCount:
        return self._counts[stage]

    def takes(
        self,
        stage: str,
        seconds: float | tuple[float, float],
        *,
        calls: Collection[int] | None = None,
        share: float = 1.0,
        where: Callable[..., bool] | None = None,
    ) -> None:
        """Let calls of ``stage`` take this long before the handler is called; a pair is drawn from evenly."""
        pair = seconds if isinstance(seconds, tuple) else (seconds, seconds)
        self._faults[stage].append(_Fault(pair, None, False, calls, share, where))

    def fails(
        self,
        stage: str,
        error: BaseException | Callable[[], BaseException],
        *,
        calls: Collection[int] | None = None,
        share: float = 1.0,
        where: Callable[..., bool] | None = None,
    ) -> None:
        """Let calls of ``stage`` raise ``error``, or what it returns when called (so, a new one of a class)."""
        self._faults[stage].append(_Fault((0.0, 0.0), error, False, calls, share, where))

    def hangs(
        self,
        stage: str,
        *,
        calls: Collection[int] | None = None,
        share: float = 1.0,
        where: Callable[..., bool] | None = None,
    ) -> None:
        """Let calls of ``stage`` wait until they are cancelled."""
        self._faults[stage].append(_Fault((0.0, 0.0), None, True, calls, share, where))

    def wrap(self, func: Callable[..., Any], stage: str | None = None) -> Callable[..., Any]:
        """The handler with its faults: its name and its parameters are those of ``func``.

        Args:
            func: A plain or async function, or an async generator function. A plain one becomes async.
            stage: The name in the plan; ``None`` is the function's own.
        """
        name = stage or func.__name__
        if inspect.isasyncgenfunction(func):

            @functools.wraps(func)
            async def generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                async with self.call(name, *args, **kwargs), aclosing(func(*args, **kwargs)) as values:
                    async for value in values:
                        yield value

            return generate

        @functools.wraps(func)
        async def handle(*args: Any, **kwargs: Any) -> Any:
            async with self.call(name, *args, **kwargs):
                result = func(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

        return handle

    @asynccontextmanager
    async def call(self, stage: str, *args: Any, **kwargs: Any) -> AsyncIterator[None]:
        """Count one call of ``stage`` and let it meet its faults; the body is the call itself."""
        count = self._counts[stage]
        count.calls += 1
        count.in_progress += 1
        count.peak = max(count.peak, count.in_progress)
        try:
            # Decided before anything is waited for: the numbers are those of the order in which the calls began.
            struck = list(self._struck(stage, count.calls, args, kwargs))
            for seconds, fault in struck:
                if seconds:
                    await asyncio.sleep(seconds)
                if fault.hang:
                    await asyncio.get_running_loop().create_future()
                if fault.error is not None:
                    raise fault.error if isinstance(fault.error, BaseException) else fault.error()
            yield
        finally:
            count.in_progress -= 1

    def _struck(
        self, stage: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[tuple[float, _Fault]]:
        said = f"{args!r} {kwargs!r}"
        self._repeats[stage, said] += 1
        draw = random.Random(f"{self._seed} {stage} {said} {self._repeats[stage, said]}")
        for fault in sorted(self._faults[stage], key=lambda fault: (fault.error is not None, fault.hang)):
            # Both are drawn for every fault, so that a condition on one does not change what befalls the next.
            chance, seconds = draw.random(), draw.uniform(*fault.seconds)
            if (
                chance < fault.share
                and (fault.calls is None or number in fault.calls)
                and (fault.where is None or fault.where(*args, **kwargs))
            ):
                yield seconds, fault
