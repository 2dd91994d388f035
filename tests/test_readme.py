"""The README is true: its commands are CI's, its job runs, its options exist."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from stageflow.cli import cli, invoke

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """The code block that follows a comment of the README."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block {mark}"
    return found[1]


def commands() -> list[str]:
    return re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    run_job, run_tests = commands()
    assert run_job.startswith("python3 -m venv .venv && ")
    assert run_tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_job_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(block("job.py"), encoding="utf-8")
    Path("queries.jsonl").write_text("".join(json.dumps({"id": n, "query": f"q{n}"}) + "\n" for n in range(20)))
    assert invoke(["run", "job.py", "queries.jsonl", "-o", "out.jsonl", "--max-in-flight", "generate=128"]) == 0
    answers = [json.loads(line)["generate"] for line in Path("out.jsonl").read_text().splitlines()]
    assert answers == [f"small answers 'q{n}' from 1 passages (known)" for n in range(20)]
    assert invoke(["check", "job.py", "queries.jsonl"]) == 0


def test_the_readme_names_every_setting_and_every_shipped_job() -> None:
    from stageflow.stage import _CHECKS

    for setting in _CHECKS:
        assert f"| `{setting}` |" in README
    for job in (ROOT / "jobs").glob("*.py"):
        assert f"`jobs/{job.name}`" in README


@pytest.mark.parametrize("command", ["run", "status", "check", "graph", "bench", "chaos", "testserver", "merge"])
def test_every_option_has_a_help_text(command: str) -> None:
    for parameter in cli.commands[command].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{command} {parameter.name}"


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))))
def test_every_option_of_the_readme_exists(option: str) -> None:
    ours = {text for command in cli.commands.values() for p in command.params for text in p.opts}
    other_programs = {"--no-deps", "--quick", "--array", "--working-dir", "--wrap"}
    assert option in ours | other_programs


def test_help_runs() -> None:
    assert CliRunner().invoke(cli, ["--help"]).exit_code == 0


def test_the_script_of_the_readme_is_one_and_every_fault_is_named() -> None:
    from stageflow.testing.faults import KINDS
    from stageflow.testing.script import script_of

    assert len(script_of(tomllib.loads(block("script.toml"))).faults) == 4
    table = README[README.index("| `do` |") :].splitlines()
    for name, options in KINDS.items():
        (row,) = [line for line in table if line.startswith("| ") and f"`{name}`" in line.split(" | ")[0]]
        assert all(f"`{option}`" in row for option in options), name
