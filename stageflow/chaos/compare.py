"""What two finished outputs of the same job over the same input differ in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stageflow.ledger.disk import Disk
from stageflow.ledger.recovery import Lines

__all__ = ["differences"]


def differences(one: Path, other: Path, compared: Sequence[str] | None) -> Iterator[str]:
    """What two finished outputs differ in, a text for each record that does.

    Args:
        one, other: The outputs; their ledgers and dead letters stand beside them. Both are in the order of the input.
        compared: The fields that must be equal in each line; ``None``: whole lines, and stage and type of each error.
    """
    ours, theirs = _outcomes(one), _outcomes(other)
    mine, yours = _lines_by_record(one, ours), _lines_by_record(other, theirs)
    errors = (_errors(one), _errors(other)) if compared is None else ({}, {})
    for record in sorted(ours.keys() | theirs.keys()):
        first = next(mine) if record in ours else []
        second = next(yours) if record in theirs else []
        before, after = ours.get(record), theirs.get(record)
        if before != after:
            yield f"record {record}: {_in_words(before)} undisturbed, {_in_words(after)} after kills"
        elif differing := _differing(first, second, compared):
            yield f"record {record}: other values of {', '.join(differing)}"
        elif errors[0].get(record) != errors[1].get(record):
            yield f"record {record}: failed at {errors[0].get(record)} undisturbed, {errors[1].get(record)} after kills"


Outcome = tuple[int, int]
"""Lines and dead letters of a record."""


def _outcomes(output: Path) -> dict[int, Outcome]:
    """By record what it came to, by the commits in the ledger."""
    disk = Disk()
    ledger = disk.open(f"{output}.ledger", write=False)
    try:
        found: dict[int, Outcome] = {}
        for fields in Lines(disk, ledger):
            if fields["t"] == "c":
                lines, letters = fields.get("m") or {}, fields.get("d") or {}
                for record in fields["k"]:
                    found[record] = lines.get(str(record), 1), letters.get(str(record), 0)
        return found
    finally:
        disk.close(ledger)


def _lines_by_record(output: Path, outcomes: Mapping[int, Outcome]) -> Iterator[list[dict[str, Any]]]:
    """The lines of each record, by record."""
    with open(output, "rb") as file:
        for _, (count, _) in sorted(outcomes.items()):
            yield [json.loads(file.readline()) for _ in range(count)]


def _errors(output: Path) -> dict[int, list[str]]:
    """By record the stage and the type of the error of each of its dead letters."""
    path, found = Path(f"{output}.dead.jsonl"), dict[int, list[str]]()
    if path.exists():
        with open(path, "rb") as file:
            for letter in map(json.loads, file):
                found.setdefault(letter["index"], []).append(f"{letter['stage']} ({letter['error']['type']})")
    return {record: sorted(texts) for record, texts in found.items()}


def _differing(one: Sequence[Any], other: Sequence[Any], compared: Sequence[str] | None) -> list[str]:
    """The fields in which the lines of a record are not the same."""
    found: dict[str, None] = {}
    for mine, yours in zip(one, other, strict=True):
        names = dict.fromkeys([*mine, *yours]) if compared is None else compared
        found |= dict.fromkeys(name for name in names if mine.get(name, found) != yours.get(name, found))
    return list(found)


def _in_words(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not done"
    lines, letters = outcome
    kind = "dead" if letters else "written" if lines else "dropped"
    return f"{kind} ({lines} lines, {letters} dead letters)" if lines + letters > 1 else kind
