"""What is refused before it starts: exit 2, two lines on stderr, and no file made."""

from __future__ import annotations

import os

import pytest
from workbench import Folder

HEAD = 'from stageflow import Pipeline\npipeline = Pipeline("job")\n'

JOBS = {
    "cycle": (
        "@pipeline.stage\nasync def a(b): ...\n@pipeline.stage\nasync def b(a): ...\n",
        "wrong.py:3: stages form a cycle: a -> b -> a",
    ),
    "unknown dependency": (
        'async def judge(record, results): ...\npipeline.add_stage("judge", judge, depends_on=["jugde"])\n',
        'wrong.py:4: stage "judge" depends on unknown stage "jugde" (did you mean "judge"?)',
    ),
    "two of one name": (
        '@pipeline.stage\nasync def a(x): ...\n@pipeline.stage(name="a")\nasync def b(x): ...\n',
        'wrong.py:5: two stages are named "a" (wrong.py:3, wrong.py:5)',
    ),
    "no stage": ("", 'wrong.py:2: pipeline "job" has no stages'),
    "reserved name": (
        "@pipeline.stage\nasync def results(x): ...\n",
        'wrong.py:3: a stage can\'t be named "results": the name is reserved',
    ),
    "star": (
        "@pipeline.stage\nasync def a(*args): ...\n",
        'wrong.py:3: stage "a" takes *args: a parameter\'s name is the edge, so each must be named',
    ),
    "setting out of range": (
        "\n@pipeline.stage(max_in_flight=0)\nasync def a(x): ...\n",
        'wrong.py:4: stage "a": max_in_flight must be a positive integer, not 0',
    ),
    "unknown setting": (
        "@pipeline.stage(max_in_flite=1)\nasync def a(x): ...\n",
        'wrong.py:3: stage "a" has no setting "max_in_flite"',
    ),
    "several": (
        'other = Pipeline("other")\n',
        "wrong.py has several pipelines: pipeline (wrong.py:2), other (wrong.py:3)",
    ),
    "none": ("del pipeline\n", "wrong.py has no pipeline"),
    "exit": ("import sys\nsys.exit(3)\n", "wrong.py:4: the job called sys.exit(3) while it was imported"),
    "missing import": ("import no_such_module_xyz\n", 'wrong.py:3: cannot import "no_such_module_xyz"'),
    "missing name": (
        "from os import no_such_name\n",
        "wrong.py:3: ImportError while the job was imported: cannot import name 'no_such_name' from 'os'",
    ),
    "raises": (
        'def f():\n    raise ValueError("one\\ntwo")\nf()\n',
        "wrong.py:4: ValueError while the job was imported: one two",
    ),
    "process stage that is no top-level function": (
        'pipeline.add_stage("a", lambda x: x, run="process")\n',
        'wrong.py:3: stage "a" runs in processes, and a function of it can\'t be found there',
    ),
    "nobody has the field": (
        "@pipeline.stage\nasync def a(y): ...\n",
        'stage "a" takes "y", which none of the first 3 records has',
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_wrong_job(folder: Folder, name: str) -> None:
    text, message = JOBS[name]
    folder.write("wrong.py", HEAD + text)
    before = folder.names()
    told = folder.stageflow("run", "wrong.py", "in.jsonl", "-o", "out.jsonl")
    assert told.code == 2
    assert len(told.error) == 2, told.err
    assert told.error[0].startswith(f"stageflow: error: {message}")
    assert told.error[1].startswith("  hint: ")
    assert told.out == ""
    assert folder.names() == before


@pytest.mark.parametrize("command", ["check", "graph"])
@pytest.mark.parametrize(
    "name", [name for name in JOBS if name not in ("nobody has the field",) and "process" not in name]
)
def test_a_wrong_job_is_refused_by_every_command(folder: Folder, name: str, command: str) -> None:
    text, message = JOBS[name]
    folder.write("wrong.py", HEAD + text)
    told = folder.stageflow(command, "wrong.py")
    assert (told.code, told.out, len(told.error)) == (2, "", 2)
    assert told.error[0].startswith(f"stageflow: error: {message}")


def test_a_syntax_error_shows_the_line(folder: Folder) -> None:
    folder.write("wrong.py", HEAD + "\ndef f(:\n    pass\n")
    before = folder.names()
    told = folder.stageflow("run", "wrong.py", "in.jsonl", "-o", "out.jsonl")
    assert told.code == 2
    assert told.error == ["stageflow: error: wrong.py:4: invalid syntax", "def f(:", "      ^", "  hint: mend the line"]
    assert folder.names() == before


REQUESTS = {
    "misspelt stage": (
        ["--max-in-flight", "doubl=3"],
        '--max-in-flight: unknown stage "doubl"; stages are: double, inverse',
    ),
    "zero": (["--max-in-flight", "double=0"], "--max-in-flight double=0: must be a positive integer"),
    "no number": (["--max-in-flight", "double=x"], "--max-in-flight double=x: must be a positive integer"),
    "twice": (["--max-in-flight", "double=1", "--max-in-flight", "double=2"], "--max-in-flight: double is given twice"),
    "auto": (["--max-in-flight", "auto"], '--max-in-flight: stage "double": max_in_flight="auto" is not available yet'),
    "queue": (["--queue-size", "0"], "--queue-size 0: must be a positive integer"),
    "no setting": (["--set", "double.speed=1"], '--set: stage "double" has no setting "speed"'),
    "no pair": (["--set", "double=1"], "--set double=1: expected STAGE.SETTING=VALUE"),
    "bad value": (["--set", "double.on_error=maybe"], '--set: stage "double": on_error must be "dead_letter", "skip"'),
    "unknown parameter": (["-p", "facter=1"], 'unknown parameter "facter"'),
    "wrong type": (["-p", "factor=x"], "-p factor=x: must be a whole number, as its default 2 is"),
    "no value": (["-p", "factor"], "-p factor: expected NAME=VALUE"),
    "limit": (["--limit", "0"], "Invalid value for '--limit'"),
    "order": (["--order", "random"], "Invalid value for '--order'"),
    "option": (["--max-in-flite", "3"], "No such option"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_wrong_request(folder: Folder, name: str) -> None:
    arguments, message = REQUESTS[name]
    before = folder.names()
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", *arguments)
    assert told.code == 2
    assert len(told.error) == 2, told.err
    assert told.error[0].startswith(f"stageflow: error: {message}")
    assert told.error[1].startswith("  hint: ")
    assert folder.names() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "job.py", "none.jsonl", "-o", "out.jsonl"], "cannot read none.jsonl: No such file or directory"),
        (["run", "job.py", ".", "-o", "out.jsonl"], "cannot read .: Is a directory"),
        (["run", "job.py", "in.jsonl", "-o", "none/out.jsonl"], "cannot write to none: No such file or directory"),
        (["run", "job.py", "in.jsonl", "-o", "."], "cannot write to .: Is a directory"),
        (["run", "job.py", "in.jsonl"], "Missing option '-o' / '--output'"),
        (["run", "jab.py", "in.jsonl", "-o", "out.jsonl"], "cannot read job jab.py: no such file"),
        (["run", "job.py:other", "in.jsonl", "-o", "out.jsonl"], 'job.py has no pipeline "other"'),
        (["run", "no_such_module_xyz:p", "in.jsonl", "-o", "out.jsonl"], 'there is no module "no_such_module_xyz"'),
        (["run", "job.py", "in.jsonl", "-o", "-", "--summary", "json"], "--summary json and -o - both want"),
        (["ran", "job.py"], "No such command 'ran'"),
        (["check", "job.py", "none.jsonl"], "cannot read none.jsonl: No such file or directory"),
        (["graph", "job.py", "--format", "png"], "Invalid value for '--format'"),
        (["bench", "job.py", "none.jsonl", "--yes"], "cannot read none.jsonl: No such file or directory"),
        (["bench", "job.py", "in.jsonl", "--yes", "--sweep", "double"], "double: expected STAGE=N,N,..."),
        (["bench", "job.py", "in.jsonl", "--yes", "--sweep", "doubel=1"], '--sweep: unknown stage "doubel"'),
    ],
)
def test_what_is_not_there_or_not_known(folder: Folder, arguments: list[str], message: str) -> None:
    before = folder.names()
    told = folder.stageflow(*arguments)
    assert told.code == 2
    assert len(told.error) == 2, told.err
    assert told.error[0].startswith(f"stageflow: error: {message}")
    assert told.error[1].startswith("  hint: ")
    assert folder.names() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [('[{"x": 1}]', "JSON array"), ('{"x": 1}\n'.encode("utf-16"), "UTF-16")],
)
def test_an_input_that_is_something_else(folder: Folder, content: str | bytes, message: str) -> None:
    (folder.path / "odd.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = folder.names()
    told = folder.stageflow("run", "job.py", "odd.jsonl", "-o", "out.jsonl")
    assert (told.code, len(told.error)) == (2, 2)
    assert message in told.error[0]
    assert folder.names() == before


def test_a_job_that_prints_and_exits_in_a_process_of_its_own(folder: Folder) -> None:
    folder.write("wrong.py", "import sys\nsys.exit(0)\n")
    before = folder.names()
    done = folder.process("run", "wrong.py", "in.jsonl", "-o", "out.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.splitlines()[0] == "stageflow: error: wrong.py:2: the job called sys.exit(0) while it was imported"
    )
    assert folder.names() == before


RESOURCE = """
@pipeline.resource
def client():
    raise OSError("no such server")

@pipeline.stage
async def a(x, client): ...
"""


def test_a_resource_that_can_not_be_opened(folder: Folder) -> None:
    folder.write("wrong.py", HEAD + RESOURCE)
    told = folder.stageflow("run", "wrong.py", "in.jsonl", "-o", "out.jsonl")
    assert told.code == 2
    assert told.error == [
        'stageflow: error: wrong.py:4: resource "client" could not be opened: OSError: no such server',
        "  hint: nothing was read and no output was made",
    ]


def test_a_resource_that_can_not_be_opened_leaves_no_file(folder: Folder) -> None:
    folder.write("wrong.py", HEAD + RESOURCE)
    before = folder.names()
    folder.stageflow("run", "wrong.py", "in.jsonl", "-o", "out.jsonl")
    assert folder.names() == before


# The input as output


def link(kind: str) -> str:
    if kind == "symbolic link":
        os.symlink("in.jsonl", "link.jsonl")
    elif kind == "hard link":
        os.link("in.jsonl", "link.jsonl")
    return {"name": "in.jsonl", "other name": "./in.jsonl"}.get(kind, "link.jsonl")


KINDS = ["name", "other name", "symbolic link", "hard link"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_the_input_is_refused(folder: Folder, kind: str) -> None:
    output, text = link(kind), folder.read("in.jsonl")
    before = folder.names()
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", output)
    assert (told.code, len(told.error)) == (2, 2)
    assert (folder.names(), folder.read("in.jsonl")) == (before, text)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_the_input_is_called_so(folder: Folder, kind: str) -> None:
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", link(kind))
    assert told.error[0] == "stageflow: error: output and input are the same file"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["-o", "--dead"])
def test_fresh_does_not_take_the_input_away(folder: Folder, kind: str, option: str) -> None:
    output, before = link(kind), folder.names()
    paths = ["-o", output] if option == "-o" else ["-o", "out.jsonl", "--dead", output]
    told = folder.stageflow("run", "job.py", "in.jsonl", *paths, "--fresh")
    assert (told.code, folder.names()) == (2, before)


def test_results_and_dead_letters_in_one_file_are_refused(folder: Folder) -> None:
    before = folder.names()
    told = folder.stageflow("run", "job.py", "in.jsonl", "-o", "out.jsonl", "--dead", "out.jsonl")
    assert (told.code, folder.names()) == (2, before)
