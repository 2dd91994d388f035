"""From dead letters to records that come in again: at the stage that failed, where all before it is as it was.

What a stage returned is in the letter, so what was paid for is not paid for again. That needs every letter of the
record to say where to go on, and a job in which that place still exists and still means the same: otherwise the whole
record is done again. What a letter says is not trusted blindly, for it has been in a file that anybody may edit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from stageflow.commit import LetterPlace
from stageflow.item import Note, Part, Reentry
from stageflow.plan import Plan
from stageflow.protocols import Entry

__all__ = ["reentries"]


def reentries(
    letters: Iterable[tuple[LetterPlace, bytes]],
    plan: Plan,
    upstream: Mapping[str, str],
    *,
    passed_over: Callable[[LetterPlace], object] = lambda place: None,
    written: Callable[[int], bool] = lambda index: False,
) -> Iterator[Entry]:
    """Make an entry of each record that dead letters were written of. Lazy: one record's letters are held at a time.

    Args:
        letters: Where each stands and its line, sorted by ordinal.
        upstream: By stage a digest of all that decides the results of the stages before it, as of now.
        passed_over: Told of each letter that stays as it is, since there is no record in it that could be run: its
            input line was unreadable, or the letter itself is.
        written: Whether earlier runs wrote something of a record, by its index.
    """
    for index, group in groupby(letters, key=lambda letter: letter[0].ordinal):
        places, found = [], []
        for place, line in group:
            places.append(place)
            found.append(_letter_of(line))
        known = [letter for letter in found if letter is not None]
        if known:
            parts = [_part_of(letter, plan, upstream) for letter in found]
            yield (
                index,
                Reentry(known[0]["record"], tuple(place.number for place in places), _agreeing(parts), written(index)),
            )
        else:
            for place in places:
                passed_over(place)


def _letter_of(line: bytes) -> dict[str, Any] | None:
    """A letter that holds a record. Read by the standard library, which takes integers of any size as they are."""
    try:
        letter = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(letter, dict) or "record" not in letter:
        return None
    readable = isinstance(letter["record"], dict) or letter.get("stage") is not None
    return letter if readable else None


def _agreeing(parts: list[Part | None]) -> tuple[Part, ...]:
    """The parts, if there is one of every letter and no two are of one item."""
    whole = tuple(part for part in parts if part is not None)
    items = {(part.path, part.stage) for part in whole}
    return whole if len(items) == len(parts) else ()


def _part_of(letter: dict[str, Any] | None, plan: Plan, upstream: Mapping[str, str]) -> Part | None:
    """Where the letter's item can go on in this job; ``None`` where it can't."""
    if letter is None or plan.context is not None or plan.on_partial != "keep":
        return None
    part = _read(letter)
    if part is None or part.stage not in plan.stages:
        return None
    if letter["retry"].get("upstream") != upstream.get(part.stage, ""):
        return None
    return part if _fits(part, plan) else None


def _read(letter: Mapping[str, Any]) -> Part | None:
    try:
        retry = letter["retry"]
        part = Part(
            stage=retry["from"],
            results=dict(letter["results"]),
            path=tuple(retry.get("child", ())),
            yielded=dict(retry.get("yielded", {})),
            notes={stage: Note(**note) for stage, note in retry.get("notes", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    counts = (*part.path, *part.yielded.values())
    return part if type(part.stage) is str and all(type(n) is int and n >= 0 for n in counts) else None


def _fits(part: Part, plan: Plan) -> bool:
    """Whether the item is of the level at which its stage runs, and has all it needs that would not be run for it."""
    level, results = plan.fan_outs[part.stage], part.results
    ended = {stage for stage, note in part.notes.items() if note.outcome == "done"}
    if len(part.path) != len(level) or part.stage in results or not ended.isdisjoint(plan.ancestors[part.stage]):
        return False
    if any(name not in plan.stages or not plan.stages[name].fans_out for name in part.yielded):
        return False
    if not results.keys() >= set(plan.stages[part.stage].dependencies):
        return False
    for name, above in plan.fan_outs.items():
        if above[: len(level)] != level or name in results or not ended.isdisjoint(plan.ancestors[name]):
            continue
        for need in plan.stages[name].dependencies:
            if need not in results and plan.fan_outs[need][: len(level)] != level:
                return False  # it belongs to an item above, for which nothing is run any more
    return True
