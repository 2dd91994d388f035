"""Several processes from Python: sources and sinks of all kinds, values of all kinds, and jobs wherever they stand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleets import ROOT

from stageflow import Batch, Pipeline
from stageflow.errors import DefinitionError, RequestError, RunStopped, SourceFailed, StorageError
from stageflow.loader import load
from stageflow.replicas import fleet

JOB = """
    import os, dataclasses, threading
    from stageflow import Pipeline

    pipeline = Pipeline("api", params={"add": 1, "any": None})

    class Point:
        def __init__(self, x): self.x = x
        def __eq__(self, other): return self.x == getattr(other, "x", None)

    class Odd(Exception):
        def __init__(self, a, b): super().__init__("odd")

    @pipeline.stage(max_in_flight=4)
    async def made(record, params):
        if record == "lock": return threading.Lock()
        if record == "odd": raise Odd(1, 2)
        if record == "exit": raise SystemExit(3)
        return (record, os.getpid(), params.add)
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    (tmp_path / "api_job.py").write_text(textwrap.dedent(JOB))
    return load(str(tmp_path / "api_job.py")).pipeline


def test_values_go_there_and_come_back(pipeline: Pipeline) -> None:
    point = sys.modules["stageflow_job_api_job"].Point
    found: list[Any] = []
    values = [point(1), {2, 3}, (4, 5), b"six", None, 1.5, {"seven": point(7)}] * 20
    report = pipeline.run_sync(values, found, processes=2, order="input", params={"add": 5})
    assert (report.written, report.exit_code) == (140, 0)
    assert [each["made"][0] for each in found] == values
    assert {each["made"][2] for each in found} == {5}
    pids = {each["made"][1] for each in found}
    assert os.getpid() not in pids


def test_what_can_not_be_sent_is_a_dead_letter(pipeline: Pipeline) -> None:
    found: list[Any] = []
    letters: list[Any] = []
    values = [1, lambda: 1, "lock", "odd", "exit", 2]
    report = pipeline.run_sync(values, found, dead=letters, processes=2, order="input")
    assert [each["made"][0] for each in found] == [1, 2]
    assert (report.written, report.dead) == (2, 4)
    told = {letter["index"]: (letter["stage"], letter["error"]["message"]) for letter in letters}
    assert "can't be sent to a process of the run" in told[1][1]
    assert told[2][0] == "made"
    assert "can't leave its process" in told[2][1]
    assert told[3] == ("made", "odd")


def test_sinks_and_sources_of_all_kinds(pipeline: Pipeline, tmp_path: Path) -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(100):
            await asyncio.sleep(0)
            yield n

    async def go() -> None:
        taken: list[int] = []

        async def take(record: Any) -> None:
            await asyncio.sleep(0)
            taken.append(record["made"][0])

        assert (await pipeline.run(numbers(), take, processes=2)).written == 100
        assert sorted(taken) == list(range(100))
        streamed = [record["made"][0] async for record in pipeline.stream(range(50), processes=2, order="input")]
        assert streamed == list(range(50))
        async with contextlib.aclosing(pipeline.stream(numbers(), processes=2)) as some:
            async for _ in some:
                break

    asyncio.run(go())
    report = pipeline.run_sync((n for n in range(30)), str(tmp_path / "out.jsonl"), processes=3)
    assert (report.written, (tmp_path / "out.jsonl").read_text().count("\n")) == (30, 30)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_either_loop(pipeline: Pipeline, loop: str) -> None:
    assert pipeline.run_sync(range(200), [], processes=2, loop=loop).written == 200


def test_a_source_or_a_sink_that_fails(pipeline: Pipeline) -> None:
    def source() -> Iterator[int]:
        yield from range(40)
        raise KeyError("no more")

    with pytest.raises(SourceFailed, match="no more"):
        pipeline.run_sync(source(), [], processes=2)

    def sink(record: Any) -> None:
        raise OSError("full")

    with pytest.raises(StorageError, match="full"):
        pipeline.run_sync(range(100), sink, processes=2)


def test_what_is_refused(pipeline: Pipeline) -> None:
    point = sys.modules["stageflow_job_api_job"].Point
    for options, said in (
        ({"processes": 5}, "has max_in_flight 4"),
        ({"processes": 2, "queue_size": 1}, "has queue_size 1"),
        ({"processes": 3, "max_open_records": 2}, "max_open_records 2"),
        ({"processes": 2, "settings": {"made": {"batch": Batch(50)}}}, "with its part of the limits in each process"),
        ({"processes": 2, "params": {"any": lambda: 1}}, "can't be sent to another process"),
        ({"processes": 2, "params": {"any": point(1)}}, "can't be read in a process of the run"),
    ):
        with pytest.raises((RequestError, DefinitionError), match=said):
            pipeline.run_sync(range(10), [], **options)

    def local() -> Pipeline:
        here = Pipeline("local")
        here.add_stage("one", _one)
        return here

    with pytest.raises(DefinitionError, match="can't be found by another process"):
        local().run_sync(range(10), [], processes=2)


async def _one(record: Any, results: Any) -> int:
    return 1


def test_a_resource_that_hangs_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_job.py").write_text(
        textwrap.dedent("""
        import asyncio
        from stageflow import Pipeline

        pipeline = Pipeline("hangs")

        @pipeline.resource
        async def base():
            yield 1
            await asyncio.sleep(1000)

        @pipeline.stage
        async def one(record, base): return 1
        """)
    )
    monkeypatch.setattr(fleet, "_LAST_SECONDS", 0.3)
    found: list[Any] = []
    told: list[str] = []

    class Listener:
        def on_event(self, event: Any) -> None:
            told.append(getattr(event, "message", ""))

    pipeline = load(str(tmp_path / "hanging_job.py")).pipeline
    report = pipeline.run_sync(range(10), found, processes=2, listeners=[Listener()])
    assert (report.exit_code, len(found)) == (0, 10)
    assert "a process had not closed its resources after 0.3 s, and was ended" in told


def test_a_run_that_is_cancelled_leaves_no_process(pipeline: Pipeline) -> None:
    async def forever() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1000)

    async def go() -> list[int]:
        found: list[Any] = []
        running = asyncio.create_task(pipeline.run(forever(), found, processes=2))
        while not found:  # noqa: ASYNC110 - the run fills a list
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return [each["made"][1] for each in found]

    for pid in asyncio.run(go()):
        assert not os.path.exists(f"/proc/{pid}")


SCRIPT = """
    from dataclasses import dataclass
    from stageflow import Pipeline

    @dataclass
    class Point:
        x: int

    pipeline = Pipeline("main")

    @pipeline.stage
    async def moved(record): return Point(record.x + 1)

    GUARD
        found = []
        pipeline.run_sync([Point(n) for n in range(50)], found, processes=2, order="input")
        assert [each["moved"] for each in found] == [Point(n + 1) for n in range(50)]
        assert isinstance(found[0]["moved"], Point)
        print("well")
"""


def script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_script_is_a_job_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT).replace("GUARD", 'if __name__ == "__main__":'))
    told = script(tmp_path, "script.py")
    assert told.stdout == "well\n", told.stderr


def test_a_script_that_runs_itself_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT).replace("GUARD", "if True:"))
    told = script(tmp_path, "script.py")
    assert told.returncode == 1
    assert "the job starts a run of its own while a process of a run loads it" in told.stderr


def test_a_job_in_a_package(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("LIMIT = 8\n")
    job = "from .parts import LIMIT\n" + textwrap.dedent(JOB).replace("max_in_flight=4", "max_in_flight=LIMIT")
    (package / "jobs.py").write_text(job)
    (tmp_path / "use.py").write_text(
        "from shop.jobs import pipeline\nprint(pipeline.run_sync(range(20), [], processes=2).written)\n"
    )
    told = script(tmp_path, "use.py")
    assert told.stdout == "20\n", told.stderr
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n' * 20)
    told = script(tmp_path, "-m", "stageflow", "run", "shop.jobs:pipeline", "in.jsonl", "-o", "-", "--processes", "2")
    assert (told.returncode, told.stdout.count("\n")) == (0, 20), told.stderr
    main = "from .parts import LIMIT\n" + textwrap.dedent(SCRIPT).replace("GUARD", 'if __name__ == "__main__":')
    (package / "main.py").write_text(main)
    told = script(tmp_path, "-m", "shop.main")
    assert told.stdout == "well\n", told.stderr


def test_a_stream_says_why_it_ends(tmp_path: Path) -> None:
    (tmp_path / "abort_job.py").write_text(
        "from stageflow import Pipeline\np = Pipeline('x')\n@p.stage(on_error='abort')\n"
        "async def a(record):\n    if record == 70: raise ValueError('seventy')\n    return 1\n"
    )
    pipeline = load(str(tmp_path / "abort_job.py")).pipeline

    async def go() -> None:
        async for _ in pipeline.stream(range(500), processes=2):
            pass

    with pytest.raises(RunStopped, match="seventy"):
        asyncio.run(go())
