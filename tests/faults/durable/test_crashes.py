"""A run killed anywhere, and started again.

What is asserted after each life, by an auditor who knows nothing but the input, stands in ``harness.py``.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

import pytest
from harness import Life
from ledgers import ledger_lines

from stageflow.ledger.disk import MOMENTS

# How often a moment comes before the one at which the ordinary tests kill: in the midst of the work where it comes
# again and again, the only time where it comes once.
NTH = {"results written": 6, "letters written": 2, "commit written": 4, "files synced": 2, "marker written": 2}
RECOVERING = ("ledger cut", "results cut", "epoch begun")
FINISHED_BEFORE = ("output taken back", "letters compacted")
"""Moments of a run that goes on with a finished one."""


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "life", records=150)


@pytest.mark.parametrize("moment", MOMENTS)
def test_row_03_a_kill_at_each_named_moment(life: Life, moment: str) -> None:
    nth = NTH.get(moment, 1)
    if moment in RECOVERING:
        assert life.killed_at("commit written", 3).killed
    if moment in FINISHED_BEFORE:
        life.run("--limit", "100")
        life.audit(100)
    if moment == "letters compacted":
        (life.path / "healed").touch()
        options = ["--retry-failed", "--limit", "100"]
        assert life.killed_at(moment, nth, *options).killed
        life.run(*options)
        life.audit(100, healed=True)
        return
    assert life.killed_at(moment, nth).killed, f"{moment} did not come"
    finish(life)


@pytest.mark.parametrize("seed", range(6))
def test_row_01_kills_at_random_points(tmp_path: Path, seed: int) -> None:
    loop, order = ("auto", "asyncio")[seed % 2], ("input", "input", "completion")[seed % 3]
    life = Life(tmp_path / "life", records=150, seed=seed, loop=loop, order=order)
    for _ in range(2):
        life.killed_after(life.random.uniform(0.0, 0.12))
    finish(life)


@pytest.mark.parametrize("seed", range(2))
def test_row_02_kills_while_a_resume_begins(tmp_path: Path, seed: int) -> None:
    life = Life(tmp_path / "life", records=150, seed=seed)
    life.killed_at("commit written", 3)
    size = marked(life)
    for _ in range(3):
        life.killed_after(life.random.uniform(0.0, 0.02))
        assert marked(life) >= size, f"seed {seed}: the ledger was cut below its last marker"
        size = marked(life)
    finish(life)


def test_the_auditor_sees_what_recovery_must_cut(tmp_path: Path) -> None:
    """A harness that can't fail proves nothing."""
    for nth in range(6, 30):
        life = Life(tmp_path / f"life{nth}", records=150)
        assert life.killed_at("results written", nth).killed
        if uncommitted(life):
            break
    with suppress(AssertionError):  # it may notice by itself that its files are not what it takes them for
        life.run(KEEP_TAILS="1")
    with pytest.raises(AssertionError):
        life.audit()


def uncommitted(life: Life) -> int:
    """How many bytes of results no commit covers."""
    lines = ledger_lines(life.path / "out.jsonl.ledger")
    committed = max((fields["o"][1] for fields in lines if fields["t"] == "c"), default=0)
    return (life.path / "out.jsonl.partial").stat().st_size - committed


def test_the_auditor_sees_more_done_again_than_was_open(life: Life) -> None:
    assert life.killed_at("output renamed", 1).killed
    for path in life.path.glob("out.jsonl*"):
        path.unlink()
    life.run()
    life.audit()
    with pytest.raises(AssertionError, match="150 records were done again"):
        life.audit_calls()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_row_01_a_hundred_kills_at_random_points(tmp_path: Path) -> None:
    kills = 0
    for seed in itertools.count(1000):
        loop, order = ("auto", "asyncio")[seed % 2], ("input", "input", "completion")[seed % 3]
        life = Life(tmp_path / f"life{seed}", records=400, seed=seed, loop=loop, order=order)
        while life.killed_after(life.random.uniform(0.0, 0.3)).killed and kills + life.kills < 100:
            pass
        finish(life)
        kills += life.kills
        if kills >= 100:
            break


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_row_02_fifty_kills_in_the_first_hundred_milliseconds_of_resumes(tmp_path: Path) -> None:
    """In a life so long that it is still not over after them."""
    life = Life(tmp_path / "life", records=6000, seed=2000)
    life.killed_at("commit written", 20)
    size = marked(life)
    for _ in range(50):
        assert life.killed_after(life.random.uniform(0.0, 0.1)).killed
        assert marked(life) >= size, "the ledger was cut below its last marker"
        size = marked(life)
    finish(life)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [3000, 3001])
def test_row_03_kills_at_every_moment_of_a_life_with_a_limit_and_a_retry(tmp_path: Path, seed: int) -> None:
    """Every moment wherever it comes, drawn at random how often it comes before: in all three parts of a life."""
    for moment in MOMENTS:
        life = Life(tmp_path / moment.replace(" ", "-"), records=150, seed=seed)
        parts = (["--limit", "90"], 90, False), ([], 150, False), (["--retry-failed"], 150, True)
        for options, count, healed in parts:
            if healed:
                (life.path / "healed").touch()
            while life.killed_at(moment, life.random.randint(1, NTH.get(moment, 1)), *options).killed:
                if life.random.random() < 0.5:
                    break
            life.run(*options)
            life.audit(count, healed=healed)
        life.audit_calls()
        assert life.kills, f"{moment} never came"


def finish(life: Life) -> None:
    life.run()
    life.audit()
    life.audit_calls()


def marked(life: Life) -> int:
    """Where the last marker of the ledger ends."""
    ledger = life.path / "out.jsonl.ledger"
    data = ledger.read_bytes() if ledger.exists() else b""
    found = data.rfind(b'{"t":"s"')
    return data.find(b"\n", found) + 1 if found >= 0 else 0


def test_a_life_without_kills_is_what_the_auditor_expects(life: Life) -> None:
    life.run()
    life.audit()
    undisturbed = (life.path / "out.jsonl").read_bytes()
    other = Life(life.path.parent / "other", records=150)
    other.killed_after(0.05)
    other.killed_after(0.05)
    other.run()
    assert (other.path / "out.jsonl").read_bytes() == undisturbed
