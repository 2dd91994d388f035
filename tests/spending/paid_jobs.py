"""Random jobs whose calls cost money, and the service that counts what it charges for them."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable
from typing import Any

from stageflow import Batch, Pipeline, Price, RateLimit, Retry, degrade
from stageflow.money import amount_of

__all__ = ["PRICES", "Broken", "PaidJob", "SteadyRetry"]

PRICES = {"small": Price(input=1.0, output=4.0), "large": Price(input=10.0, output=40.0)}


class Broken(Exception):
    """What the service's client raises."""


class SteadyRetry(Retry):
    """Waits the same time before each attempt, so that a run can be repeated."""

    def delay(self, attempt: int, uniform: float, retry_after: float | None = None) -> float:
        return self.base


class PaidJob:
    """A pipeline by a seed.

    What the service charges for a call it charges when the call begins, which is the hardest on a budget.

    Args:
        honest: Every call tells what it used, whether it fails or not, and none is cut off.
        greedy: Some calls use more than ``max_tokens``, and tell of it.

    Attributes:
        charged: By the service's own count.
        excess: What calls have cost beyond their ``max_tokens``.
        flying: What the service charged for the calls in flight, by call.
        on_charge: Called after each charge.
    """

    def __init__(self, seed: int, *, honest: bool = False, greedy: bool = False) -> None:
        self.random = random.Random(seed)
        self.honest = honest
        self.greedy = greedy
        self.charged = 0
        self.excess = 0
        self.dearest = 0
        self.flying: dict[object, int] = {}
        self.on_charge: Callable[[], None] = lambda: None
        self.pipeline = Pipeline("paid", prices=PRICES)
        self._build()

    def _build(self) -> None:
        rng, shape = self.random, self.random.choice(["one", "chain", "diamond", "children"])
        limit = RateLimit(per_second=rng.choice([20, 200]), burst=rng.choice([1, 5])) if rng.random() < 0.3 else None
        needs = {"one": ["x"], "chain": ["x", "a"], "diamond": ["x", "a", "a", "b, c"], "children": ["x", "a", "b"]}
        for place, taken in enumerate(needs[shape]):
            name = "abcd"[place]
            if shape == "children" and place == 0:
                self._add_generator(name, taken)
            elif rng.random() < 0.2 and place:
                self._add_free(name, taken)
            else:
                self._add(name, taken, limit)

    def _settings(self) -> tuple[str, tuple[int, int], dict[str, Any]]:
        rng = self.random
        model, most = rng.choice(["small", "large"]), (rng.randint(1, 400), rng.randint(1, 200))
        self.dearest = max(self.dearest, PRICES[model].of(*most))
        settings: dict[str, Any] = {
            "max_in_flight": rng.choice([1, 2, 5, 16]),
            "queue_size": rng.choice([1, 4, 64]),
            "timeout": 1.0,
        }
        return model, most, settings

    def _add_free(self, name: str, taken: str) -> None:
        async def free() -> str:
            await asyncio.sleep(0.01)
            return name

        self._stage(name, taken, free, {})

    def _add(self, name: str, taken: str, limit: RateLimit | None) -> None:
        rng = self.random
        model, most, settings = self._settings()
        settings["retry"] = SteadyRetry(rng.choice([1, 3]), base=0.05)
        settings["on_error"] = rng.choice(["dead_letter", "skip", degrade(0)])
        if limit is not None and rng.random() < 0.5:
            settings["rate_limit"] = limit
        if rng.random() < 0.2:
            settings["when"] = lambda record: record["x"] % 3 > 0
        told = {"model": model} if rng.random() < 0.7 else {}
        limits = {"max_tokens": most} if told or model == "large" else {"max_tokens": most, "model": model}
        settings |= limits | told
        if rng.random() < 0.2 and taken != "x":
            settings["batch"] = Batch(rng.randint(2, 4), within=0.02)

            async def batch(each: list[Any], call: list[Any]) -> list[int]:
                await self.call(call[0], model, most)
                return [0] * len(each)

            self._stage(name, taken, batch, settings)
            return

        async def one(call: Any) -> int:
            return await self.call(call, model, most)

        self._stage(name, taken, one, settings)

    def _add_generator(self, name: str, taken: str) -> None:
        model, most, settings = self._settings()
        children = self.random.randint(1, 4)

        async def many(call: Any) -> Any:
            await self.call(call, model, most)
            for child in range(children):
                yield child

        self._stage(name, taken, many, {**settings, "model": model, "max_tokens": most})

    def _stage(self, name: str, taken: str, work: Any, settings: dict[str, Any]) -> None:
        """Add a stage that takes what ``taken`` names, and hands ``work`` what that takes of it."""
        wanted = list(inspect.signature(work).parameters)
        parameters = ", ".join([*taken.split(", "), *(["call"] if "call" in wanted else [])])
        passed = ", ".join(taken.split(", ")[0] if each == "each" else each for each in wanted)
        head, names = f"async def {name}({parameters}):", {"work": work}
        if inspect.isasyncgenfunction(work):
            exec(f"{head}\n    async for child in work({passed}):\n        yield child\n", names)
        else:
            exec(f"{head}\n    return await work({passed})\n", names)
        self.pipeline.add_stage(name, names[name], **settings)

    async def call(self, call: Any, model: str, most: tuple[int, int]) -> int:
        """One call of the service."""
        rng = self.random
        price = PRICES[model]
        share = rng.choice([0.1, 0.5, 0.9, 1.0])
        used = int(most[0] * share), int(most[1] * share)
        if self.greedy and rng.random() < 0.1:
            used = most[0] * 3, most[1] * 2
        cost = price.of(*used)
        self.excess += max(0, cost - price.of(*most))
        self.charged += cost
        self.flying[call] = cost
        self.on_charge()
        try:
            return await self._answer(call, model, used, silent=used[0] <= most[0])
        finally:
            del self.flying[call]

    async def _answer(self, call: Any, model: str, used: tuple[int, int], *, silent: bool) -> int:
        rng = self.random
        way = rng.choices(["tells", "tells and fails", "fails", "hangs", "says nothing"], [10, 3, 2, 1, 2])[0]
        if self.honest or not silent:
            way = "tells and fails" if "fails" in way else "tells"
        await asyncio.sleep(5.0 if way == "hangs" else rng.choice([0.01, 0.05, 0.3]))
        if way.startswith("tells"):
            call.report(input_tokens=used[0], model=model)
            call.report(output_tokens=used[1], model=model)
        if "fails" in way:
            raise Broken("500")
        return 0

    def budget(self) -> float:
        """One that is reached by most runs of some dozens of records."""
        return (self.dearest + amount_of(1e-6)) / 1e12 * self.random.choice([0.5, 2, 5, 20, 100])
