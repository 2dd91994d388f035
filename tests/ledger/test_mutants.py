"""Tests of the tests: a ledger with a piece of its safety taken out is caught, within a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bit_flips import flip
from model_job import Trial
from simulated_disk import SimulatedDisk

from stageflow.ledger import opening, recovery

Mutant = Callable[[pytest.MonkeyPatch], None]


def no_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery looks at how long the files are, not at what is in them."""

    def holds(disk: Any, state: Any, fields: Any, results: int | None, letters: int | None) -> bool:
        if fields["t"] != "c":
            return True
        return all(
            end <= (disk.size(descriptor) if descriptor is not None else 0)
            for (_, end, _), descriptor in ((fields["o"], results), (fields["x"], letters))
        )

    monkeypatch.setattr(recovery, "_holds", holds)


def no_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery leaves behind the last commit what stands there."""
    truncate = SimulatedDisk.truncate

    def only_the_ledger(self: SimulatedDisk, descriptor: int, size: int) -> None:
        if self.is_at(descriptor, "/simulated/out.jsonl.ledger"):
            truncate(self, descriptor, size)

    monkeypatch.setattr(SimulatedDisk, "truncate", only_the_ledger)


def markers_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage before a marker passes for a torn tail."""
    monkeypatch.setattr(recovery, "_refuse_damage", lambda *_: None)


def nothing_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Markers are written, but the data was never synced."""
    monkeypatch.setattr(SimulatedDisk, "sync", lambda self, descriptor: None)


def no_folder_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are synced, their names are not."""
    monkeypatch.setattr(SimulatedDisk, "sync_directory", lambda self, path: None)


def finished_without_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished file is not taken back under its partial name when a run goes on with it."""
    monkeypatch.setattr(opening, "take_back", lambda *_: None)


def settles_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run forgets what earlier ones have done."""
    original = opening.open_store

    def forgetful(*args: Any) -> Any:
        store, resumption = original(*args)
        resumption.done = bytearray()
        resumption.start = None
        return store, resumption

    monkeypatch.setattr("stageflow.ledger.writer.open_store", forgetful)


def seeds_until_caught(check: Callable[[int], object], bound: int) -> int | None:
    """How many seeds it takes until the check fails; ``None`` where the mutant survives them all."""
    for seed in range(bound):
        try:
            check(seed)
        except Exception:  # noqa: BLE001  # whatever it is, it is noticed
            return seed + 1
    return None


@pytest.mark.parametrize(
    "mutant",
    [
        no_checksum,
        no_truncation,
        nothing_synced,
        no_folder_synced,
        finished_without_cutting,
        settles_twice,
    ],
)
def test_a_loss_of_power_catches(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    seeds = seeds_until_caught(lambda seed: Trial(seed).run(), 600)
    assert seeds is not None, f"survived: {mutant.__doc__}"
    print(f"{mutant.__name__}: caught by seed {seeds}")


@pytest.mark.parametrize("mutant", [markers_ignored, no_truncation])
def test_a_flipped_bit_catches(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    seeds = seeds_until_caught(lambda seed: flip(seed), 300)
    assert seeds is not None, f"survived: {mutant.__doc__}"
    print(f"{mutant.__name__}: caught by seed {seeds}")
