"""Several inputs on the command line: one account, one resume, and the file of each record in what is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from running import Running
from workbench import Folder

END = ("-o", "out.jsonl", "--progress", "off")


def results(folder: Folder) -> list[float]:
    return [json.loads(line)["inverse"] for line in folder.read("out.jsonl").splitlines()]


def letters(folder: Folder) -> list[tuple[str, int, int]]:
    found = map(json.loads, folder.read("out.jsonl.dead.jsonl").splitlines())
    return sorted((letter["path"], letter["line"], letter["index"]) for letter in found)


@pytest.fixture
def many(folder: Folder) -> Folder:
    folder.write("data/1.jsonl", '{"x": 1}\n\n{"x": 0}\n')
    folder.write("data/2.jsonl", '{"x": 2}\n{"x": \n')
    folder.write("last.jsonl", '{"x": 0}\n{"x": 4}\n')
    return folder


def test_records_of_all_files_and_letters_with_their_own_places(many: Folder) -> None:
    told = many.stageflow("run", "job.py", "data/*.jsonl", "last.jsonl", *END)
    assert told.code == 3, told.err
    assert results(many) == [0.5, 0.25, 0.125]
    assert letters(many) == [("data/1.jsonl", 3, 2), ("data/2.jsonl", 2, 4), ("last.jsonl", 1, 5)]
    again = many.stageflow("run", "job.py", "data/*.jsonl", "last.jsonl", *END)
    assert "already complete: 6 inputs" in again.err


@pytest.mark.parametrize("processes", [1, 2])
def test_more_files_go_on_and_letters_tried_again_keep_their_places(many: Folder, processes: int) -> None:
    shared = (*END, "--processes", str(processes))
    told = many.stageflow("run", "job.py", "data/1.jsonl", *shared)
    assert told.code == 3, told.err
    told = many.stageflow("run", "job.py", "data/1.jsonl", "data/2.jsonl", *shared)
    assert "resuming: 2 records done before" in told.err
    many.write("data/3.jsonl", '{"x": 0}\n')
    told = many.stageflow("run", "job.py", "data/[12].jsonl", "data/3.jsonl", *shared)
    assert told.code == 3, told.err
    told = many.stageflow("run", "job.py", "data/[12].jsonl", "data/3.jsonl", *shared, "--retry-failed")
    assert told.code == 3, told.err
    assert results(many) == [0.5, 0.25]
    assert letters(many) == [("data/1.jsonl", 3, 2), ("data/2.jsonl", 2, 4), ("data/3.jsonl", 1, 5)]


def test_an_earlier_file_that_changed_is_named(many: Folder) -> None:
    many.stageflow("run", "job.py", "data/*.jsonl", "last.jsonl", *END)
    many.write("data/2.jsonl", '{"x": 3}\n{"x": \n')
    told = many.stageflow("run", "job.py", "data/*.jsonl", "last.jsonl", *END)
    assert told.code == 7
    assert told.error[0] == ("stageflow: error: data/2.jsonl is not what input 2 was (first difference in lines 1-2)")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (["data/1*.json"], ["no file matches data/1*.json", 'did you mean "data/1.jsonl"?']),
        (["data/1.jsonl", "data/../data/1.jsonl"], ["data/../data/1.jsonl is given twice", "each file is read once"]),
        (["data/1.jsonl", "-"], ["standard input can be read only once, and can't be one of several inputs", "write"]),
        (["data/1.jsonl", "gone.jsonl"], ["cannot read gone.jsonl: No such file or directory", ""]),
        (["data/1.jsonl", "out.jsonl"], ["output and input are the same file", "out.jsonl"]),
    ],
)
def test_wrong_inputs_are_refused(many: Folder, inputs: list[str], told: list[str]) -> None:
    if "out.jsonl" in inputs:
        many.write("out.jsonl", '{"x": 1}\n')
    before = many.names()
    refused = many.stageflow("run", "job.py", *inputs, *END)
    assert refused.code == 2
    assert refused.error[0] == f"stageflow: error: {told[0]}"
    assert refused.error[1].startswith(f"  hint: {told[1]}")
    assert many.names() == before


def test_on_bad_input_stop_names_the_file(many: Folder) -> None:
    told = many.stageflow("run", "job.py", "data/*.jsonl", *END, "--on-bad-input", "stop")
    assert told.code == 4
    assert "data/2.jsonl:2: InvalidJSON" in told.err


def test_check_looks_into_all_of_them(many: Folder) -> None:
    told = many.stageflow("check", "job.py", "data/*.jsonl", "last.jsonl")
    assert (told.code, told.err) == (0, "")
    assert "input data/1.jsonl and 2 more: each required field" in told.out
    many.write("data/3.jsonl", "no\n" * 10)
    told = many.stageflow("check", "job.py", "data/*.jsonl")
    assert told.code == 2
    assert told.error[0].startswith("stageflow: error: data/3.jsonl is not JSON lines")


def test_a_run_over_many_files_is_killed_and_goes_on(many: Folder, start: Callable[..., Running]) -> None:
    many.write(
        "slow.py",
        many.read("job.py").replace("    return 1", "    import asyncio\n    await asyncio.sleep(0.001)\n    return 1"),
    )
    for number in range(5):
        many.write(f"big/{number}.jsonl", "".join(f'{{"x": {number * 1000 + n + 1}}}\n' for n in range(1000)))
    command = ("run", "slow.py", "big/*.jsonl", *END, "--max-in-flight", "4")
    running = start(*command)
    running.until(
        lambda: (many.path / "out.jsonl.partial").exists() and many.read("out.jsonl.partial").count("\n") > 1500
    )
    running.process.kill()
    running.process.wait()
    told = many.stageflow(*command)
    assert told.code == 0, told.err
    assert "resuming: " in told.err
    assert results(many) == [1 / (2 * (n + 1)) for n in range(5000)]
    sys.modules.pop("slow", None)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_forms_may_be_mixed_and_a_row_knows_its_line(folder: Folder, processes: str) -> None:
    folder.write("job.py", folder.read("job.py").replace("x * params", "int(x) * params"))
    folder.write("a.csv", 'x,y\n1,"two\nlines"\n2\n4,d\n')
    folder.write("b.jsonl", '{"x": 8}\n{"x": \n')
    command = ("run", "job.py", "a.csv", "b.jsonl", *END, "--processes", processes)
    told = folder.process(*command)
    assert told.returncode == 3, told.stderr
    assert results(folder) == [1 / 2, 1 / 8, 1 / 16]
    assert letters(folder) == [("a.csv", 4, 1), ("b.jsonl", 2, 4)]


def test_on_bad_input_stop_names_a_table(folder: Folder) -> None:
    folder.write("a.csv", "x\n1\n2,3\n")
    told = folder.process("run", "job.py", "a.csv", *END, "--on-bad-input", "stop")
    assert told.returncode == 4
    assert "a.csv: WrongFields: 2 values, the header has 1 (record 2, line 3)" in told.stderr
