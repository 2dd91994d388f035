"""Runs on a real Ray: a head and two machines, all of them here, of which one is really lost in the end.

A job lasts longer than it takes to notice a loss, and each test sees that something was lost: else it proves nothing.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pytest
from clusters import Workbench, is_there, until

pytest.importorskip("ray.cluster_utils", reason="needs stageflow[ray]")
pytestmark = [pytest.mark.timeout(180), pytest.mark.ray, pytest.mark.xdist_group("ray")]

RECORDS = 6_000
PER_SECOND = 1_600
SLOW = """
    import asyncio
    import os
    from neighbour import doubled, note
    from stageflow import Pipeline

    pipeline = Pipeline("slow", key="id")

    @pipeline.stage(max_in_flight=8)
    async def retrieve(id: int) -> int:
        await asyncio.sleep(0.001)
        return doubled(id)

    @pipeline.stage(max_in_flight=16)
    async def generate(id: int, retrieve: int) -> str:
        note(id)
        await asyncio.sleep(0.02)
        if id % 997 == 5:
            raise ValueError("no such number")
        return f"{retrieve}"
"""
NEIGHBOUR = """
import os

files = {}


def doubled(value):
    return 2 * value


def note(id):
    pid = os.getpid()
    if pid not in files:
        files[pid] = open(f"FOLDER/calls.{pid}", "a", buffering=1)
    files[pid].write(f"{id}\\n")
"""
DEAD = list(range(5, RECORDS, 997))
A_REPLICA = 4 * RECORDS // 40
"""Records of the shards that a replica has begun at a time and that are not committed, at most; of 40 shards."""


def fill(bench: Workbench, job: str = SLOW, count: int = RECORDS) -> None:
    bench.write(job, ({"id": n, "text": f"text {n}"} for n in range(count)))
    (bench.folder / "job" / "neighbour.py").write_text(NEIGHBOUR.replace("FOLDER", str(bench.folder)))


def expect_all(bench: Workbench) -> None:
    """Each record is once in the output, or in the dead letters."""
    assert bench.ids() == [n for n in range(RECORDS) if n not in DEAD]
    assert [letter["record"]["id"] for letter in bench.letters()] == DEAD
    assert (bench.folder / "out" / "_SUCCESS").exists()


def made_twice(bench: Workbench) -> int:
    """How many calls were made again; none was not made at all."""
    calls = Counter(record for _, record in bench.calls())
    assert set(calls) == set(range(RECORDS))
    return sum(calls.values()) - RECORDS


def test_it_writes_what_a_local_run_writes(bench: Workbench) -> None:
    fill(bench)
    code, told = bench.run("--nodes", "2")
    assert code == 3, told
    assert len({pid for pid, _ in bench.calls()}) == 2
    assert made_twice(bench) == 0
    expect_all(bench)
    assert bench.command("run", "job/job.py", "in.jsonl", "-o", "local.jsonl")[0] == 3
    assert bench.output() == (bench.folder / "local.jsonl").read_bytes()
    assert bench.command("merge", "out", "-o", "merged.jsonl")[0] == 0
    assert (bench.folder / "merged.jsonl").read_bytes() == (bench.folder / "local.jsonl").read_bytes()
    assert bench.dead_of("merged.jsonl") == bench.dead_of("local.jsonl")


def test_a_replica_is_killed(bench: Workbench) -> None:
    fill(bench)
    driver = bench.begin("--nodes", "2")
    until(lambda: bench.commits() >= 8 and len(bench.replicas()) == 2)
    killed = random.choice(sorted(bench.replicas()))
    os.kill(killed, signal.SIGKILL)
    code, told = bench.ended(driver)
    assert code == 3, told
    assert f"(process {killed} on " in told
    assert "was lost" in told
    assert "has said nothing" not in told  # nobody had to wait until its lease expired
    expect_all(bench)
    assert 0 < made_twice(bench) <= A_REPLICA


def test_the_coordinator_is_killed(bench: Workbench) -> None:
    fill(bench)
    driver = bench.begin("--nodes", "2")
    until(lambda: bench.commits() >= 8)
    (coordinator,) = bench.cluster.processes("CoordinatorActor")
    os.kill(coordinator, signal.SIGKILL)
    until(lambda: not is_there(coordinator))
    code, told = bench.ended(driver)
    assert code == 3, told
    expect_all(bench)
    assert made_twice(bench) <= A_REPLICA  # of a replica that was not back in time to say what it has
    assert len(list((bench.folder / "out" / "_stageflow" / "epochs").iterdir())) == 2


def test_the_driver_is_killed_and_the_command_run_again(bench: Workbench) -> None:
    fill(bench)
    driver = bench.begin("--nodes", "2")
    until(lambda: bench.commits() >= 8)
    driver.process.kill()
    driver.process.wait()
    until(lambda: not bench.replicas())  # Ray ends the actors of a driver that is gone
    done = bench.commits()
    assert done < 40
    code, told = bench.run("--nodes", "2")
    assert code == 3, told
    expect_all(bench)
    assert 0 < made_twice(bench) <= 2 * A_REPLICA
    calls = len(bench.calls())
    code, told = bench.run("--nodes", "2")
    assert (code, len(bench.calls())) == (3, calls)
    assert "already complete" in told


def test_a_replica_is_frozen_and_wakes_when_it_was_taken_for_lost(bench: Workbench) -> None:
    fill(bench)
    driver = bench.begin("--nodes", "2", env={"HASTY_LEASE_SECONDS": "3"})
    until(lambda: bench.commits() >= 4 and len(bench.replicas()) == 2)
    frozen = random.choice(sorted(bench.replicas()))
    os.kill(frozen, signal.SIGSTOP)
    try:
        until(lambda: "has said nothing for 3 s" in driver.told)
    finally:
        os.kill(frozen, signal.SIGCONT)
    code, told = bench.ended(driver)
    assert code == 3, told
    expect_all(bench)
    assert 0 < made_twice(bench) <= A_REPLICA
    until(lambda: not is_there(frozen))


KILLER = """
    import asyncio
    import os
    import signal
    from neighbour import note
    from stageflow import Pipeline

    pipeline = Pipeline("killer", key="id")

    @pipeline.stage(max_in_flight=16)
    async def generate(id: int) -> str:
        note(id)
        await asyncio.sleep(0.01)
        if id == 123:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{id}"
"""


def test_a_record_that_kills_whoever_runs_it_is_one_dead_letter(bench: Workbench) -> None:
    fill(bench, KILLER, 400)
    code, told = bench.run("--nodes", "2", "--shard-bytes", "1500")
    assert code == 3, told
    assert bench.ids() == [n for n in range(400) if n != 123]
    assert [letter["record"]["id"] for letter in bench.letters()] == [123]
    deaths = [record for _, record in bench.calls()].count(123)
    assert 2 <= deaths <= 4


SECRET = "swordfish-of-the-tests"
NEEDY = """
    import os
    from neighbour import note
    from stageflow import Pipeline

    key = os.environ["NEEDED_KEY"]
    pipeline = Pipeline("needy", key="id")

    @pipeline.stage
    async def generate(id: int) -> bool:
        note(id)
        if id == 3:
            raise ValueError("what goes wrong is in the logs")
        return len(key) > 3
"""


def test_a_variable_that_replicas_need_is_given_to_them_and_to_nobody_else(bench: Workbench) -> None:
    fill(bench, NEEDY, 10)
    code, told = bench.run(env={"NEEDED_KEY": SECRET})
    assert code == 2, told
    assert "KeyError" in told
    assert "NEEDED_KEY" in told
    code, told = bench.run("--env", "NEEDED_KEY", env={"NEEDED_KEY": SECRET})
    assert code == 3, told
    assert len(bench.ids()) == 9
    for path in (*bench.cluster.logs.rglob("*"), *bench.folder.rglob("*")):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


ENDING = """
    import os
    import sys
    from stageflow import Pipeline

    if "HERE" not in os.environ:
        print("no machine for this", file=sys.stderr)
        os._exit(7)
    pipeline = Pipeline("ending")

    @pipeline.stage
    async def generate(id: int) -> bool:
        return True
"""


def test_replicas_that_end_before_they_have_worked_end_the_run(bench: Workbench) -> None:
    fill(bench, ENDING, 10)
    code, told = bench.run(env={"HERE": "1"})
    assert code == 4, told
    assert "replicas end before they have done anything" in told
    assert "its process died" in told
    assert "no machine for this" in told  # what it has printed last


def test_a_machine_is_lost_and_no_other_takes_its_place(bench: Workbench) -> None:
    """The last one: the cluster is not whole after it."""
    fill(bench)
    driver = bench.begin("--nodes", "2")
    until(lambda: bench.commits() >= 4 and len(bench.replicas()) == 2)
    bench.cluster.lose(bench.cluster.raylets[-1])
    until(lambda: len(bench.replicas()) == 1)
    code, told = bench.ended(driver)
    assert code == 3, told
    assert "was lost" in told
    expect_all(bench)
    assert 0 < made_twice(bench) <= A_REPLICA


def test_the_head_is_lost_and_the_whole_cluster_with_it(bench: Workbench) -> None:
    """The very last one."""
    fill(bench, SLOW, 4 * RECORDS)
    driver = bench.begin("--nodes", "1")
    until(lambda: bench.commits() >= 2)
    bench.cluster.kill()
    code, told = bench.ended(driver)
    assert code == 4, told
    assert "the Ray cluster is gone" in told
    assert "the same command goes on" in told
