"""A ledger with one bit that is not what it was, and what a run that goes on with it makes of that."""

from __future__ import annotations

import random
from collections import Counter

from model_job import OUT, Trial
from simulated_disk import Crash, SimulatedDisk

from stageflow.errors import StateMismatch

__all__ = ["count_flips", "flip"]

LEDGER = OUT + ".ledger"


def flip(seed: int) -> str:
    """Flip a bit, go on, and say what came of it: "refused", or "exact" where the finished files are right.

    Raises:
        AssertionError: They are wrong.
    """
    rng = random.Random(f"flip {seed}")
    before = Trial(seed, crashes=0)
    retry = _leave_a_ledger(before, rng)
    files = before.disk.contents()
    ledger = bytearray(files[LEDGER])
    bit = rng.randrange(8 * len(ledger))
    ledger[bit // 8] ^= 1 << bit % 8
    files[LEDGER] = bytes(ledger)

    after = Trial(seed, crashes=0)
    after.job, after.disk = before.job, SimulatedDisk()
    for path, data in files.items():
        after.disk.put(path, data)
    try:
        after.until_finished(retry=retry)
    except StateMismatch:
        assert after.disk.contents() == files, "a refusal changes nothing"
        assert after.disk.descriptors == 0, "a refusal leaves nothing open"
        return "refused"
    after.check(retried=retry)
    assert bit // 8 >= _last_marker(before.disk.contents()[LEDGER]) - 1, "damage before a marker is no torn tail"
    return "exact"


def _last_marker(ledger: bytes) -> int:
    """Where the last marker begins. The LF before it is a part of it: without that, it is none."""
    whole = ledger[: ledger.rfind(b"\n") + 1]
    return max(whole.rfind(b'{"t":"s"'), whole.rfind(b'{"t":"f"')) - 9


def _leave_a_ledger(trial: Trial, rng: random.Random) -> bool:
    """Of one that finished, or was killed, in its first epoch or a later one. True where it tries dead ones again."""
    trial.job.lines += 1  # there is always something to write
    retry = rng.random() < 0.5
    if retry:
        trial.until_finished(retry=False)
    if rng.random() < 0.3:
        trial.until_finished(retry=retry)
        return retry
    trial.disk.crash_at = trial.disk.operations + rng.randint(25, 150)
    try:
        trial.attempt(retry=retry)
    except Crash:
        trial.restart(power_lost=False)
    return retry


def count_flips(count: int, first_seed: int) -> Counter[str]:
    """What came of so many flips; a failure names its seed."""
    results: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + count):
        try:
            results[flip(seed)] += 1
        except BaseException:
            print(f"seed {seed}, after {dict(results)}")
            raise
    return results
