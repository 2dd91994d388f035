"""One run in several processes, held against the same run in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

JOB = """
import os
from stageflow import Pipeline

pipeline = Pipeline("shared", key="id")

@pipeline.stage(max_in_flight=4)
async def loud(text: str) -> str:
    if text == "deadly":
        os.kill(os.getpid(), 9)
    return text.upper()

@pipeline.stage(max_in_flight=4)
async def length(loud, id) -> int:
    if id % 100 == 7:
        raise ValueError("no sevens")
    return len(loud)
"""


def run(folder: Path, output: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["run", "job.py", "in.jsonl", "-o", output, "--progress", "off", *more]
    return subprocess.run(
        [sys.executable, "-m", "stageflow", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def fill(folder: Path, texts: list[str]) -> None:
    (folder / "job.py").write_text(JOB)
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    )


def test_the_output_is_that_of_one_process(tmp_path: Path) -> None:
    fill(tmp_path, [f"text {n}" for n in range(2000)])
    alone, shared = run(tmp_path, "alone.jsonl"), run(tmp_path, "shared.jsonl", "--processes", "3")
    assert (alone.returncode, shared.returncode) == (3, 3), shared.stderr
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "shared.jsonl").read_bytes()
    assert "2,000 read = 1,980 written + 0 dropped + 20 dead" in shared.stderr


def test_one_record_that_kills_its_process_is_one_dead_letter(tmp_path: Path) -> None:
    fill(tmp_path, ["deadly" if n == 123 else f"text {n}" for n in range(600)])
    told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert told.returncode == 3, told.stderr
    letters = [json.loads(line) for line in (tmp_path / "out.jsonl.dead.jsonl").read_text().splitlines()]
    assert {letter["index"] for letter in letters} == {7, 107, 123, 207, 307, 407, 507}
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 593
