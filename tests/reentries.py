"""Runs of the engine alone, and the same records again from the dead letters of an earlier one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from stageflow import Pipeline
from stageflow.adapters.jsonl.encode import encode_leniently
from stageflow.commit import LetterPlace
from stageflow.engine.resources import opened
from stageflow.engine.run import Engine
from stageflow.item import Item
from stageflow.output import dead_letter, family, output_record, output_records
from stageflow.protocols import Entry
from stageflow.retries import reentries
from stageflow.testing import run_virtual

Calls = list[tuple[str, str, int]]
"""Stage, place (as ``0`` or ``0-1``) and attempt of each call."""


@dataclass
class Ran:
    """What a run came to; each line and letter as a file would give it back."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)
    settled: list[Item] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def dead(self) -> list[dict[str, Any]]:
        return sorted(map(json.loads, self.letters), key=lambda letter: letter["index"])

    @property
    def retries(self) -> list[Any]:
        return [letter["retry"] for letter in self.dead]

    def places(self) -> list[tuple[LetterPlace, bytes]]:
        """The letters as a ledger hands them over."""
        letters = sorted(self.letters, key=lambda line: json.loads(line)["index"])
        return [(LetterPlace(n, json.loads(line)["index"], 0, len(line)), line) for n, line in enumerate(letters)]


def run(
    pipeline: Pipeline, entries: Iterable[Entry], *, seed: int | None = None, upstream: Mapping[str, str] | None = None
) -> Ran:
    """Run the entries through the pipeline's engine, on the virtual clock."""
    plan, ran = pipeline.plan(), Ran()

    def settle(item: Item) -> None:
        ran.settled.append(item)
        engine.release()

    def refuse(why: object) -> None:
        raise AssertionError(why)

    async def main() -> None:
        nonlocal engine
        async with opened(plan, refuse) as resources:
            engine = Engine(plan, resources=resources, settled=settle, stopped=refuse, random=Random(0))
            async with engine:
                for index, record in entries:
                    assert engine.try_feed(index, record) or await engine.feed(index, record)
            ran.seconds = asyncio.get_running_loop().time()

    engine: Any = None
    run_virtual(main(), seed=seed)
    for record in ran.settled:
        assert record.live == 0
        ran.lines += [json.loads(json.dumps(output_record(each, plan))) for each in output_records(record, plan)]
        for item in family(record):
            if item.failure is not None:
                letter = dead_letter(item, item.failure, path=None, numbered=False, plan=plan, upstream=upstream)
                ran.letters.append(encode_leniently(letter))
    return ran


def again(pipeline: Pipeline, earlier: Ran, **options: Any) -> Ran:
    """Run the records of the earlier run's dead letters again."""
    upstream = options.get("upstream") or {}
    return run(pipeline, list(reentries(earlier.places(), pipeline.plan(), upstream)), **options)


class Job:
    """A pipeline whose stages say what they were given, write down their calls, and fail where they are told to.

    Args:
        edges: By stage those before it.
        fan_outs: How many children each generator yields.
        settings: By stage.
        seconds: How long the calls of a stage take; 0 where nothing is said. For a generator before each yield.

    Attributes:
        failing: Stage and place of the calls that raise; a generator raises before its first yield.
        breaking: For a generator's call after how many yields it raises.
    """

    def __init__(
        self,
        edges: Mapping[str, Iterable[str]],
        *,
        fan_outs: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        seconds: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        self.calls: Calls = []
        self.outcomes: dict[tuple[str, str], Mapping[str, str]] = {}
        self.failing: set[tuple[str, str]] = set()
        self.breaking: dict[tuple[str, str], int] = {}
        self.seconds = seconds or {}
        self.pipeline = Pipeline("job", **options)
        for name, needs in edges.items():
            given = {"depends_on": list(needs), **(settings or {}).get(name, {})}
            handler = self._generator(name, (fan_outs or {})[name]) if name in (fan_outs or {}) else self._call(name)
            self.pipeline.add_stage(name, self._batch(name) if "batch" in given else handler, **given)

    def take_calls(self) -> Calls:
        """The calls since the last time, sorted."""
        calls, self.calls = sorted(self.calls), []
        return calls

    def stages_called(self) -> list[str]:
        return [stage for stage, _, _ in self.take_calls()]

    def heal(self) -> None:
        self.failing.clear()
        self.breaking.clear()

    def _begin(self, name: str, call: Any) -> str:
        place = call.idempotency_key.removeprefix("run-").removesuffix(f"-{name}")
        self.calls.append((name, place, call.attempt))
        self.outcomes[name, place] = call.outcomes
        return str(place)

    def _end(self, name: str, place: str, results: Mapping[str, Any]) -> str:
        if (name, place) in self.failing:
            raise ValueError(f"{name} {place}")
        return f"{name}({','.join(str(results[need]) for need in sorted(results))})"

    def _call(self, name: str) -> Callable[..., Any]:
        async def handle(record: Any, results: Any, call: Any) -> Any:
            place = self._begin(name, call)
            await asyncio.sleep(self.seconds.get(name, 0))
            return self._end(name, place, results)

        return handle

    def _batch(self, name: str) -> Callable[..., Any]:
        async def handle(record: Any, results: Any, call: Any) -> Any:
            places = [self._begin(name, each) for each in call]
            return [self._end(name, place, given) for place, given in zip(places, results, strict=True)]

        return handle

    def _generator(self, name: str, children: int) -> Callable[..., Any]:
        async def handle(record: Any, results: Any, call: Any) -> AsyncIterator[Any]:
            place = self._begin(name, call)
            for number in range(children):
                value = self._end(f"{name}{number}", place, results)
                if (name, place) in self.failing or self.breaking.get((name, place)) == number:
                    raise ValueError(f"{name} {place}")
                await asyncio.sleep(self.seconds.get(name, 0))
                yield value

        return handle


def records(count: int) -> Iterator[Entry]:
    return ((index, {"id": index}) for index in range(count))
