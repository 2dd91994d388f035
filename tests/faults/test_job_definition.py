"""Jobs that are wrong, faults 74 to 80, by the numbers in the names of the tests.

Each is refused before any input is read, with exit code 2, two lines that name the place, no traceback of stageflow's,
and without a file beside the job.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounts import Finished, Folder

from stageflow import JobLoadError, loader

HEAD = 'from stageflow import Pipeline\n\npipeline = Pipeline("job")\n'


@pytest.fixture
def refused(folder: Folder) -> Callable[..., Finished]:
    """Run a job that is refused: the promises that hold for all of them."""

    def run(text: str, *options: str) -> Finished:
        folder.job(text)
        (folder.path / "in.jsonl").unlink()  # if it were looked at first, that would be what is told
        before = {path.name for path in folder.path.iterdir()}
        done = folder.run(*options, PYTHONDONTWRITEBYTECODE="1")
        assert (done.code, done.out) == (2, ""), done.err
        assert done.err.startswith("stageflow: error: ")
        assert re.search("^  hint: .", done.err.splitlines()[-1])
        assert "Traceback" not in done.err
        assert "stageflow/" not in done.err, "the place is in the user's own files"
        assert {path.name for path in folder.path.iterdir()} == before
        return done

    return run


def stage(name: str, *needs: str) -> str:
    return f"\n@pipeline.stage\nasync def {name}({', '.join(needs)}): ...\n"


Refused = Callable[..., Finished]


@pytest.mark.parametrize(
    ("wrong", "lines"),
    [
        ("def f(:\n    pass\n", ["job.py:4: invalid syntax", "def f(:", "      ^"]),
        ("x = (1,\n", ["job.py:4: '(' was never closed", "x = (1,", "    ^"]),
        ("if True:\nx = 1\n", ["job.py:5: expected an indented block after 'if' statement on line 4", "x = 1", "^"]),
    ],
)
def test_row_74_a_syntax_error_is_shown_with_its_line_and_a_caret(
    refused: Refused, wrong: str, lines: list[str]
) -> None:
    told = refused(HEAD + wrong).err.splitlines()
    assert told == [f"stageflow: error: {lines[0]}", *lines[1:], "  hint: mend the line"]


def test_row_74_a_syntax_error_in_a_module_of_the_job_is_told_there(refused: Refused, folder: Folder) -> None:
    (folder.path / "prompts.py").write_text("\n\nPROMPT = 'a\n")
    told = refused("import prompts\n" + HEAD).err.splitlines()
    assert told[0].startswith("stageflow: error: prompts.py:3: unterminated string literal")
    assert told[1] == "PROMPT = 'a"


def test_row_74_a_file_that_is_no_text_is_refused_in_its_name(refused: Refused, folder: Folder) -> None:
    (folder.path / "prompts.py").write_bytes(b"x = '\xff'\n")
    told = refused("import prompts\n" + HEAD).err.splitlines()
    assert told[0].startswith("stageflow: error: prompts.py")


def test_row_75_an_import_that_fails_names_the_module_and_this_environment(refused: Refused) -> None:
    told = refused("# a job\n\nimport httpxx\n" + HEAD).err.splitlines()
    assert told[0] == 'stageflow: error: job.py:3: cannot import "httpxx"'
    assert "is it installed in this environment?" in told[1]
    assert "python" in told[1]


def test_row_75_an_import_in_a_module_of_the_job_is_told_there(refused: Refused, folder: Folder) -> None:
    (folder.path / "clients.py").write_text("\nimport httpxx\n")
    told = refused("import clients\n" + HEAD).err.splitlines()
    assert told[0] == 'stageflow: error: clients.py:2: cannot import "httpxx"'


def test_row_76_a_cycle_is_named_in_full(refused: Refused) -> None:
    told = refused(HEAD + stage("a", "c") + stage("b", "a") + stage("c", "b")).err.splitlines()
    found = re.fullmatch(
        r"stageflow: error: job\.py:(\d+): stages form a cycle: ([abc]) -> ([abc]) -> ([abc]) -> (\2)", told[0]
    )
    assert found, told
    assert {*found.groups()[1:4]} == {"a", "b", "c"}
    assert int(found[1]) in (5, 8, 11)


def test_row_76_a_stage_that_takes_itself_is_a_cycle(refused: Refused) -> None:
    assert "job.py:5: stages form a cycle: a -> a\n" in refused(HEAD + stage("a", "a")).err


def test_row_77_an_unknown_dependency_is_told_with_the_nearest_name(refused: Refused) -> None:
    add = 'pipeline.add_stage("judge", lambda record: 1, depends_on=["generat"])\n'
    told = refused(HEAD + stage("generate", "x") + add).err
    assert (
        'error: job.py:7: stage "judge" depends on unknown stage "generat" (did you mean "generate"?)\n'
        "  hint: stages are: generate, judge\n"
    ) in told


def test_row_77_two_stages_of_one_name_are_told_with_both_lines(refused: Refused) -> None:
    told = refused(HEAD + stage("generate", "x") + stage("generate", "y")).err
    assert 'error: job.py:8: two stages are named "generate" (job.py:5, job.py:8)\n' in told


NOTHING = {
    "no stage": (HEAD, 'job.py:3: pipeline "job" has no stages'),
    "no pipeline": ("x = 1\n", "job.py has no pipeline"),
    "an empty file": ("", "job.py has no pipeline"),
    "several": (
        HEAD + 'other = Pipeline("other")\n',
        "job.py has several pipelines: pipeline (job.py:3), other (job.py:4)",
    ),
    **{
        f"a stage named {name}": (
            HEAD + stage(name, "x"),
            f'job.py:5: a stage can\'t be named "{name}": the name is reserved',
        )
        for name in ("record", "results", "params", "call", "ctx")
    },
    "*args": (HEAD + stage("a", "*args"), 'job.py:5: stage "a" takes *args: a parameter\'s name is the edge'),
    "**kwargs": (HEAD + stage("a", "**kwargs"), 'job.py:5: stage "a" takes **kwargs: a parameter\'s name is the edge'),
}


@pytest.mark.parametrize("case", NOTHING)
def test_row_78_what_makes_no_graph_is_named_with_its_line(refused: Refused, case: str) -> None:
    text, message = NOTHING[case]
    assert refused(text).err.startswith(f"stageflow: error: {message}")


AMOUNTS = {
    "an unknown stage": (["gen=64"], '--max-in-flight: unknown stage "gen"; stages are: generate, judge'),
    "none": (["generate=0"], "--max-in-flight generate=0: must be a positive integer"),
    "none for all": (["0"], "--max-in-flight 0: must be a positive integer"),
    "fewer than none": (["generate=-1"], "--max-in-flight generate=-1: must be a positive integer"),
    "no number": (["generate=x"], "--max-in-flight generate=x: must be a positive integer"),
    "no whole number": (["generate=1.5"], "--max-in-flight generate=1.5: must be a positive integer"),
    "twice": (["generate=1", "generate=2"], "--max-in-flight: generate is given twice"),
}


@pytest.mark.parametrize("case", AMOUNTS)
def test_row_79_calls_at_once_that_can_not_be(refused: Refused, case: str) -> None:
    amounts, message = AMOUNTS[case]
    options = [part for amount in amounts for part in ("--max-in-flight", amount)]
    told = refused(HEAD + stage("generate", "x") + stage("judge", "generate"), *options).err
    assert told.startswith(f"stageflow: error: {message}")


# 80: what the top level of a job does


@pytest.mark.parametrize("code", ["", "0", "3", "'no key'"])
def test_row_80_a_job_that_exits_while_it_is_imported_is_refused(refused: Refused, code: str) -> None:
    told = refused(f"import sys\n\nsys.exit({code})\n" + HEAD).err
    shown = code or "None"
    assert told.startswith(f"stageflow: error: job.py:3: the job called sys.exit({shown}) while it was imported\n")
    assert '__name__ == "__main__"' in told


THREADS = """
import threading
waiting = threading.Event()
threading.Thread(target=waiting.wait, daemon=True).start()
raise ValueError("one thread is started")
"""


def test_row_80_a_job_that_started_threads_is_refused_all_the_same(refused: Refused) -> None:
    told = refused(THREADS).err
    assert told.startswith("stageflow: error: job.py:5: ValueError while the job was imported: one thread is started\n")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loader, "IMPORT_SECONDS", 0.01)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "stageflow-import"]


class Said:
    """Standard error, on which somebody waits for a line."""

    def __init__(self) -> None:
        self.text = ""
        self.line = threading.Event()

    def write(self, text: str) -> int:
        self.text += text
        if "\n" in text:
            self.line.set()
        return len(text)

    def flush(self) -> None: ...


SLOW_JOB = """
import sys
from stageflow import Pipeline

assert sys.stderr.line.wait(60), "nothing was said"
p = Pipeline("slow")
"""


@pytest.mark.usefixtures("seconds")
def test_row_80_an_import_that_takes_long_is_told_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_JOB)
    said = Said()
    monkeypatch.setattr("sys.stderr", said)
    monkeypatch.setattr("sys.path", ["somewhere"])
    job = loader.load(str(tmp_path / "slow.py"))
    assert job.pipeline.name == "slow"
    assert (
        said.text == "stageflow: slow.py is still being imported after 0.01 s; its top level runs before any record\n"
    )


@pytest.mark.usefixtures("seconds")
def test_row_80_an_import_that_fails_is_watched_no_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.py").write_text("raise SystemExit\n")
    with pytest.raises(JobLoadError):
        loader.load(str(tmp_path / "wrong.py"))


def test_row_80_an_import_that_takes_no_time_is_not_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loader.IMPORT_SECONDS == 30.0
    (tmp_path / "fast.py").write_text(HEAD)
    loader.load(str(tmp_path / "fast.py"))
    assert capsys.readouterr().err == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "stageflow-import"]
