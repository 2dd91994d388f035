"""A folder with a job and an input, and processes that are killed in the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from running import Running
from workbench import JOB, Folder


@pytest.fixture(autouse=True)
def _forget_what_failed() -> Iterator[None]:
    """Take back what pytest leaves in ``sys`` of an expected failure: the corpus of the shipped jobs reads ``sys``."""
    yield
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Folder:
    """With ``job.py``, and three records in ``in.jsonl`` of which the second fails at ``inverse``."""
    monkeypatch.chdir(tmp_path)
    for variable in ("STAGEFLOW_MAX_IN_FLIGHT", "STAGEFLOW_QUEUE_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    made = Folder(tmp_path, capsys)
    made.write("job.py", JOB)
    made.write("in.jsonl", '{"id": "a", "x": 1}\n{"id": "b", "x": 0}\n{"id": "c", "x": 2}\n')
    made.write("good.jsonl", '{"id": "a", "x": 1}\n{"id": "c", "x": 2}\n')
    return made


@pytest.fixture
def start(folder: Folder, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start the command and go on; it is killed in the end."""
    started: list[Running] = []
    files: list[IO[bytes]] = []

    def begin(*arguments: str, **options: Any) -> Running:
        stderr = tmp_path / f"stderr{len(started)}"
        files.append(open(stderr, "wb"))  # noqa: SIM115 - open while the process is
        process = subprocess.Popen(
            folder.command(*arguments),
            env=folder.environment(),
            cwd=folder.path,
            **{"stdout": subprocess.DEVNULL, "stderr": files[-1], **options},
        )
        started.append(Running(process, stderr))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()
        if running.process.stdout is not None:
            running.process.stdout.close()
    for file in files:
        file.close()
