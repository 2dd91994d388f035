"""The benchmark of several processes gets the right answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import processes
import workload


def test_its_answers_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert processes.main(["--tiny", "--loop", "asyncio"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[:2] for line in told.splitlines() if line.startswith(("bare", "stageflow"))] == [
        ["bare", "1"],
        ["bare", "2"],
        ["stageflow", "1"],
        ["stageflow", "2"],
    ]


def test_a_wrong_answer_is_caught(tmp_path: Path) -> None:
    shop = processes.Workshop(tmp_path, workload.Settings("tiny", "asyncio"), 20)
    shop.bare(1)
    job = (tmp_path / "job.py").read_text()
    (tmp_path / "job.py").write_text(job.replace("found * 31", "found * 37"))
    with pytest.raises(workload.WrongAnswer, match="differ"):
        shop.ours(2)
