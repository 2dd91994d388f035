"""What the command says of earlier runs, and how it is told to go on with them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Running
from workbench import Folder

from stageflow.ledger import status as ledger_status

RUN = ("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--progress", "off")


def results(folder: Folder) -> list[float]:
    return [json.loads(line)["inverse"] for line in folder.read("out.jsonl").splitlines()]


def mend(folder: Folder) -> None:
    folder.write("job.py", folder.read("job.py").replace("1 / double", "1 / (double or 4)"))
    job = str(folder.path / "job.py")
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == job]:
        del sys.modules[name]  # a job is imported once in a process


def test_row_21_the_same_command_after_completion_changes_nothing(folder: Folder) -> None:
    assert folder.stageflow(*RUN).code == 3
    before = {name: (folder.path / name).read_bytes() for name in folder.names()}
    told = folder.stageflow(*RUN)
    assert (told.code, told.out) == (3, "")
    assert told.error == [
        "stageflow: already complete: 3 inputs, 2 results, 1 dead letters",
        "stageflow: 1 dead letter: see out.jsonl.dead.jsonl",
        "  hint: to try them again: stageflow run job.py in.jsonl -o out.jsonl --progress off --retry-failed",
    ]
    assert {name: (folder.path / name).read_bytes() for name in folder.names()} == before
    told = folder.stageflow(*RUN, "--allow-failures", "1", "--summary", "json")
    assert told.code == 0
    assert json.loads(told.out)["already_complete"]


def test_a_changed_job_is_refused_accepted_or_begun_anew(folder: Folder) -> None:
    folder.stageflow(*RUN)
    mend(folder)
    told = folder.stageflow(*RUN)
    assert (told.code, told.error) == (
        7,
        [
            'stageflow: error: job changed: stage "inverse" (source)',
            "  hint: stageflow run job.py in.jsonl -o out.jsonl --progress off --accept-job-change goes on with the "
            "new job, --fresh starts anew",
        ],
    )
    with open("in.jsonl", "a") as file:
        file.write('{"x": 0}\n')
    told = folder.stageflow(*RUN, "--accept-job-change")
    assert told.code == 3
    assert results(folder) == [0.5, 0.25, 0.25]
    assert folder.stageflow(*RUN, "--fresh").code == 0
    assert results(folder) == [0.5, 0.25, 0.25, 0.25]


def test_what_failed_is_tried_again_with_a_job_that_was_mended(folder: Folder) -> None:
    folder.stageflow(*RUN)
    mend(folder)
    told = folder.stageflow(*RUN, "--retry-failed")
    assert told.code == 0
    assert told.error[:2] == [
        "stageflow: resuming: 3 records done before",
        "stageflow: note: dead letters to be tried again: 1",
    ]
    assert results(folder) == [0.5, 0.25, 0.25]
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "out.jsonl", "out.jsonl.ledger"]


def test_a_stop_by_policy_says_how_to_go_on(folder: Folder) -> None:
    arguments = ["--set", "inverse.on_error=abort", "--max-open-records", "1", "--fresh"]
    told = folder.stageflow(*RUN, *arguments)
    assert told.code == 4
    assert told.error[-2].startswith('stageflow: stopped: 1 of ~3 done: stage "inverse": record 1 failed')
    assert told.error[-2].endswith("; resume with the same command")
    assert told.error[-1] == (
        "  hint: stageflow run job.py in.jsonl -o out.jsonl --progress off --set inverse.on_error=abort "
        "--max-open-records 1"
    ), "with --fresh it would start anew"


def test_no_secret_is_in_a_hint(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "canary-in-the-environment")
    folder.write("job.py", folder.read("job.py").replace('{"factor": 2}', '{"factor": 2, "api_key": "", "url": ""}'))
    secret = ["-p", "api_key=canary", "-p", "url=http://service/?q=canary-in-the-environment"]
    told = folder.stageflow(*RUN, *secret)
    assert told.code == 3
    assert told.error[-1].endswith("--progress off -p 'api_key=***' -p 'url=http://service/?q=***' --retry-failed")
    assert "canary" not in told.err


def test_row_53_standard_input_can_not_be_resumed_unless_it_is_copied(folder: Folder) -> None:
    text = folder.read("good.jsonl")
    done = folder.process("run", "job.py", "-", "-o", "out.jsonl", "--limit", "1", input=text)
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "stageflow: note: stdin cannot be resumed")
    assert folder.process("run", "job.py", "-", "-o", "out.jsonl", input=text).returncode == 2
    command = ["run", "job.py", "-", "-o", "other.jsonl", "--spool"]
    assert folder.process(*command, "--limit", "1", input=text).returncode == 0
    assert folder.read("other.jsonl.spool") == text
    assert folder.process(*command, input="").returncode == 0
    assert len(folder.read("other.jsonl").splitlines()) == 2


@pytest.mark.parametrize(("output", "noted"), [("/dev/null", True), ("-", False)])
def test_row_26_an_output_that_is_no_file_turns_resuming_off(folder: Folder, output: str, noted: bool) -> None:
    done = folder.process("run", "job.py", "good.jsonl", "-o", output, "--progress", "off")
    assert done.returncode == 0
    assert ("stageflow: note: output is not a regular file, resume is off\n" in done.stderr) == noted
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--fsync", "often"], "fsync often: expected interval=SECONDS, group or off"),
        (["--disk-full-wait", "-1"], "Invalid value for '--disk-full-wait'"),
        (["--max-input-bytes", "0"], "Invalid value for '--max-input-bytes'"),
        (["--spool"], "spool keeps standard input for a file"),
    ],
)
def test_options_of_storage_are_checked(folder: Folder, option: list[str], message: str) -> None:
    before = folder.names()
    told = folder.stageflow(*RUN, *option)
    assert (told.code, len(told.error)) == (2, 2)
    assert told.error[0].startswith(f"stageflow: error: {message}")
    assert folder.names() == before


# How far it is


def test_the_status_of_a_run_that_is_complete(folder: Folder) -> None:
    folder.stageflow(*RUN)
    before = {name: os.stat(name).st_mtime_ns for name in folder.names()}
    told = folder.stageflow("status", "out.jsonl")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[:2] == ["out.jsonl: complete", "  3 records done = 2 written + 0 dropped + 1 dead"]
    assert lines[2].endswith("started once: job.py over in.jsonl")
    assert lines[3] == "  1 dead letter not tried again"
    assert lines[4].startswith("  safe from a power loss: 3 records, at 20")
    assert {name: os.stat(name).st_mtime_ns for name in folder.names()} == before


def test_the_status_tells_what_is_left(folder: Folder) -> None:
    folder.stageflow(*RUN, "--limit", "1")
    lines = folder.stageflow("status", "out.jsonl").out.splitlines()
    assert lines[1] == "  1 record done = 1 written + 0 dropped + 0 dead, about 2 left"


def test_the_status_as_json_is_one_line(folder: Folder) -> None:
    folder.stageflow(*RUN)
    (line,) = folder.stageflow("status", "out.jsonl", "--json").out.splitlines()
    found = json.loads(line)
    assert (found["output"], found["state"], found["settled"], found["epoch"], found["letters"]) == (
        "out.jsonl",
        "complete",
        3,
        1,
        1,
    )
    assert found["totals"] == {"written": 2, "dropped": 0, "dead": 1}


def test_the_status_where_the_system_tells_of_no_locks(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_status, "_LOCKS", "no such file")
    folder.process(*RUN)
    assert folder.stageflow("status", "out.jsonl").out.startswith("out.jsonl: complete\n")
    folder.stageflow(*RUN, "--fresh")  # by this process, which is still there
    assert folder.stageflow("status", "out.jsonl").out.startswith(f"out.jsonl: running (pid {os.getpid()} on ")


def test_the_status_of_nothing_is_refused(folder: Folder) -> None:
    told = folder.stageflow("status", "out.jsonl")
    assert (told.code, len(told.error)) == (2, 2)
    assert told.error[0] == "stageflow: error: cannot read out.jsonl.ledger: No such file or directory"


WAITS = """
import asyncio, os
from stageflow import Pipeline
pipeline = Pipeline("waits")

@pipeline.stage
async def s(x):
    while x == 2 and not os.path.exists("go"):
        await asyncio.sleep(0.01)
"""


def test_row_22_a_second_run_leaves_the_first_alone(folder: Folder, start: Callable[..., Running]) -> None:
    folder.write("waits.py", WAITS)
    command = ["run", "waits.py", "good.jsonl", "-o", "out.jsonl", "--progress", "off"]
    running = start(*command)
    partial = Path("out.jsonl.partial")
    running.until(lambda: partial.exists() and partial.stat().st_size > 0)
    told = folder.stageflow(*command)
    assert (told.code, len(told.error)) == (6, 2)
    assert f"stageflow: error: out.jsonl is being written by pid {running.process.pid} on " in told.error[0]
    assert told.error[1] == "  hint: when it has ended: stageflow " + " ".join(command)
    said = folder.stageflow("status", "out.jsonl").out
    assert said.startswith(f"out.jsonl: running (pid {running.process.pid} on ")
    folder.write("go", "")
    assert running.ends() == 0
    assert len(folder.read("out.jsonl").splitlines()) == 2
