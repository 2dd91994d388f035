"""Standard input and output as input and output, and what happens where they are closed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from running import Running
from workbench import Folder

LOUD = """
import os
from stageflow import Pipeline
pipeline = Pipeline("loud")
print("the job prints")

@pipeline.resource
def client():
    print("the resource prints")
    yield 1
    print("the resource prints again")

@pipeline.stage
async def s(x, client):
    print("the stage prints")
    os.write(1, b"past sys.stdout\\n")
    os.system("echo a command prints")
    return x
"""


def test_stdin_to_stdout(folder: Folder) -> None:
    text = folder.read("good.jsonl")
    done = folder.process("run", "job.py", "-", "-o", "-", input=text)
    assert done.returncode == 0
    assert [json.loads(line)["inverse"] for line in done.stdout.splitlines()] == [0.5, 0.25]
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py"]


def test_what_the_job_prints_does_not_get_among_the_records(folder: Folder) -> None:
    folder.write("loud.py", LOUD)
    done = folder.process("run", "loud.py", "good.jsonl", "-o", "-", "--progress", "off")
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": "a", "x": 1, "s": 1},
        {"id": "c", "x": 2, "s": 2},
    ]
    for text in ("the job", "the resource", "the stage", "a command"):
        assert f"{text} prints" in done.stderr
    assert done.stderr.count("past sys.stdout") == 2


def test_what_the_job_prints_goes_to_stdout_where_that_is_free(folder: Folder) -> None:
    folder.write("loud.py", LOUD)
    done = folder.process("run", "loud.py", "good.jsonl", "-o", "out.jsonl", "--progress", "off")
    assert "the stage prints" in done.stdout


def test_dead_letters_are_told_where_there_is_no_file_for_them(folder: Folder) -> None:
    folder.write("two.jsonl", '{"x": 0}\n{"x": 0}\n{"x": 1}\n')
    done = folder.process("run", "job.py", "two.jsonl", "-o", "-", "--progress", "off")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1
    told = [line for line in done.stderr.splitlines() if "failed at inverse: ZeroDivisionError" in line]
    assert len(told) == 2
    assert "-.dead.jsonl" not in done.stderr
    assert folder.names() == ["good.jsonl", "in.jsonl", "job.py", "two.jsonl"]


def test_dead_letters_of_stdout_can_be_kept(folder: Folder) -> None:
    done = folder.process("run", "job.py", "in.jsonl", "-o", "-", "--dead", "dead.jsonl")
    assert done.returncode == 3
    assert len(folder.read("dead.jsonl").splitlines()) == 1


def test_a_reader_that_goes_away_ends_the_run_with_141(folder: Folder, start: Callable[..., Running]) -> None:
    folder.write("long.jsonl", "".join(f'{{"x": {number}}}\n' for number in range(1, 50_000)))
    running = start("run", "job.py", "long.jsonl", "-o", "-", "--progress", "off", stdout=subprocess.PIPE)
    stdout = running.process.stdout
    assert stdout is not None
    assert json.loads(stdout.readline())["x"] == 1
    stdout.close()
    assert running.ends() == 141
    lines = running.err.splitlines()
    assert len(lines) == 2, running.err
    assert lines[0].startswith("stageflow: error: stdout closed after ")
    assert lines[1] == "  hint: use -o FILE to be able to resume"


@pytest.mark.parametrize("command", [["check", "job.py"], ["graph", "job.py"]])
def test_a_listing_that_nobody_reads_ends_with_141(folder: Folder, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = folder.process(*command, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_descriptors_cost_what_they_show_and_nothing_else(
    folder: Folder, closed: tuple[int, ...], loop: str
) -> None:
    done = folder.process("run", "job.py", "good.jsonl", "-o", "out.jsonl", "--loop", loop, preexec_fn=closing(*closed))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["inverse"] for line in folder.read("out.jsonl").splitlines()] == [0.5, 0.25]
    assert "Traceback" not in done.stderr


def test_a_refusal_that_nobody_hears_is_one_all_the_same(folder: Folder) -> None:
    before = folder.names()
    done = folder.process("run", "none.py", "good.jsonl", "-o", "out.jsonl", preexec_fn=closing(2))
    assert (done.returncode, folder.names()) == (2, before)


def test_records_on_a_closed_stdout_are_refused(folder: Folder) -> None:
    done = folder.process("run", "job.py", "good.jsonl", "-o", "-", preexec_fn=closing(1))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "stageflow: error: cannot write to stdout: it is closed",
        "  hint: write to a file",
    ]


def test_a_stderr_that_is_full_ends_nothing(folder: Folder) -> None:
    with open("/dev/full", "wb") as full:
        done = folder.process("run", "job.py", "good.jsonl", "-o", "out.jsonl", stderr=full)
    assert len(folder.read("out.jsonl").splitlines()) == 2
    assert done.returncode == 0


def test_an_output_that_is_full_exits_5(folder: Folder) -> None:
    told = folder.stageflow("run", "job.py", "good.jsonl", "-o", "/dev/full", "--progress", "off")
    assert told.code == 5
    assert (len(told.error), told.error[0], told.error[1]) == (
        3,
        "stageflow: note: output is not a regular file, resume is off",
        "stageflow: error: cannot write /dev/full: No space left on device",
    )


def exits(folder: Folder, body: str) -> Any:
    folder.write(
        "exits.py", 'import asyncio, sys\nfrom stageflow import Pipeline\npipeline = Pipeline("exits")\n' + body
    )
    return folder.process("run", "exits.py", "good.jsonl", "-o", "out.jsonl", "--progress", "off")


def test_an_exit_in_a_handler_is_not_the_commands(folder: Folder) -> None:
    done = exits(folder, "@pipeline.stage\nasync def s(x):\n    sys.exit(7)\n")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_an_exit_in_a_task_of_a_handler_is_not_the_commands(folder: Folder) -> None:
    body = "async def exits():\n    sys.exit(7)\n@pipeline.stage\nasync def s(x):\n    await asyncio.gather(exits())\n"
    assert exits(folder, body).returncode == 3


def test_an_exit_in_the_text_of_an_error_is_not_the_commands(folder: Folder) -> None:
    body = (
        "class Odd(Exception):\n    def __str__(self):\n        sys.exit(7)\n"
        "@pipeline.stage\nasync def s(x):\n    raise Odd\n"
    )
    assert exits(folder, body).returncode == 3
