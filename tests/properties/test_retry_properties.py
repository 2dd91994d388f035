"""Random flows whose dead letters are run again, some of what failed mended, then all: they come to what one run would.

A failure tells the seed, and how far the flow could be cut down.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from flow_runs import Job, holds_anew, text_of
from reentries import Ran, again, run
from strategies_flow import Fate, Flow, Place

from stageflow.item import Reentry

SEEDS = range(300)


@dataclass(frozen=True)
class Mended(Flow):
    """A flow in which a share of what failed for good does so no more.

    What a stage skips or stands in for is no failure, and stays.
    """

    share: float = 1.0

    def fate(self, name: str, place: Place) -> Fate:
        fate, stage = super().fate(name, place), self.by_name[name]
        if _drawn(self.seed, name, place) >= self.share:
            return fate
        if fate.bad >= stage.attempts and stage.on_error == "dead_letter":
            fate = replace(fate, bad=0)
        return replace(fate, breaks=False)


@cache  # it is asked for many times, and to seed a generator takes long
def _drawn(seed: int, name: str, place: Place) -> float:
    return random.Random(f"{seed} {name} {place} mended").random()


def mended(flow: Flow, share: float = 1.0) -> Mended:
    return Mended(**{name: getattr(flow, name) for name in Flow.__dataclass_fields__}, share=share)


def job_of(flow: Flow) -> tuple[Job, list[tuple[int, dict[str, Any]]]]:
    return Job(flow), [(place, {"id": number}) for place, number in enumerate(flow.records)]


def test_what_failed_and_came_again_comes_to_what_one_run_would_have() -> None:
    ways = Counter[bool]()

    def check(flow: Flow, seed: int) -> None:
        job, entries = job_of(flow)
        ran = run(job.pipeline, entries, seed=seed)
        lines = ran.lines
        for share in (0.5, 1.0):
            job, _ = job_of(mended(flow, share))
            failed = {letter["index"] for letter in ran.dead}
            ran = again(job.pipeline, ran, seed=seed)
            assert not job.wrong, job.wrong
            reentries = reentries_of(ran)
            assert reentries.keys() == failed
            from_source = {flow.records[index] for index, each in reentries.items() if not each.parts}
            lines = [line for line in lines if line["id"] not in from_source] + ran.lines
            nothing_is_called_twice(job, flow, reentries)
            ways.update(bool(each.parts) for each in reentries.values())
        assert not ran.letters
        job, entries = job_of(mended(flow))
        assert counted(flow, lines) == counted(flow, run(job.pipeline, entries, seed=seed).lines)

    holds_anew(check, SEEDS)
    assert min(ways[True], ways[False]) > 50, ways  # there were enough of both


def reentries_of(ran: Ran) -> dict[int, Reentry]:
    found = {item.index: item.reentry for item in ran.settled if item.reentry is not None}
    assert len(found) == len(ran.settled)
    return found


def counted(flow: Flow, lines: Iterable[dict[str, Any]]) -> Counter[str]:
    return Counter(text_of(flow, json.loads(json.dumps(line))) for line in lines)


def nothing_is_called_twice(job: Job, flow: Flow, reentries: dict[int, Reentry]) -> None:
    """No stage is called for an item whose result was in the letter, but a generator for what it has yet to yield."""
    for index, reentry in reentries.items():
        unfinished = {stage for part in reentry.parts for stage in part.yielded}
        for part in reentry.parts:
            own = (flow.records[index], *part.path)
            for stage in part.results.keys() - unfinished:
                depth = len(flow.level[stage])
                # Where two generators yield to one place, it may be another item's call.
                alike = flow.level[stage] == flow.level[part.stage][:depth]
                assert not (alike and (stage, own[: depth + 1]) in job.attempts), f"{stage} was called again for {own}"
