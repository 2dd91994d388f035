"""Kills and losses of power at random operations, also in recovery and while the files are finished.

Whatever happens, the next run starts, nothing that a marker speaks of is lost, and the finished files are exact.
"""

from __future__ import annotations

import random

import pytest
from model_job import Trial
from simulated_disk import SECTOR_BYTES, Crash, SimulatedDisk

from stageflow.ledger import recovery
from stageflow.ledger.disk import MOMENTS


def crash_points(count: int, first_seed: int) -> None:
    """Run trials until they crashed ``count`` times; a failure names its seed."""
    seed, crashed = first_seed, 0
    while crashed < count:
        trial = Trial(seed)
        try:
            trial.run()
        except BaseException:
            print(f"seed {seed}, after {trial.crashed} crashes")
            raise
        seed, crashed = seed + 1, crashed + trial.crashed


def test_row_04_output_is_exact_after_400_kills_and_losses_of_power() -> None:
    crash_points(400, 0)


@pytest.mark.slow  # 5,000 crash points: 20 seconds
def test_row_04_output_is_exact_after_5000_kills_and_losses_of_power() -> None:
    crash_points(5000, 1_000_000)


@pytest.mark.parametrize("power_lost", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("seed", [5, 78, 152])
def test_a_crash_at_each_operation_of_one_run_in_turn(seed: int, power_lost: bool) -> None:
    whole = Trial(seed, crashes=0)
    whole.run()
    for operation in range(1, whole.disk.operations, 2):
        trial = Trial(seed, crashes=0)
        trial.disk.crash_at = operation
        trial.power_lost_share = float(power_lost)
        try:
            trial.run()
        except BaseException:
            print(f"seed {seed}, crash at operation {operation}")
            raise
        assert trial.crashed <= 1


@pytest.mark.parametrize("power_lost", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_row_03_a_crash_around_each_named_moment(moment: str, power_lost: bool) -> None:
    crashes = 0
    for seed in range(6):
        try:
            crashes += Trial.crash_around(moment, seed, power_lost=power_lost)
        except BaseException:
            print(f"seed {seed}")
            raise
    assert crashes > 3, "no run came by that moment"


def test_a_marker_is_found_wherever_blocks_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_MARKER_BYTES", 300)
    for size in range(301, 420):
        monkeypatch.setattr(recovery, "READ_BYTES", size)
        Trial(size).run()


# The disk itself: a simulator that loses nothing would prove nothing.


def written(disk: SimulatedDisk, path: str, synced: bytes, unsynced: bytes) -> None:
    descriptor = disk.create(path)
    disk.sync_directory("/d")
    disk.write(descriptor, synced)
    disk.sync(descriptor)
    disk.write(descriptor, unsynced)


def test_synced_bytes_survive_and_others_are_lost_torn_zeroed_or_garbled() -> None:
    synced, unsynced = b"s" * 700, b"u" * 2000
    fates = set()
    for seed in range(200):
        disk = SimulatedDisk(random.Random(seed))
        written(disk, "/d/f", synced, unsynced)
        disk.restart(power_lost=True)
        left = disk.contents()["/d/f"]
        assert left[:700] == synced
        assert len(left) <= 2700
        fates.add("shorter" if len(left) < 2700 else "as long")
        for start in range(1024, len(left) - SECTOR_BYTES + 1, SECTOR_BYTES):
            sector = set(left[start : start + SECTOR_BYTES])
            fates.add("written" if sector == {117} else "zeros" if sector == {0} else "torn or garbage")
    assert fates == {"shorter", "as long", "written", "zeros", "torn or garbage"}


def test_a_kill_loses_nothing_that_was_written() -> None:
    disk = SimulatedDisk(random.Random(1))
    written(disk, "/d/f", b"synced", b"unsynced")
    disk.restart(power_lost=False)
    assert disk.contents() == {"/d/f": b"syncedunsynced"}


def test_names_not_synced_survive_in_the_order_of_their_changes() -> None:
    seen = set()
    for seed in range(50):
        disk = SimulatedDisk(random.Random(seed))
        disk.create("/d/a")
        disk.create("/d/b")
        disk.rename("/d/a", "/d/c")
        disk.remove("/d/b")
        disk.restart(power_lost=True)
        seen.add(tuple(sorted(disk.contents())))
    assert seen == {(), ("/d/a",), ("/d/a", "/d/b"), ("/d/b", "/d/c"), ("/d/c",)}


def test_a_process_that_ended_does_nothing_any_more() -> None:
    disk = SimulatedDisk(random.Random(1))
    descriptor = disk.create("/d/f")
    disk.crash_at = disk.operations + 1
    with pytest.raises(Crash):
        disk.sync(descriptor)
    for late in (lambda: disk.write(descriptor, b"x"), lambda: disk.close(descriptor), lambda: disk.remove("/d/f")):
        with pytest.raises(Crash):
            late()
    assert disk.contents() == {"/d/f": b""}
