"""`stageflow run` where all is well, and where records fail."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from workbench import Folder

from stageflow.cli import cli

LINES = [
    {"id": "a", "x": 1, "double": 2, "inverse": 0.5},
    {"id": "c", "x": 2, "double": 4, "inverse": 0.25},
]


def records(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_writes_results_and_says_what_it_came_to(folder: Folder) -> None:
    told = folder.stageflow("run", "job.py", "good.jsonl", "-o", "out.jsonl")
    assert (told.code, told.out) == (0, "")
    assert records(folder.read("out.jsonl")) == LINES
    assert "2 read = 2 written + 0 dropped + 0 dead" in told.err
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "out.jsonl", "out.jsonl.ledger"]


def test_dead_letters_make_it_exit_3(folder: Folder) -> None:
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--progress", "off")
    assert told.code == 3
    assert records(folder.read("out.jsonl")) == LINES
    (letter,) = records(folder.read("out.jsonl.dead.jsonl"))
    assert (letter["index"], letter["line"], letter["path"], letter["stage"]) == (1, 2, "in.jsonl", "inverse")
    assert letter["results"] == {"double": 0}
    assert "stageflow: record 1 (line 2) failed at inverse: ZeroDivisionError: " in told.err
    assert told.error[-2:] == [
        "stageflow: 1 dead letter: see out.jsonl.dead.jsonl",
        "  hint: to try them again: stageflow run job.py in.jsonl -o out.jsonl --progress off --retry-failed",
    ]
    assert os.stat("out.jsonl.dead.jsonl").st_mode & 0o077 == 0


def test_dead_letters_go_where_they_are_sent(folder: Folder) -> None:
    assert folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--dead", "letters").code == 3
    assert [letter["index"] for letter in records(folder.read("letters"))] == [1]
    assert "out.jsonl.dead.jsonl" not in folder.names()


def test_damaged_input_makes_it_exit_3(folder: Folder) -> None:
    folder.write("bad.jsonl", '{"id": 1, "x": 1}\nnot json\n\n')
    told = folder.stageflow("run", "job.py", "bad.jsonl", "-o", "out.jsonl", "--summary", "json")
    report = json.loads(told.out)
    assert (told.code, report["read"], report["bad"], report["blank"], report["dead"]) == (3, 2, 1, 1, 1)


def test_bad_input_can_stop_the_run(folder: Folder) -> None:
    folder.write("bad.jsonl", '{"id": 1, "x": 1}\nnot json\n{"id": 2, "x": 1}\n')
    told = folder.stageflow("run", "job.py", "bad.jsonl", "-o", "out.jsonl", "--on-bad-input", "stop")
    assert told.code == 4
    assert "bad.jsonl:2: InvalidJSON" in told.err
    assert records(folder.read("out.jsonl.partial")) == [{"id": 1, "x": 1, "double": 2, "inverse": 0.5}]


def test_abort_makes_it_exit_4_and_leaves_the_results_so_far(folder: Folder) -> None:
    arguments = ["--set", "inverse.on_error=abort", "--max-open-records", "1"]
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", *arguments)
    assert told.code == 4
    assert 'stage "inverse": record 1 failed: ZeroDivisionError' in told.err
    assert records(folder.read("out.jsonl.partial")) == LINES[:1]
    assert "out.jsonl" not in folder.names()
    assert "Traceback" not in told.err


def test_an_empty_input_makes_an_empty_output(folder: Folder) -> None:
    folder.write("empty.jsonl", "")
    told = folder.stageflow("run", "job.py", "empty.jsonl", "-o", "out.jsonl")
    assert (told.code, folder.read("out.jsonl")) == (0, "")
    assert told.error[-1] == "stageflow: note: the input is empty"


def test_the_summary_as_json_is_one_line_on_stdout(folder: Folder) -> None:
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--summary", "json", "--progress", "off")
    (line,) = told.out.splitlines()
    report = json.loads(line)
    assert (report["read"], report["written"], report["dead"], report["exit_code"]) == (3, 2, 1, 3)
    assert list(report["stages"]) == ["double", "inverse"]
    assert "read =" not in told.err


@pytest.mark.parametrize("kind", ["auto", "bar", "log", "off"])
@pytest.mark.parametrize("loop", ["auto", "uvloop", "asyncio"])
def test_every_kind_of_progress_and_loop(folder: Folder, kind: str, loop: str) -> None:
    told = folder.stageflow(
        "run", "job.py", "good.jsonl", "-o", "out.jsonl", "--progress", kind, "--loop", loop, "--grace", "1"
    )
    assert told.code == 0
    assert records(folder.read("out.jsonl")) == LINES
    if kind != "bar":
        assert "\r" not in told.err
        assert "\x1b" not in told.err


def test_settings_and_params_from_outside(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("stageflow.toml", "[stages.double]\nemit = false\nqueue_size = 7\n")
    monkeypatch.setenv("STAGEFLOW_MAX_IN_FLIGHT", "double=3")
    arguments = ["-p", "factor=4", "--set", "inverse.on_error=skip", "--queue-size", "inverse=5", "--summary", "json"]
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", *arguments)
    assert told.code == 0
    written = records(folder.read("out.jsonl"))
    assert written[0] == {"id": "a", "x": 1, "inverse": 0.25}
    assert written[1]["_stageflow"]["inverse"]["outcome"] == "skipped"
    stages = json.loads(told.out)["stages"]
    assert (stages["double"]["max_in_flight"], stages["double"]["queue_size"]) == (3, 7)
    assert (stages["inverse"]["max_in_flight"], stages["inverse"]["queue_size"]) == (16, 5)


def test_one_for_a_stage_is_stronger_than_one_for_all_however_it_is_said(folder: Folder) -> None:
    arguments = ["--max-in-flight", "8", "--set", "double.max_in_flight=4", "--summary", "json"]
    told = folder.stageflow("run", "job.py", "good.jsonl", "-o", "out.jsonl", *arguments)
    stages = json.loads(told.out)["stages"]
    assert [stages[name]["max_in_flight"] for name in ("double", "inverse")] == [4, 8]


def test_a_limit_reads_no_more(folder: Folder) -> None:
    assert folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--limit", "1").code == 0
    assert records(folder.read("out.jsonl")) == LINES[:1]


BACKWARDS = """
import asyncio
from stageflow import Pipeline
pipeline = Pipeline("backwards")
before = {}

@pipeline.stage
async def s(x):
    # Each waits for the one behind it, so that the last is done first.
    before[x] = asyncio.Event()
    if x < 2:
        while x + 1 not in before:
            await asyncio.sleep(0)
        await before[x + 1].wait()
    before[x].set()
"""


@pytest.mark.parametrize(("order", "xs"), [(None, [0, 1, 2]), ("input", [0, 1, 2]), ("completion", [2, 1, 0])])
def test_the_order_of_a_file(folder: Folder, order: str | None, xs: list[int]) -> None:
    folder.write("backwards.py", BACKWARDS)
    folder.write("three.jsonl", '{"x": 0}\n{"x": 1}\n{"x": 2}\n')
    arguments = ["--order", order] if order else []
    assert folder.stageflow("run", "backwards.py", "three.jsonl", "-o", "out.jsonl", *arguments).code == 0
    assert [record["x"] for record in records(folder.read("out.jsonl"))] == xs


def test_the_order_of_the_input_on_stdout_is_kept_or_refused(folder: Folder) -> None:
    folder.write("backwards.py", BACKWARDS)
    folder.write("three.jsonl", '{"x": 0}\n{"x": 1}\n{"x": 2}\n')
    done = folder.process("run", "backwards.py", "three.jsonl", "-o", "-", "--order", "input")
    assert done.returncode == 2 or [record["x"] for record in records(done.stdout)] == [0, 1, 2]


def test_an_existing_output_is_refused_and_left_as_it_is(folder: Folder) -> None:
    folder.write("out.jsonl", "precious\n")
    told = folder.stageflow("run", "job.py", "good.jsonl", "-o", "out.jsonl")
    assert told.code == 2
    assert told.error == [
        "stageflow: error: out.jsonl exists and was not written by stageflow, or its ledger is gone",
        "  hint: choose another name, restore out.jsonl.ledger, or start anew with --fresh, which keeps the old files "
        "under other names",
    ]
    assert folder.read("out.jsonl") == "precious\n"
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "out.jsonl"]


def test_fresh_renames_and_never_deletes(folder: Folder) -> None:
    for number in range(3):
        assert folder.stageflow(
            "run", "job.py", "in.jsonl", "-o", "out.jsonl", "-p", f"factor={number + 1}", "--fresh"
        ).code
    beside = [f"out.jsonl.{name}{end}" for name in ("dead.jsonl", "ledger") for end in ("", ".1", ".2")]
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "out.jsonl", "out.jsonl.1", "out.jsonl.2", *beside]
    doubles = [records(folder.read(name))[0]["double"] for name in ("out.jsonl.1", "out.jsonl.2", "out.jsonl")]
    assert doubles == [1, 2, 3]


def test_a_link_stays_a_link(folder: Folder) -> None:
    os.mkdir("elsewhere")
    os.symlink("elsewhere/target.jsonl", "out.jsonl")
    assert folder.stageflow("run", "job.py", "good.jsonl", "-o", "out.jsonl").code == 0
    assert os.path.islink("out.jsonl")
    assert records(folder.read("elsewhere/target.jsonl")) == LINES


@pytest.mark.parametrize("form", ["job.py", "job.py:pipeline", "./job.py", "job", "job:pipeline"])
def test_every_way_to_name_a_job(folder: Folder, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "job", raising=False)
    monkeypatch.setattr(sys, "path", [str(folder.path), *sys.path])
    assert folder.stageflow("run", form, "good.jsonl", "-o", "out.jsonl").code == 0
    monkeypatch.delitem(sys.modules, "job", raising=False)


def test_a_job_elsewhere_finds_its_neighbours_and_its_settings(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("jobs/stageflow_test_neighbour.py", "FACTOR = 10\n")
    folder.write(
        "jobs/elsewhere.py",
        """
        from stageflow import Pipeline
        from stageflow_test_neighbour import FACTOR
        pipeline = Pipeline("elsewhere")

        @pipeline.stage
        def times(x):
            return x * FACTOR
        """,
    )
    folder.write("jobs/stageflow.toml", "[stages.times]\nmax_in_flight = 5\n")
    told = folder.stageflow("run", "jobs/elsewhere.py", "good.jsonl", "-o", "out.jsonl", "--summary", "json")
    assert [record["times"] for record in records(folder.read("out.jsonl"))] == [10, 20]
    assert json.loads(told.out)["stages"]["times"]["max_in_flight"] == 5


def test_a_process_stage_of_a_job_file(folder: Folder) -> None:
    folder.write(
        "processes.py",
        """
        import os
        from stageflow import Pipeline
        pipeline = Pipeline("processes")

        @pipeline.stage(run="process", max_in_flight=1)
        def away(x):
            print("a child prints")
            return os.getpid()
        """,
    )
    done = folder.process("run", "processes.py", "good.jsonl", "-o", "-")
    assert done.returncode == 0
    assert len({record["away"] for record in records(done.stdout)}) == 1
    assert "a child prints" in done.stderr


# What the help says


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_is_documented(folder: Folder, name: str) -> None:
    told = folder.stageflow(name, "--help")
    assert told.code == 0
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name  # type: ignore[attr-defined]
            assert all(option in told.out for option in parameter.opts)
        else:
            assert parameter.human_readable_name.strip("[]") in told.out


def test_no_command_shows_the_help(folder: Folder) -> None:
    told = folder.stageflow()
    assert told.code == 2
    assert "Commands:" in told.err
    assert folder.stageflow("-h").code == 0


def test_as_a_module(folder: Folder, tmp_path: Path) -> None:
    done = folder.process("run", "job.py", "good.jsonl", "-o", "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
