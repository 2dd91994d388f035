"""Random jobs and inputs, random deaths, one to four processes: the files are always those of one process."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path

import pytest
from fleets import letters

from stageflow.loader import load

JOB = """
    import asyncio, os, random
    from stageflow import Batch, Pipeline, done, drop

    pipeline = Pipeline("random", key="id")
    MARKS = {marks!r}

    def live_or_die(id, stage):
        \"\"\"The first process that comes here dies.\"\"\"
        try:
            os.unlink(f"{{MARKS}}/{{id}}-{{stage}}")
        except OSError:
            return
        os.kill(os.getpid(), 9)

    @pipeline.stage(max_in_flight={workers}, queue_size={queue})
    async def first(id, sort):
        await asyncio.sleep(random.random() * 0.002)
        live_or_die(id, "first")
        if sort == "dead":
            raise ValueError(f"no {{id}}")
        return drop("dropped") if sort == "drop" else done(id) if sort == "done" else id

    @pipeline.stage(max_in_flight=4 * {size}, batch=Batch({size}, within=0.003))
    async def second(first, id):
        for each in id:
            live_or_die(each, "second")
        return [each * 2 for each in first]

    @pipeline.stage(max_in_flight={workers})
    async def third({third}):
        live_or_die(id, "third")
        {grow}
"""


def lines_of(chance: random.Random, count: int) -> bytes:
    def line(n: int) -> bytes:
        if chance.random() < 0.03:
            return chance.choice([b"", b"  ", b"{bad", b"[1]"])
        sorts = ["dead", "drop", "done", "many", *["plain"] * 8]
        return json.dumps({"id": n, "sort": chance.choice(sorts), "fill": "x" * chance.randrange(300)}).encode()

    return b"\n".join(line(n) for n in range(count)) + chance.choice([b"", b"\n"])


def job_of(chance: random.Random, marks: Path) -> str:
    grows = chance.random() < 0.5
    grow = "for n in range(3 if sort == 'many' else id % 2): yield n" if grows else "return (sort, first)"
    return textwrap.dedent(JOB).format(
        marks=str(marks),
        workers=chance.choice([4, 16]),
        queue=chance.choice([4, 64]),
        size=chance.choice([1, 2, 5]),
        third=chance.choice(["first, second, sort, id", "first, sort, id"]),
        grow=grow,
    )


def left_alone(folder: Path) -> None:
    for mark in folder.iterdir():
        mark.unlink()


@pytest.mark.parametrize("number", range(4))
def test_the_files_are_those_of_one_process(tmp_path: Path, number: int) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    marks = tmp_path / "marks"
    marks.mkdir()
    count = chance.randrange(1, 800)
    (tmp_path / "in.jsonl").write_bytes(lines_of(chance, count))
    (tmp_path / "job.py").write_text(job_of(chance, marks))
    pipeline = load(str(tmp_path / "job.py")).pipeline

    def run(output: str, **options: object) -> tuple[int, ...]:
        report = pipeline.run_sync(str(tmp_path / "in.jsonl"), str(tmp_path / output), **options)
        return report.exit_code, report.read, report.written, report.dropped, report.dead, report.bad, report.blank

    alone = run("alone.jsonl")
    for _ in range(chance.randrange(4)):
        stage = chance.choice(["first", "second", "third"])
        (marks / f"{chance.randrange(count)}-{stage}").touch()
    processes = chance.randrange(2, 5)
    told = f"seed {seed}, {processes} processes"
    limit = chance.choice([None, chance.randrange(1, count + 1)])
    if limit is not None:
        run("out.jsonl", processes=processes, limit=limit)
        processes = chance.randrange(1, 5)
        if processes == 1:
            left_alone(marks)  # there is nobody to go on in its place
    found = run("out.jsonl", processes=processes)
    if limit is not None:  # each run tells of the unreadable lines that it has met
        alone, found = alone[:5], found[:5]
    assert found == alone, told
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes(), told
    assert letters(tmp_path, "out.jsonl") == letters(tmp_path, "alone.jsonl"), told
