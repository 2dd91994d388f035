"""The command, in this process and in one of its own, in a folder with a job and an input."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from stageflow.cli import invoke

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0
"""How long a condition may take to come true. It is met in a fraction of that, or never."""

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


class Running:
    """A run in a process of its own, while it goes."""

    def __init__(self, folder: Folder, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self._folder = folder
        self.process = process
        self._stderr = stderr

    @property
    def err(self) -> str:
        return self._stderr.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the process does."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.err}"
            assert time.monotonic() < deadline, f"it did not come to that:\n{self.err}"
            time.sleep(0.005)

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.err)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self, seconds: float = SECONDS) -> int:
        """The exit code, which comes within so many seconds."""
        return self.process.wait(seconds)
