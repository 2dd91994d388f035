"""`stageflow bench --sweep`: the curve, the picture, and what is refused before a call is paid for."""

from __future__ import annotations

import gzip
import json
import os
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Running
from workbench import Folder

# A service that answers one call at a time, so that more in flight pays nothing: 100 calls take 0.2 s.
ONE_AT_A_TIME = """
import asyncio
from stageflow import Pipeline
pipeline = Pipeline("queue")

@pipeline.resource
def service():
    return asyncio.Lock()

@pipeline.stage
async def ask(x, service):
    async with service:
        await asyncio.sleep(0.002)
"""


@pytest.fixture
def queue(folder: Folder) -> Folder:
    folder.write("queue.py", ONE_AT_A_TIME)
    folder.write("many.jsonl", "".join(f'{{"x": {x}}}\n' for x in range(100)))
    return folder


def test_a_sweep_is_drawn_with_its_knee_and_with_what_is_beyond_it(queue: Folder) -> None:
    told = queue.stageflow("bench", "queue.py", "many.jsonl", "--sweep", "ask=1,8,64", "--yes", "--repeat", "1")
    assert told.code == 0
    table, bars, knee, why, note = told.out.rstrip("\n").split("\n\n")
    assert len(table.splitlines()) == 4
    first, *others = bars.splitlines()[1:]
    assert [line.split()[0] for line in (first, *others)] == ["ask=1", "ask=8", "ask=64"]
    assert table.splitlines()[1].index("ask=1") == first.index("ask=1")
    assert first.endswith(" ← knee")
    assert not any(line.endswith("knee") for line in others)
    assert knee.startswith(
        "The knee is at or below ask=1 (the most throughput squared per call in flight, Kleinrock 1979): 8 in"
    )
    assert why.startswith("Beyond the knee calls of ask take longer (p50 ")
    assert note == (
        "Note: 100 calls for 64 in flight: a run starts up and runs dry, which matters little from 640 calls on."
    )


def test_the_settings_take_turns(queue: Folder) -> None:
    told = queue.stageflow("bench", "queue.py", "many.jsonl", "--sweep", "ask=2,1", "--limit", "3", "--repeat", "2")
    rounds = [line.split(":")[0] for line in told.error[1:]]
    assert rounds == [f"  round {number} of 2, ask={value}" for number in (1, 2) for value in (2, 1)]


def test_a_value_given_twice_is_measured_once_and_the_curve_is_in_order(queue: Folder) -> None:
    arguments = ["--sweep", "ask=2,1,2", "--limit", "3", "--repeat", "1"]
    told = queue.stageflow("bench", "queue.py", "many.jsonl", *arguments)
    table, bars = (part.splitlines()[1:] for part in told.out.split("\n\n")[:2])
    assert [line.split()[0] for line in table] == ["ask=2", "ask=1"]
    assert [line.split()[0] for line in bars] == ["ask=1", "ask=2"]


def test_bars_are_ascii_where_the_terminal_is(queue: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    arguments = ["--sweep", "ask=1,8", "--limit", "20", "--repeat", "1"]
    done = queue.process("bench", "queue.py", "many.jsonl", *arguments, encoding="utf-8")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "##" in done.stdout
    assert "<- knee" in done.stdout


def test_json_has_each_rate_and_the_knee(queue: Folder) -> None:
    arguments = ["--sweep", "ask=1,8", "--yes", "--json", "--repeat", "3"]
    rows = json.loads(queue.stageflow("bench", "queue.py", "many.jsonl", *arguments).out)["rows"]
    assert [row["knee"] for row in rows] == [True, False]
    for row in rows:
        assert sorted(row["rates"]) == [row["slowest"], row["per_second"], row["fastest"]]
        assert row["p50"]["ask"] > 0


def test_dead_letters_are_told(folder: Folder) -> None:
    told = folder.stageflow("bench", "job.py", "in.jsonl", "--sweep", "double=1,2", "--yes", "--repeat", "1")
    assert "Note: at double=1 33 % of the records are dead letters; they count as done here.\n" in told.out


def test_parameters_and_other_settings_hold_in_a_sweep(folder: Folder) -> None:
    folder.write(
        "shown.py",
        """
        from stageflow import Pipeline
        pipeline = Pipeline("shown", params={"n": 1})

        @pipeline.stage
        async def first(x, params):
            assert params.n == 7

        @pipeline.stage
        async def second(first): ...
        """,
    )
    arguments = ["--sweep", "first=1,2", "--max-in-flight", "5", "--set", "first.on_error=abort", "-p", "n=7"]
    told = folder.stageflow("bench", "shown.py", "in.jsonl", *arguments, "--yes", "--repeat", "1", "--json")
    assert told.code == 0
    assert [row["dead"] for row in json.loads(told.out)["rows"]] == [0, 0]


# The picture


def test_the_picture_is_written(queue: Folder) -> None:
    arguments = ["--sweep", "ask=1,8", "--sweep-queue", "ask=4,5", "--limit", "9", "--repeat", "2", "--json"]
    told = queue.stageflow("bench", "queue.py", "many.jsonl", *arguments, "--plot", "curve.svg")
    assert told.code == 0
    root = ET.fromstring(queue.read("curve.svg"))
    titles = {title.text.split(":")[0] for title in root.iter("{http://www.w3.org/2000/svg}title") if title.text}
    assert {f"ask={value} ask queue={size}" for value in (1, 8) for size in (4, 5)} <= titles


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--plot", "curve.png"], "--plot curve.png: only SVG is drawn", "ends in .svg"),
        (["--plot", "none/curve.svg"], "cannot write none/curve.svg", "a folder that can be written to"),
        (["--sweep", "s=4"], "--sweep: s is given twice", "--sweep s=N,N,..."),
        (["--sweep", "=4"], "=4: expected STAGE=N,N,...", "--sweep generate=8,16,32"),
    ],
)
def test_what_is_refused_before_the_first_call(folder: Folder, arguments: list[str], error: str, hint: str) -> None:
    folder.write(
        "called.py", 'from stageflow import Pipeline\np = Pipeline("p")\n@p.stage\ndef s(x): open("called", "w")\n'
    )
    before = folder.names()
    told = folder.stageflow("bench", "called.py", "in.jsonl", "--yes", "--sweep", "s=1,2", *arguments)
    assert told.code == 2
    assert told.error[0] == f"stageflow: error: {error}"
    assert hint in told.error[1]
    assert folder.names() == before


@pytest.mark.parametrize("sweeps", [[], ["--sweep", "double=4"]])
def test_a_picture_needs_a_sweep(folder: Folder, sweeps: list[str]) -> None:
    told = folder.stageflow("bench", "job.py", "in.jsonl", "--yes", *sweeps, "--plot", "curve.svg")
    assert told.code == 2
    assert told.error[0] == "stageflow: error: --plot draws a curve over what is swept"
    assert "curve.svg" not in folder.names()


def test_what_was_measured_is_shown_where_the_picture_can_not_be_written(
    queue: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(curve: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stageflow.sweep.svg", full)
    arguments = ["--sweep", "ask=1,2", "--limit", "2", "--repeat", "1", "--plot", "curve.svg"]
    told = queue.stageflow("bench", "queue.py", "many.jsonl", *arguments)
    assert told.code == 5
    assert told.error[-2:] == [
        "stageflow: error: cannot write curve.svg: No space left on device",
        "  hint: the figures are above",
    ]
    assert "ask=2" in told.out


# The input and the end


def test_calls_are_counted_by_the_records_there_are(folder: Folder) -> None:
    text = folder.read("in.jsonl") + "\n\n"
    (folder.path / "in.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    told = folder.stageflow(
        "bench", "job.py", "in.jsonl.gz", "--limit", "50", "--repeat", "1", "--set", "double.retry=2"
    )
    assert told.code == 0
    counted = "stageflow: 1 runs of 3 records through 2 stages: up to 6 calls, and what is tried again"
    assert told.error[0] == counted


def test_a_damaged_input_is_refused(folder: Folder) -> None:
    (folder.path / "cut.gz").write_bytes(gzip.compress(b'{"x": 1}\n' * 99)[:-9])
    told = folder.stageflow("bench", "job.py", "cut.gz", "--yes")
    assert told.code == 2
    assert told.error[0].startswith("stageflow: error: cannot read cut.gz: ")


def test_a_pipe_can_not_be_read_several_times(folder: Folder) -> None:
    os.mkfifo("pipe")
    told = folder.stageflow("bench", "job.py", "pipe", "--yes")
    assert told.code == 2
    assert told.error[0] == "stageflow: error: a benchmark reads its input several times"


def test_a_run_that_is_stopped_ends_the_benchmark(folder: Folder) -> None:
    arguments = ["--sweep", "double=1,2", "--set", "inverse.on_error=abort", "--yes"]
    told = folder.stageflow("bench", "job.py", "in.jsonl", *arguments)
    assert told.code == 4
    assert told.error[-2].startswith("stageflow: error: double=1: ")
    assert "division by zero" in told.error[-2]


def test_what_was_measured_before_a_run_was_stopped_is_shown(folder: Folder) -> None:
    folder.write(
        "tires.py",
        """
        from stageflow import Pipeline
        pipeline = Pipeline("tires")
        calls = []

        @pipeline.stage(on_error="abort")
        async def s(x):
            calls.append(x)
            if len(calls) > 3:
                raise RuntimeError("no more")
        """,
    )
    told = folder.stageflow("bench", "tires.py", "in.jsonl", "--sweep", "s=1,2", "--yes")
    assert told.code == 4
    assert "no more" in told.error[-2]
    assert [line.split()[0] for line in told.out.split("\n\n")[0].splitlines()] == ["setting", "s=1"]


def test_an_interrupt_shows_what_was_measured(queue: Folder, start: Callable[..., Running], tmp_path: Path) -> None:
    with open(tmp_path / "shown", "wb") as shown:
        many = ["--sweep", "ask=1,2,3", "--yes", "--repeat", "1000"]
        running = start("bench", "queue.py", "many.jsonl", *many, stdout=shown)
        running.until_it_says("round 1 of 1000, ask=2: ")
        running.signal(signal.SIGINT)
        assert running.ends() == 130
    text = (tmp_path / "shown").read_text()
    assert "\nask=1  " in text
    assert "\nask=2  " in text
    assert "Traceback" not in running.err
