"""What is loaded when: each module costs at every start, and a command is started far more often than a run is long.

Modules rather than times, because those are the same on every machine; `benchmarks/` has the times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Loaded by what a run, or one kind of run, needs: half a millisecond and more each.
RARE = {"calendar", "email", "http", "importlib.metadata", "tomllib"}
RUNNING = {"asyncio", "concurrent.futures", "logging", "multiprocessing", "pickle", "random", "ssl", "subprocess"}
LIBRARIES = {"aiostream", "orjson", "ray", "tqdm", "uvloop"}
FRONT = {
    f"stageflow.{name}"
    for name in (
        "adapters",
        "chaos",
        "cluster",
        "command",
        "engine",
        "entry",
        "ledger",
        "loader",
        "runner",
        "sweep",
        "testing",
    )
}
ELSEWHERE = {"ray", "stageflow.cluster", "stageflow.replicas", "stageflow.stores"}
"""What only runs past one process need."""

JOB = """
from stageflow import Pipeline
pipeline = Pipeline()

@pipeline.stage
async def same(x):
    return x
"""


def loaded_by(statement: str, folder: Path) -> set[str]:
    """The modules that a statement loads in an interpreter of its own; not those which that had at its start."""
    code = f"""
import sys
before = set(sys.modules)
{statement}
loaded = sorted(set(sys.modules) - before)
import json
with open("loaded.json", "w") as file:
    json.dump(loaded, file)
"""
    # Without secrets in the environment, which are looked for in every way in which a text may spell them.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads((folder / "loaded.json").read_text()))


def command(*words: str) -> str:
    """The statement that runs the command line as its entry point does."""
    return f"from stageflow.cli import invoke; assert invoke({words!r}) == 0"


def test_a_plain_import_loads_what_a_job_is_written_with(tmp_path: Path) -> None:
    loaded = loaded_by("import stageflow", tmp_path)
    assert "stageflow.pipeline" in loaded
    assert loaded & {"click", "datetime", "difflib", "json", "urllib.parse"} == set()
    assert loaded & (RARE | RUNNING | LIBRARIES | FRONT) == set()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_loads_nothing_of_what_a_run_needs(tmp_path: Path, words: list[str]) -> None:
    loaded = loaded_by(command(*words), tmp_path)
    assert "click" in loaded
    assert loaded & (RARE | RUNNING | LIBRARIES | FRONT) == set()


def test_a_check_loads_no_engine(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    loaded = loaded_by(command("check", "job.py"), tmp_path)
    assert "stageflow.report.listing" in loaded
    assert loaded & (RARE | RUNNING | LIBRARIES | FRONT - {"stageflow.loader"}) == set()


def test_a_run_loads_nothing_for_what_it_does_not_meet(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "in.jsonl").write_text('{"x": 1}\n')
    loaded = loaded_by(command("run", "job.py", "in.jsonl", "-o", "out.jsonl"), tmp_path)
    assert "stageflow.ledger" in loaded
    assert (
        loaded & (RARE | ELSEWHERE | {"aiostream", "stageflow.chaos", "stageflow.sweep", "stageflow.testing"}) == set()
    )
