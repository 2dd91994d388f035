"""Runs in several processes, for tests that hold them against the same run in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 30.0
"""By when something has happened that a test waits for."""


def fill(folder: Path, job: str, texts: Iterable[str]) -> None:
    """Write a job, and an input with one record for each text."""
    (folder / "job.py").write_text(textwrap.dedent(job))
    lines = (json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    (folder / "in.jsonl").write_text("".join(lines))


def begin(folder: Path, output: str, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a run in a process group of its own."""
    words = ["run", "job.py", "in.jsonl", "-o", output, "--progress", "off", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "stageflow", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Its exit code, what it wrote and what it told."""
    try:
        out, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, told


def run(folder: Path, output: str, *more: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    return ended(begin(folder, output, *more, env=env))


def until(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until there is something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
    return found


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it has started and that have not ended."""
    try:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return []
    return [pid for pid in map(int, found) if is_there(pid)]


def is_there(pid: int) -> bool:
    """Whether it has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def written(folder: Path, output: str) -> int:
    """How many lines of an unfinished output there are."""
    try:
        return (folder / f"{output}.partial").read_bytes().count(b"\n")
    except OSError:
        return 0


def letters(folder: Path, output: str) -> list[dict[str, Any]]:
    """The dead letters, without what differs from run to run, in the order of the input."""
    path = folder / f"{output}.dead.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for letter in found:
        del letter["at"], letter["error"]["trace"]
    return sorted(found, key=lambda letter: (letter["index"], str(letter.get("path"))))
