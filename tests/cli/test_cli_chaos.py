"""`stageflow chaos`: real jobs that are really killed, and jobs for which that must make a difference."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import SECONDS, Running
from workbench import Folder

from stageflow import Pipeline, drop
from stageflow.chaos import differences, experiment, lives

# Each start that comes so far is noted in `starts`, and there is a stage that takes some milliseconds.
HEAD = """
import asyncio, os, sys, time
from pathlib import Path
from stageflow import Pipeline, drop

with open("starts", "a") as file:
    file.write(f"{os.getpid()}\\n")
output = Path(sys.argv[sys.argv.index("-o") + 1]) if "-o" in sys.argv else Path("none")
killed = output.parent.name == "killed"
again = killed and output.with_name("stderr2").exists()
pipeline = Pipeline("job")

@pipeline.stage(max_in_flight=4)
async def twice(n):
    await asyncio.sleep(0.01)
    return n * 2
"""
RECORDS = 120

FATES = """
@pipeline.stage
async def fate(n, twice):
    if n % 10 == 3:
        return drop("a three")
    if n % 10 == 7:
        raise ValueError("a seven")
    return twice + 1
"""

Chaos = Callable[..., Any]


@pytest.fixture
def chaos(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Chaos:
    """Run chaos on a job; temporary files are in ``tmp``."""
    (folder.path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder.path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("PYTHONPATH", folder.environment()["PYTHONPATH"])
    folder.write("many.jsonl", "".join(f'{{"n": {n}}}\n' for n in range(RECORDS)))

    def run(text: str, *options: str) -> Any:
        folder.write("job.py", HEAD + text)
        return folder.stageflow("chaos", "job.py", "many.jsonl", "--seed", "7", *options)

    return run


def kept(folder: Folder) -> list[str]:
    return os.listdir(folder.path / "tmp")


def test_a_job_that_loses_nothing(folder: Folder, chaos: Chaos) -> None:
    told = chaos(FATES, "--kills", "3", "--yes", "--deterministic", "fate", "--deterministic", "twice")
    assert told.code == 0, told.out + told.err
    cost = "stageflow: 2 runs of about 120 records through 2 stages: about 480 calls, and those of up to "
    assert told.err.startswith(cost)
    assert told.out.startswith("3 kills in 4 starts, ")
    assert told.out.endswith("\n\nequal: each record came to the same; values compared: fate, twice\n")
    assert " records were begun again after one kill at most (" in told.out
    assert kept(folder) == []
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "many.jsonl", "starts", "tmp"]


def test_calls_are_counted_by_stage(chaos: Chaos) -> None:
    told = chaos(FATES, "--kills", "2", "--limit", "50", "--deterministic", "all")
    assert told.code == 0, told.out + told.err
    rows = [line.split() for line in told.out.splitlines() if line.startswith(("twice", "fate"))]
    for stage, undisturbed, killed, again in rows:
        assert int(undisturbed) == 50, stage
        assert int(killed) == 50 + int(again)
    assert "values compared: whole lines" in told.out


def test_nothing_is_called_before_it_is_agreed_to(folder: Folder, chaos: Chaos) -> None:
    told = chaos(FATES)
    assert told.code == 2
    assert told.error[1:] == [
        "stageflow: error: chaos makes real calls",
        "  hint: pass --limit N for a part of the input, or --yes for all",
    ]
    assert len(folder.read("starts").splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        (["fat"], 'unknown stage "fat"', 'did you mean "fate"? Or give all for whole lines'),
        (["hidden"], 'the output has no field for stage "hidden"', "give all to compare whole lines"),
    ],
)
def test_a_stage_that_can_not_be_compared(chaos: Chaos, options: list[str], error: str, hint: str) -> None:
    hidden = "@pipeline.stage(emit=False)\nasync def hidden(n): ...\n"
    told = chaos(FATES + hidden, "--yes", *(word for name in options for word in ("--deterministic", name)))
    assert told.code == 2
    assert told.error == [f"stageflow: error: {error}", f"  hint: {hint}"]


def test_standard_input_can_not_be_read_twice(folder: Folder) -> None:
    told = folder.stageflow("chaos", "job.py", "-", "--yes")
    assert (told.code, told.error[0]) == (2, "stageflow: error: chaos reads its input many times")


UNLIKE = """
@pipeline.stage
async def who(twice):
    return killed
"""


def test_values_are_compared_where_that_is_asked_for(folder: Folder, chaos: Chaos) -> None:
    told = chaos(UNLIKE, "--kills", "1", "--yes", "--deterministic", "twice")
    assert told.code == 0, told.out + told.err
    told = chaos(UNLIKE, "--kills", "1", "--yes", "--deterministic", "who")
    assert told.code == 3
    assert told.error[-2] == "stageflow: error: 120 records differ"
    (folder_kept,) = kept(folder)
    assert told.error[-1] == f"  hint: both runs are in {folder.path}/tmp/{folder_kept}; seed 7"
    lines = told.out.splitlines()
    assert lines[-11:] == [*(f"record {n}: other values of who" for n in range(10)), "... and 110 more"]


def test_a_record_that_comes_to_something_else_is_named(chaos: Chaos) -> None:
    other = '@pipeline.stage\nasync def s(n, twice):\n    return drop("") if killed and n == 5 else n\n'
    told = chaos(other, "--kills", "2", "--yes")
    assert told.code == 3
    assert "record 5: written undisturbed, dropped after kills" in told.out
    assert told.error[-2] == "stageflow: error: 1 record differs"


def test_more_done_again_than_can_be_open_is_told(
    folder: Folder, chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = experiment._calls_of
    monkeypatch.setattr(experiment, "_calls_of", lambda life: replace(count(life), most_again=9_999))
    told = chaos(FATES, "--kills", "1", "--limit", "20")
    assert told.code == 3
    assert told.error[-2] == "stageflow: error: 9,999 records were begun again after one kill, and fewer can be open"
    assert told.error[-1].endswith("; seed 7")
    assert len(kept(folder)) == 1


def test_records_are_done_again_where_a_later_start_begins_them_too(tmp_path: Path) -> None:
    life = lives.Life(tmp_path, "job.py", "in.jsonl", {})
    for number, records in enumerate(([0, 1, 2, 3], [2, 3, 4], [3, 5])):
        life.logs.append(tmp_path / f"calls{number}")
        life.logs[-1].write_text("".join(f"s\t{record}.0\n" for record in records))
    calls = experiment._calls_of(life)
    assert (calls.calls["s"], calls.again["s"], calls.most_again) == (9, 3, 2)


def test_an_undisturbed_run_that_does_not_end_is_not_compared(chaos: Chaos) -> None:
    told = chaos('@pipeline.stage(on_error="abort")\nasync def s(n, twice):\n    raise ValueError("no")\n', "--yes")
    assert told.code == 4
    assert "error: the undisturbed run ended with exit code 4: " in told.error[-2]
    assert "ValueError: no" in told.error[-2]


def test_a_start_that_fails_after_a_kill_is_told(chaos: Chaos) -> None:
    told = chaos('if again:\n    raise RuntimeError("once too often")\n', "--yes", "--kills", "2")
    assert told.code == 3
    assert re.match(r"stageflow: error: start \d \(kills before it: \d\) ended with exit code 2: ", told.error[-2])
    assert "RuntimeError" in told.error[-2]


def test_a_start_that_hangs_is_told(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "_MARGIN", 1.0)
    monkeypatch.setattr(lives, "_SLOWER", 1)
    told = chaos("if again:\n    time.sleep(3600)\n", "--yes", "--kills", "1")
    assert told.code == 3
    assert re.match(r"stageflow: error: start \d did not end within ", told.error[-2])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_its_children_end_with_it(
    folder: Folder, chaos: Chaos, start: Callable[..., Running], number: signal.Signals, code: int
) -> None:
    folder.write("job.py", HEAD + "@pipeline.stage\nasync def s(twice):\n    await asyncio.sleep(3600)\n")
    running = start("chaos", "job.py", "many.jsonl", "--yes")
    running.until(lambda: os.path.exists("starts") and len(folder.read("starts").splitlines()) == 2)
    child = Path("/proc", folder.read("starts").splitlines()[1])
    assert child.exists()
    running.signal(number)
    assert running.ends(SECONDS) == code
    assert not child.exists()
    assert kept(folder) == []
    assert "Traceback" not in running.err


# Comparing


def outcome(path: Path, *, name: str = "out", differ: int = -1, drops: int = -1, dies: int = -1) -> Path:
    """The output of a small job with a fan-out, in which one record comes to something else."""
    pipeline = Pipeline("small")

    @pipeline.stage
    async def parts(n: int) -> Any:
        for place in range(n % 3):
            yield place

    @pipeline.stage
    async def s(n: int, parts: int) -> Any:
        if n == drops:
            return drop("")
        if n == dies:
            raise ValueError("no")
        return "other" if n == differ else "same"

    (path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(12)))
    output = path / f"{name}.jsonl"
    pipeline.run_sync(str(path / "in.jsonl"), str(output), order="input")
    return output


@pytest.mark.parametrize(
    ("change", "compared", "expected"),
    [
        ({}, None, []),
        ({"differ": 5}, (), []),
        ({"differ": 5}, ("parts",), []),
        ({"differ": 5}, ("parts", "s"), ["record 5: other values of s"]),
        ({"differ": 5}, None, ["record 5: other values of s"]),
        (
            {"drops": 5},
            (),
            ["record 5: written (2 lines, 0 dead letters) undisturbed, dropped after kills"],
        ),
        (
            {"dies": 4},
            (),
            ["record 4: written undisturbed, dead after kills"],
        ),
    ],
)
def test_what_two_runs_differ_in(
    tmp_path: Path, change: dict[str, int], compared: tuple[str, ...] | None, expected: list[str]
) -> None:
    one, other = outcome(tmp_path), outcome(tmp_path, name="other", **change)
    assert list(differences(one, other, compared)) == expected
