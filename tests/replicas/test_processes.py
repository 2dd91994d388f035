"""One run in several processes, held against the same run in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path

import pytest
from fleets import begin, ended, until

from stageflow.loader import load

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
    [killer] = [letter for letter in letters if letter["index"] == 123]
    assert (killer["stage"], killer["error"]["type"], killer["retryable"]) == (None, "WorkerDied", True)
    assert killer["record"] == {"id": 123, "text": "deadly"}


def test_a_record_that_killed_its_process_is_tried_again_like_any_other(tmp_path: Path) -> None:
    fill(tmp_path, ["deadly" if n == 123 else f"text {n}" for n in range(300)])
    assert run(tmp_path, "out.jsonl", "--processes", "2", "--on-bad-input", "stop").returncode == 3
    again = run(tmp_path, "out.jsonl", "--processes", "2", "--retry-failed")
    assert again.returncode == 3, again.stderr
    assert "300 read = 296 written + 0 dropped + 4 dead" in again.stderr
    (tmp_path / "job.py").write_text(JOB.replace('"deadly"', '"harmless"').replace("== 7", "== -7"))
    mended = run(tmp_path, "out.jsonl", "--processes", "2", "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 300


@pytest.mark.real_clock
@pytest.mark.parametrize("processes", [2, 4])
def test_a_rate_limit_is_that_of_the_run(tmp_path: Path, processes: int) -> None:
    (tmp_path / "rate_job.py").write_text(
        "import time\nfrom stageflow import Pipeline, RateLimit\npipeline = Pipeline('rate')\n"
        "@pipeline.stage(rate_limit=RateLimit(per_second=100))\nasync def called(record): return time.monotonic()\n"
    )
    found: list[dict[str, float]] = []
    report = load(str(tmp_path / "rate_job.py")).pipeline.run_sync(range(250), found, processes=processes)
    assert report.written == 250
    times = sorted(each["called"] for each in found)
    seconds = [bisect_left(times, start + 1.0) - place for place, start in enumerate(times)]
    assert max(seconds) <= 200  # the limit and its burst
    assert bisect_left(times, times[0] + 0.5) >= 100  # the burst is there from the beginning
    assert times[-1] - times[0] < 3.0  # 1.5 s in one process, on a machine that has nothing else to do


def test_all_processes_have_their_part_of_a_short_input(tmp_path: Path) -> None:
    (tmp_path / "part_job.py").write_text(
        "import asyncio, os\nfrom stageflow import Pipeline\npipeline = Pipeline('part')\n"
        "@pipeline.stage(max_in_flight=8)\n"
        "async def slow(id):\n    await asyncio.sleep(0.02)\n    return os.getpid()\n"
    )
    fill(tmp_path, [""] * 120)
    pipeline = load(str(tmp_path / "part_job.py")).pipeline
    found: list[dict[str, int]] = []
    pipeline.run_sync(str(tmp_path / "in.jsonl"), found, processes=2)
    pids = [each["slow"] for each in found]
    assert len(set(pids)) == 2
    assert min(pids.count(pid) for pid in set(pids)) > 30


def test_it_is_told_how_many_records_are_in_flight_when_the_run_is_stopped(tmp_path: Path) -> None:
    fill(tmp_path, [f"text {n}" for n in range(600)])
    (tmp_path / "job.py").write_text(
        "import asyncio\nfrom pathlib import Path\nfrom stageflow import Pipeline\npipeline = Pipeline('flight')\n"
        "@pipeline.stage(max_in_flight=8)\n"
        "async def held(id):\n    Path(f'call {id}').touch()\n"
        "    while not Path('go').exists(): await asyncio.sleep(0.01)\n"
    )
    process = begin(tmp_path, "out.jsonl", "--processes", "2", "--progress", "log")
    until(lambda: len(list(tmp_path.glob("call *"))) == 8)
    time.sleep(0.3)  # a beat, and one more
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    (tmp_path / "go").touch()
    code, _, told = ended(process)
    assert code == 130, told
    in_flight = int(told.partition("finishing ")[2].split()[0])
    assert 8 <= in_flight == int(told.partition(" read = ")[0].split()[-1])
