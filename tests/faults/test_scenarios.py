"""Whole runs of a hundred thousand records through everything that goes wrong, on the virtual clock."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from service import ApiError, Service, check_account, most_in_any, records, run_here, silences

from stageflow import Pipeline, RateLimit, Retry, RunReport, degrade, done, drop
from stageflow.engine.limiter import Limiter
from stageflow.testing import run_virtual

COUNT = 100_000

# A service that has a bad quarter of an hour

RATE = 400.0
UNWELL = (60.0, 120.0)
REFUSES = (150.0, 150.5)
STALLS = (180.0, 780.0)


def bad_quarter(seed: int) -> Service:
    """30 % errors for a minute, then ``Retry-After: 7``, then ten minutes without any answer."""
    draw = Random(seed)

    def answer(number: int, now: float) -> ApiError | None:
        if UNWELL[0] <= now < UNWELL[1] and draw.random() < 0.3:
            return ApiError(draw.choice([500, 502, 503, 529]))
        return ApiError(429, {"Retry-After": "7"}) if REFUSES[0] <= now < REFUSES[1] else None

    def seconds(number: int, now: float) -> float:
        usual = draw.uniform(0.1, 0.3)
        return usual if not STALLS[0] <= now + usual < STALLS[1] else STALLS[1] + usual - now

    return Service(answer, seconds)


@pytest.mark.parametrize("seed", [1])
def test_a_hundred_thousand_records_survive_a_bad_quarter_of_an_hour(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    limiters: list[Limiter] = []
    make = Limiter.__init__

    def made(limiter: Limiter, *given: Any) -> None:
        make(limiter, *given)
        limiters.append(limiter)

    monkeypatch.setattr(Limiter, "__init__", made)
    service, pipeline = bad_quarter(seed), Pipeline("bad quarter")

    @pipeline.stage(max_in_flight=128, timeout=60, retry=Retry(20), rate_limit=RateLimit(per_second=RATE))
    async def generate(i: int) -> int:
        await service.call()
        return i

    @pipeline.stage(run="inline")
    def validate(generate: int) -> bool:
        return True

    outcome = run_virtual(run_here(pipeline, records(COUNT)), max_steps=50_000_000)

    report, attempts = outcome.report, len(service.starts)
    print(f"{attempts / COUNT:.4f} attempts per record")
    assert report.exit_code == 0
    assert sorted(record["i"] for record in outcome.written) == list(range(COUNT))
    assert attempts == COUNT + report.stages["generate"].retries
    assert attempts <= 1.1 * COUNT + 2

    refused = [failure for failure in service.failures if REFUSES[0] <= failure < REFUSES[1]]
    assert [start for start in service.starts if refused[0] < start < refused[-1] + 7] == []
    assert silences(service.starts, 7.0)[0][1] == refused[-1] + 7
    assert outcome.warnings == ['stage "generate" waits 7 s: the service said so']

    # Nothing was lost on the way: afterwards the rate is the limit's, all permits come back, and nobody is left.
    assert most_in_any(service.starts, 1.0) <= 2 * RATE
    assert most_in_any(service.starts, 60.0) <= 61 * RATE
    began, ended = STALLS[1] + 10, outcome.ended - 2
    assert sum(began <= start < ended for start in service.starts) / (ended - began) == pytest.approx(RATE, rel=0.01)
    (limiter,) = {id(limiter): limiter for limiter in limiters}.values()
    assert limiter._calls is not None
    assert limiter._calls.available(outcome.ended + 1.0) == RATE
    assert not limiter.turn.locked()
    assert service.in_progress == 0


# A run in which everything happens

TIMEOUT = 30.0


@dataclass
class Fate:
    """What is to become of one record, by stage. The default is the ordinary way.

    Args:
        readable: Whether its line is JSON.
        moderate: ``"pass"``, ``"drop"`` or ``"done"``.
        retrieve, classify: Whether their calls succeed; else they are degraded, and skipped.
        failures: What the first attempts of ``generate`` do: fail (``"f"``) or hang (``"h"``); then one succeeds.
        refused: ``generate`` fails in a way that is not tried again, after the failures.
        enrich: Whether ``when`` lets it run.
    """

    readable: bool = True
    moderate: str = "pass"
    retrieve: bool = True
    classify: bool = True
    failures: str = ""
    refused: bool = False
    enrich: bool = True

    ATTEMPTS: ClassVar = 4

    @classmethod
    def drawn(cls, seed: int, index: int) -> Fate:
        draw = Random(f"{seed} {index}")
        return cls(
            readable=draw.random() >= 0.01,
            moderate=draw.choices(["pass", "drop", "done"], [90, 6, 4])[0],
            retrieve=draw.random() >= 0.05,
            classify=draw.random() >= 0.05,
            failures="".join(draw.choices("fh", [3, 1], k=draw.choices([0, 1, 2, 3, 4, 5], [85, 6, 4, 2, 2, 1])[0])),
            refused=draw.random() < 0.02,
            enrich=draw.random() >= 0.3,
        )

    @property
    def goes_on(self) -> bool:
        return self.readable and self.moderate == "pass"

    @property
    def attempts(self) -> int:
        """How often ``generate`` is called."""
        return min(len(self.failures) + 1, self.ATTEMPTS)

    @property
    def error(self) -> str | None:
        """The message of its dead letter, if ``generate`` makes one."""
        if len(self.failures) >= self.ATTEMPTS:
            return "status 503" if self.failures[self.ATTEMPTS - 1] == "f" else f"Timeout after {TIMEOUT:g} s"
        return "status 400" if self.refused else None

    @property
    def end(self) -> str:
        if not self.readable or (self.goes_on and self.error):
            return "dead"
        return "dropped" if self.moderate == "drop" else "written"

    def notes(self) -> dict[str, tuple[str, int]]:
        """Outcome and attempts by stage, where it was out of the ordinary."""
        if self.moderate == "done":
            return {"moderate": ("done", 1)}
        found = {}
        if not self.retrieve:
            found["retrieve"] = ("degraded", 2)
        if not self.classify:
            found["classify"] = ("skipped", 1)
        if not self.enrich:
            found["enrich"] = ("skipped", 0)
        return found


@dataclass
class MixedJob:
    """The job in which all of it happens, and what it was seen to call."""

    fates: list[Fate]
    draw: Random
    calls: Counter[str] = field(default_factory=Counter)

    def pipeline(self) -> Pipeline:
        pipeline = Pipeline("mixed", key="i")

        @pipeline.stage(max_in_flight=64)
        async def moderate(i: int) -> Any:
            await self.pause("moderate", 0.1)
            ways: Mapping[str, Any] = {"pass": True, "drop": drop("off topic"), "done": done("a canned answer")}
            return ways[self.fates[i].moderate]

        @pipeline.stage(max_in_flight=64, retry=2, on_error=degrade([]))
        async def retrieve(i: int, moderate: bool) -> list[str]:
            await self.pause("retrieve", 0.2)
            if not self.fates[i].retrieve:
                raise ConnectionResetError
            return [f"passage {i}"]

        @pipeline.stage(max_in_flight=32, on_error="skip")
        async def classify(i: int, moderate: bool) -> str:
            await self.pause("classify", 0.1)
            if not self.fates[i].classify:
                raise ValueError("no class")
            return "question"

        @pipeline.stage(max_in_flight=256, timeout=TIMEOUT, retry=Retry(Fate.ATTEMPTS, cap=5.0))
        async def generate(i: int, retrieve: list[str], classify: str | None, call: Any) -> str:
            fate = self.fates[i]
            await self.pause("generate", 1.0)
            if call.attempt <= len(fate.failures):
                if fate.failures[call.attempt - 1] == "h":
                    await asyncio.Event().wait()
                raise ApiError(503)
            if fate.refused:
                raise ApiError(400)
            return f"answer {i}"

        @pipeline.stage(max_in_flight=16, when=lambda i: self.fates[i].enrich)
        async def enrich(i: int, generate: str) -> int:
            await self.pause("enrich", 0.05)
            return len(generate)

        @pipeline.stage(run="inline")
        def validate(generate: str, enrich: int | None) -> bool:
            self.calls["validate"] += 1
            return True

        return pipeline

    async def pause(self, stage: str, seconds: float) -> None:
        self.calls[stage] += 1
        await asyncio.sleep(self.draw.uniform(0.0, 2 * seconds))


def expected_calls(fates: list[Fate]) -> dict[str, int]:
    reached = [fate for fate in fates if fate.goes_on]
    through = [fate for fate in reached if not fate.error]
    return {
        "moderate": sum(fate.readable for fate in fates),
        "retrieve": sum(1 if fate.retrieve else 2 for fate in reached),
        "classify": len(reached),
        "generate": sum(fate.attempts for fate in reached),
        "enrich": sum(fate.enrich for fate in through),
        "validate": len(through),
    }


def expected_accounts(fates: list[Fate]) -> dict[str, dict[str, int]]:
    """What each stage is to say of itself, straight from the fates."""
    readable = [fate for fate in fates if fate.readable]
    reached = [fate for fate in readable if fate.goes_on]
    through = [fate for fate in reached if not fate.error]

    def count(among: list[Fate], holds: Callable[[Fate], bool]) -> int:
        return sum(map(holds, among))

    none = {
        "received": 0,
        "passed": 0,
        "degraded": 0,
        "skipped": 0,
        "dropped": 0,
        "dead": 0,
        "cancelled": 0,
        "retries": 0,
    }
    dropped = count(readable, lambda fate: fate.moderate == "drop")
    degraded = count(reached, lambda fate: not fate.retrieve)
    return {
        "moderate": none | {"received": len(readable), "passed": len(readable) - dropped, "dropped": dropped},
        "retrieve": none
        | {"received": len(reached), "passed": len(reached), "degraded": degraded, "retries": degraded},
        "classify": none
        | {"received": len(reached), "passed": len(reached), "skipped": count(reached, lambda fate: not fate.classify)},
        "generate": none
        | {
            "received": len(reached),
            "passed": len(through),
            "dead": len(reached) - len(through),
            "retries": sum(fate.attempts - 1 for fate in reached),
        },
        "enrich": none
        | {"received": len(through), "passed": len(through), "skipped": count(through, lambda fate: not fate.enrich)},
        "validate": none | {"received": len(through), "passed": len(through)},
    }


def accounts(report: RunReport) -> dict[str, dict[str, int]]:
    names = ("received", "passed", "degraded", "skipped", "dropped", "dead", "cancelled", "retries")
    return {stage: {name: getattr(found, name) for name in names} for stage, found in report.stages.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(("count", "seed"), [(10_000, 7), pytest.param(COUNT, 8, marks=pytest.mark.slow)])
def test_a_mixed_run_balances_to_the_last_record_in_its_report_and_in_its_files(
    count: int, seed: int, tmp_path: Path
) -> None:
    print(f"seed {seed}")
    fates = [Fate.drawn(seed, index) for index in range(count)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"i": {i}{"}" if fate.readable else ""}\n' for i, fate in enumerate(fates))
    job = MixedJob(fates, Random(seed))

    async def main() -> RunReport:
        return await job.pipeline().run(str(source), str(target))

    report = run_virtual(main(), max_steps=50_000_000)

    ends = Counter(fate.end for fate in fates)
    written, dead = lines(target), lines(tmp_path / "out.jsonl.dead.jsonl")
    check_account(report, written=len(written), dead=len(dead))
    assert report.read == count
    assert (report.written, report.dropped, report.dead) == (ends["written"], ends["dropped"], ends["dead"])
    assert report.bad == sum(not fate.readable for fate in fates)
    assert report.exit_code == 3
    assert job.calls == expected_calls(fates)
    assert accounts(report) == expected_accounts(fates)

    # The files: who is where, in the order of the input, and each as it should be.
    assert [record["i"] for record in written] == [i for i, fate in enumerate(fates) if fate.end == "written"]
    assert sorted(letter["index"] for letter in dead) == [i for i, fate in enumerate(fates) if fate.end == "dead"]
    for record in written:
        i, fate = record["i"], fates[record["i"]]
        notes = {stage: (note["outcome"], note["attempts"]) for stage, note in record.get("_stageflow", {}).items()}
        assert notes == fate.notes(), record
        if fate.moderate == "done":
            assert {name: record[name] for name in record if name != "_stageflow"} == {
                "i": i,
                "moderate": "a canned answer",
            }
            continue
        assert record["retrieve"] == ([f"passage {i}"] if fate.retrieve else [])
        assert record["classify"] == ("question" if fate.classify else None)
        assert record["generate"] == f"answer {i}"
        assert record["enrich"] == (len(f"answer {i}") if fate.enrich else None)
        assert record["validate"] is True
    for letter in dead:
        fate = fates[letter["index"]]
        assert letter["line"] == letter["index"] + 1
        if not fate.readable:
            assert letter["stage"] is None
            continue
        assert (letter["stage"], letter["error"]["message"]) == ("generate", fate.error)
        assert letter["attempts"] == fate.attempts
        assert set(letter["results"]) == {"moderate", "retrieve", "classify"}
