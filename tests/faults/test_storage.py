"""Disks and files that are not as they should be: faults 15 to 26, by the numbers in the names of the tests.

Through the command line. What can't be met in a healthy file system is put into the process's own disk; see
``durable/faulty_command.py``. Ledgers that are damaged, changed inputs and changed jobs are tested beside the ledger.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watched import Runs, Watched

# Record n writes about 2 KB; where the file `gate` stands, all from record 40 on wait until `go` appears.
WIDE = """
import asyncio, os
from pathlib import Path
from stageflow import Pipeline

pipeline = Pipeline("wide")

@pipeline.stage(max_in_flight=8)
async def widen(n):
    Path(f"begun{n}").touch()
    await asyncio.sleep(0.005)
    while n >= 40 and os.path.exists("gate") and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return "x" * 2000
"""
OPEN = ("--max-open-records", "8", "--progress", "log")
RECORDS = 200
"""About 400 KB of results."""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    made.job(WIDE, RECORDS)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def assert_whole_lines(runs: Runs, name: str) -> int:
    """The file of results ends with the last commit. Returns how many records that is."""
    numbers = runs.numbers(f"{name}.partial")
    assert (runs.path / f"{name}.partial").read_bytes()[-1:] in (b"", b"\n")
    assert sorted(numbers) == sorted(runs.committed(name))
    return len(numbers)


def go_on(runs: Runs, output: str = "out.jsonl") -> Watched:
    again = runs.run(*OPEN, output=output)
    assert again.process.returncode == 0, again.err
    assert runs.numbers(output) == list(range(RECORDS))
    return again


FULL = "no space left writing small/out.jsonl.partial; {} records are safe, waiting up to {} s for space"


def test_row_15_a_full_disk_is_waited_for(runs: Runs, small_disk: Path) -> None:
    running = runs.start(*OPEN, output="small/out.jsonl")
    running.until_it_says("no space left")
    safe = assert_whole_lines(runs, "small/out.jsonl")
    assert safe < RECORDS
    assert FULL.format(safe, 600) in running.err
    assert runs.begun() <= safe + 8, "admission goes on"
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert running.ends() == 0
    assert runs.numbers("small/out.jsonl") == list(range(RECORDS))
    assert running.err.count("no space left") == 1


def test_row_15_a_disk_that_stays_full_ends_the_run(runs: Runs, small_disk: Path) -> None:
    ended = runs.run(*OPEN, "--disk-full-wait", "1", output="small/out.jsonl")
    assert ended.process.returncode == 5
    safe = assert_whole_lines(runs, "small/out.jsonl")
    assert FULL.format(safe, 1) in ended.err
    error, hint = ended.err.splitlines()[-2:]
    assert error == f"stageflow: error: no space left writing small/out.jsonl.partial; {safe} records are safe"
    assert "resume with the same command: stageflow run job.py in.jsonl -o small/out.jsonl" in hint
    assert "Traceback" not in ended.err
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    go_on(runs, "small/out.jsonl")


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def test_row_16_a_limit_on_file_sizes_ends_the_run_at_once(runs: Runs) -> None:
    ended = runs.run(*OPEN, preexec_fn=limit_files)
    assert ended.process.returncode == 5
    safe = assert_whole_lines(runs, "out.jsonl")
    error, hint = ended.err.splitlines()[-2:]
    assert error == f"stageflow: error: cannot write out.jsonl.partial: File too large; {safe} records are safe"
    assert f"resume with the same command: {runs.command(*OPEN)}" in hint
    assert "waiting" not in ended.err
    go_on(runs)


@pytest.mark.parametrize("nth", [4, 9], ids=["first", "later"])
def test_row_17_after_a_failed_sync_nothing_more_is_trusted(runs: Runs, nth: int) -> None:
    # The three before are of the header and of the empty files.
    ended = runs.run(*OPEN, "--fsync", "interval=0.01", faulty=True, environment={"FAIL_SYNC": str(nth)})
    assert ended.process.returncode == 5, ended.err
    error, hint = ended.err.splitlines()[-2:]
    assert "error: disk reported a write error (Input/output error); stopping, nothing after " in error
    assert error.endswith(" records is trusted")
    assert "stageflow run job.py in.jsonl -o out.jsonl" in hint
    assert "Traceback" not in ended.err
    go_on(runs)


def test_row_18_short_writes_are_invisible(runs: Runs) -> None:
    runs.job(WIDE, 20)
    undisturbed = runs.run(*OPEN, output="other.jsonl")
    ended = runs.run(*OPEN, faulty=True, environment={"SHORT_WRITES": "1"})
    assert (undisturbed.process.returncode, ended.process.returncode) == (0, 0)
    assert (runs.path / "out.jsonl").read_bytes() == (runs.path / "other.jsonl").read_bytes()
    assert len(set(runs.committed())) == 20


def test_row_19_a_missing_folder_is_refused_and_not_made(runs: Runs) -> None:
    ended = runs.run(output="nowhere/out.jsonl")
    assert ended.process.returncode == 2
    assert ended.err.splitlines()[0] == "stageflow: error: cannot write to nowhere: No such file or directory"
    assert len(ended.err.splitlines()) == 2
    assert runs.begun() == 0
    assert runs.names() == set()


def test_row_19_a_read_only_file_system_is_refused(runs: Runs, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = runs.run(output="small/out.jsonl")
    assert ended.process.returncode == 2
    assert ended.err.splitlines()[0] == "stageflow: error: cannot write to small: Read-only file system"
    assert runs.begun() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_row_19_a_folder_without_permission_is_refused(runs: Runs) -> None:
    (runs.path / "closed").mkdir(mode=0o500)
    ended = runs.run(output="closed/out.jsonl")
    assert ended.process.returncode == 2
    assert ended.err.splitlines()[0] == "stageflow: error: cannot write to closed: Permission denied"


def test_row_22_a_second_run_is_refused_and_the_first_undisturbed(runs: Runs) -> None:
    (runs.path / "gate").touch()
    first = runs.start(*OPEN)
    first.until(lambda: len(runs.committed()) == 40)
    second = runs.run(*OPEN)
    assert second.process.returncode == 6
    error, hint = second.err.splitlines()
    assert error.startswith(f"stageflow: error: out.jsonl is being written by pid {first.process.pid} on ")
    assert " since 2" in error
    assert hint == f"  hint: when it has ended: {runs.command(*OPEN)}"
    third = runs.run(*OPEN, "--fresh")
    assert third.process.returncode == 6
    (runs.path / "go").touch()
    assert first.ends() == 0
    assert runs.numbers("out.jsonl") == list(range(RECORDS))
    assert runs.names() == {"gate", "go", "out.jsonl", "out.jsonl.ledger"}


@pytest.mark.parametrize("how", ["name", "dots", "symbolic link", "hard link"])
def test_row_25_output_and_input_may_not_be_one_file(runs: Runs, how: str) -> None:
    other = {"name": "in.jsonl", "dots": "../" + runs.path.name + "/in.jsonl"}.get(how, "in-linked.jsonl")
    if how == "symbolic link":
        (runs.path / other).symlink_to("in.jsonl")
    elif how == "hard link":
        (runs.path / other).hardlink_to(runs.path / "in.jsonl")
    before = (runs.path / "in.jsonl").read_bytes()
    for options in ([], ["--fresh"]):
        ended = runs.run(*options, output=other)
        assert ended.process.returncode == 2
        assert ended.err.splitlines()[0] == "stageflow: error: output and input are the same file"
    assert (runs.path / "in.jsonl").read_bytes() == before
    assert runs.names() <= {other}
    assert runs.begun() == 0


NO_RESUME = "stageflow: note: output is not a regular file, resume is off\n"


def test_row_26_a_fifo_is_written_as_it_comes(runs: Runs) -> None:
    os.mkfifo(runs.path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((runs.path / "pipe").read_bytes()))
    reader.start()
    ended = runs.run(*OPEN, output="pipe")
    reader.join(30)
    assert ended.process.returncode == 0, ended.err
    assert NO_RESUME in ended.err
    assert len(found[0].splitlines()) == RECORDS
    assert runs.names() == {"pipe"}


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout"])
def test_row_26_a_device_is_written_as_it_comes(runs: Runs, device: str) -> None:
    ended = runs.run(*OPEN, output=device, stdout=subprocess.PIPE if device == "/dev/null" else None)
    assert ended.process.returncode == 0, ended.err
    assert NO_RESUME in ended.err
    assert not os.path.lexists(f"{device}.ledger")
    assert runs.names() == set()
