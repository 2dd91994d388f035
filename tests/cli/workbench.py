"""The command, in this process and in one of its own, in a folder with a job and an input."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from stageflow.cli import invoke

ROOT = Path(__file__).resolve().parents[2]

JOB = """
from stageflow import Pipeline

pipeline = Pipeline("job", key="id", params={"factor": 2})

@pipeline.stage
async def double(x: int, params):
    return x * params.factor

@pipeline.stage
async def inverse(double: int):
    return 1 / double
"""


@dataclass
class Told:
    """What a command exited with and said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> list[str]:
        """The lines of stderr, of which a refusal has exactly two."""
        return self.err.splitlines()


class Folder:
    """A working directory; paths are relative to it."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capture = capture

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_text(dedent(text).lstrip("\n"))

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name != "__pycache__")

    def stageflow(self, *arguments: str) -> Told:
        """The command in this process."""
        self._capture.readouterr()
        code = invoke(arguments)
        out, err = self._capture.readouterr()
        return Told(code, out, err)

    def process(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command in a process of its own, waited for."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.path,
            timeout=60,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "stageflow", *arguments]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
