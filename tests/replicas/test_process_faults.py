"""What becomes of a run in several processes when one of them dies, hangs, or is asked to end."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from fleets import begin, children_of, ended, fill, is_there, letters, run, until, written

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

SLOW = """
    import asyncio
    from stageflow import Pipeline

    pipeline = Pipeline("slow", key="id")

    @pipeline.stage(max_in_flight=8)
    async def loud(text: str, id: int) -> str:
        await asyncio.sleep(0.004)
        if id % 97 == 5:
            raise ValueError("no such number")
        return text.upper()
"""
TEXTS = [f"text {n}" for n in range(700)]


def expected(folder: Path, output: str = "out.jsonl") -> None:
    """The output is what one process makes of it."""
    code, _, told = run(folder, "alone.jsonl")
    assert code == 3, told
    assert (folder / output).read_bytes() == (folder / "alone.jsonl").read_bytes()
    assert [each["index"] for each in letters(folder, output)] == [n for n in range(len(TEXTS)) if n % 97 == 5]


def test_of_processes_that_are_killed_nothing_is_lost(tmp_path: Path) -> None:
    fill(tmp_path, SLOW, TEXTS)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    process = begin(tmp_path, "out.jsonl", "--processes", "3")
    killed = 0
    while process.poll() is None and killed < 4:
        time.sleep(chance.uniform(0.0, 0.25))
        if there := children_of(process):
            os.kill(chance.choice(there), signal.SIGKILL)
            killed += 1
    code, _, told = ended(process)
    if code == 4:  # it was killed while it started, and nothing was begun
        assert "ended while it started: signal 9" in told, f"seed {seed}: {told}"
        code, _, told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert code == 3, f"seed {seed}: {told}"
    expected(tmp_path)


def test_when_the_first_process_is_killed_all_are_gone_at_once_also_those_that_are_held_up(tmp_path: Path) -> None:
    job = """
        import re, os
        from pathlib import Path
        from stageflow import Pipeline

        pipeline = Pipeline("held up")

        @pipeline.stage
        async def hold(id):
            if not os.environ.get("LET_GO"):
                Path(f"held {os.getpid()}").touch()
                re.match(r"(a*)*b", "a" * 64)  # never lets go of the interpreter
            return 1
    """
    fill(tmp_path, job, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "2")
    until(lambda: len(list(tmp_path.glob("held *"))) == 2)
    children = children_of(process)
    assert len(children) == 2
    process.kill()
    process.communicate()
    until(lambda: not any(map(is_there, children)), 1.0)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2", env={"LET_GO": "1"})
    assert code == 0, told
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, 0.0), (signal.SIGINT, 0.15), (signal.SIGINT, None), (signal.SIGTERM, None)]
)
def test_a_signal_to_all_of_them_ends_the_run_which_can_be_gone_on_with(
    tmp_path: Path, number: signal.Signals, moment: float | None
) -> None:
    fill(tmp_path, SLOW, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "3")
    if moment is None:
        until(lambda: written(tmp_path, "out.jsonl") > 50)
    else:
        until(lambda: children_of(process))
        time.sleep(moment)
    os.killpg(process.pid, number)
    code, _, told = ended(process)
    assert code == 128 + number, told
    assert "Traceback" not in told
    assert "died" not in told
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "1" if moment is None else "2")
    assert code == 3, told
    expected(tmp_path)


def test_a_second_signal_cancels_the_calls(tmp_path: Path) -> None:
    job = """
        import asyncio, os
        from pathlib import Path
        from stageflow import Pipeline

        pipeline = Pipeline("long")

        @pipeline.stage
        async def long(id):
            Path("there").touch()
            await asyncio.sleep(0 if os.environ.get("SHORT") else 1000)
            return id
    """
    fill(tmp_path, job, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "2")
    until((tmp_path / "there").exists)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    code, _, told = ended(process, 10)
    assert code == 130, told
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2", env={"SHORT": "1"})
    assert code == 0, told
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)


def test_a_process_that_is_suspended_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    fill(tmp_path, SLOW, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "2")
    until(lambda: written(tmp_path, "out.jsonl") > 20)
    suspended = children_of(process)[0]
    os.kill(suspended, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, told = ended(process, 15)
    assert code == 130, told
    assert not is_there(suspended)
    assert run(tmp_path, "out.jsonl", "--processes", "2")[0] == 3
    expected(tmp_path)


ELSEWHERE = """
    import os
    from pathlib import Path

    first = Path("first")
    if not first.exists():
        first.write_text(str(os.getpid()))
    elsewhere = first.read_text() != str(os.getpid())
"""


def test_a_process_that_dies_while_it_starts_ends_the_run_before_it_began(tmp_path: Path) -> None:
    fill(tmp_path, ELSEWHERE + "    if elsewhere: os._exit(7)\n" + SLOW, TEXTS)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert code == 4, told
    assert "a process of the run ended while it started: exit code 7" in told
    assert not (tmp_path / "out.jsonl").exists()


def test_one_that_dies_in_the_place_of_another_is_replaced_too(tmp_path: Path) -> None:
    dies_once = """
    if elsewhere and Path("killed").exists() and not Path("died").exists():
        Path("died").touch()
        os._exit(9)
"""
    fill(tmp_path, ELSEWHERE + dies_once + SLOW, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "2")
    until(lambda: written(tmp_path, "out.jsonl") > 20)
    (tmp_path / "killed").touch()
    os.kill(children_of(process)[0], signal.SIGKILL)
    code, _, told = ended(process)
    assert code == 3, told
    assert (tmp_path / "died").exists()
    (tmp_path / "first").unlink()
    expected(tmp_path)


def test_a_job_that_is_another_one_elsewhere_is_refused(tmp_path: Path) -> None:
    more = """
    if elsewhere:
        @pipeline.stage
        async def more(id): return 1
    """
    fill(tmp_path, ELSEWHERE + SLOW + more, TEXTS)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert code == 2, told
    assert "a process of the run has loaded another job than this one" in told


def test_a_job_that_fails_elsewhere_is_told_with_its_line(tmp_path: Path) -> None:
    fill(tmp_path, ELSEWHERE + "    if elsewhere: raise OSError('no model here')\n" + SLOW, TEXTS)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert code == 2, told
    assert "OSError while the job was imported: no model here" in told
    assert "job.py:" in told


def test_a_process_that_leaves_a_child_behind_is_missed_all_the_same(tmp_path: Path) -> None:
    job = """
        import os, time
        from pathlib import Path
        from stageflow import Pipeline

        pipeline = Pipeline("forks", key="id")

        @pipeline.stage(max_in_flight=2)
        async def fork(id):
            if id == 40 and not Path("forked").exists():
                child = os.fork()
                if not child:
                    os.setsid()
                    time.sleep(60)
                    os._exit(0)
                Path("forked").write_text(str(child))
                os._exit(1)
            return id
    """
    fill(tmp_path, job, TEXTS)
    process = begin(tmp_path, "out.jsonl", "--processes", "2")
    try:
        assert process.wait(30) == 0
    finally:
        os.kill(int((tmp_path / "forked").read_text()), signal.SIGKILL)
    process.communicate()
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)


def test_what_the_job_prints_is_not_among_the_results(tmp_path: Path) -> None:
    job = SLOW.replace("await", "print('called', flush=True); await") + "\n    print('loaded')\n"
    fill(tmp_path, job, TEXTS[:30])
    code, out, told = run(tmp_path, "-", "--processes", "2", "--order", "input")
    assert code == 3, told
    assert [line[:8] for line in out.splitlines()] == [f'{{"id":{n},'[:8] for n in range(30) if n % 97 != 5]
    assert told.count("loaded") == 3
    assert told.count("called") == 30


def test_abort_in_one_process_stops_all(tmp_path: Path) -> None:
    job = SLOW.replace("max_in_flight=8", 'max_in_flight=8, on_error="abort"').replace("id % 97 == 5", "id == 300")
    fill(tmp_path, job, TEXTS)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "3")
    assert code == 4, told
    assert "no such number" in told
    done = written(tmp_path, "out.jsonl")
    assert 0 < done < len(TEXTS)
    (tmp_path / "job.py").write_text((tmp_path / "job.py").read_text().replace("id == 300", "False"))
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2", "--accept-job-change")
    assert code == 0, told
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(TEXTS)


def test_the_failure_rate_is_that_of_the_whole_run(tmp_path: Path) -> None:
    fill(tmp_path, SLOW.replace("id % 97 == 5", "id >= 200"), TEXTS)
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "3", "--max-failure-rate", "50%")
    assert code == 4, told
    assert len(letters(tmp_path, "out.jsonl")) < 300


def test_resources_that_can_not_be_opened_or_closed(tmp_path: Path) -> None:
    resource = """
    @pipeline.resource
    async def base():
        OPENING
        yield 1
        raise OSError("it would not close")
    """
    job = SLOW.replace("    @pipeline.stage", resource + "\n    @pipeline.stage").replace("id: int", "id: int, base")
    fill(tmp_path, job.replace("OPENING", ""), TEXTS[:50])
    code, _, told = run(tmp_path, "out.jsonl", "--processes", "2")
    assert code == 3, told
    assert told.count('resource "base" could not be closed: OSError: it would not close') == 1
    fill(tmp_path, job.replace("OPENING", "raise OSError('no base')"), TEXTS[:50])
    code, _, told = run(tmp_path, "other.jsonl", "--processes", "2")
    assert code == 2, told
    assert 'resource "base" could not be opened: OSError: no base' in told
    assert not (tmp_path / "other.jsonl").exists()
