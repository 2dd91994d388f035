"""A run over an object: killed, gone on with by ranges, refused when it is another; and outputs that must be files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from objects import Objects, serving
from running import Running
from workbench import Folder

pytest.importorskip("obstore")


@pytest.fixture
def objects() -> Iterator[Objects]:
    with serving() as served:
        served.data = {"in.jsonl": b"".join(b'{"x": %d}\n' % (n + 1) for n in range(100_000))}
        yield served


def test_a_run_over_an_object_is_killed_and_goes_on(
    folder: Folder, objects: Objects, start: Callable[..., Running]
) -> None:
    command = ("run", "job.py", f"{objects.url}/in.jsonl", "-o", "out.jsonl", "--progress", "off")
    running = start(*command, "--max-open-records", "200")
    partial = folder.path / "out.jsonl.partial"
    running.until(lambda: partial.exists() and partial.read_bytes().count(b"\n") > 50_000)
    running.process.kill()
    running.process.wait()
    objects.asked.clear()
    told = folder.process(*command)
    assert told.returncode == 0, told.stderr
    assert "resuming: " in told.stderr
    results = [json.loads(line)["inverse"] for line in folder.read("out.jsonl").splitlines()]
    assert results == [1 / (2 * (n + 1)) for n in range(100_000)]
    assert "already complete: 100,000 inputs" in folder.process(*command).stderr
    objects.tag, objects.data["in.jsonl"] = '"2"', objects.data["in.jsonl"].replace(b"77777}", b"77778}")
    told = folder.process(*command)
    assert told.returncode == 7
    assert "input changed since the last run" in told.stderr


def test_what_has_no_ranges_says_that_it_can_not_be_resumed(folder: Folder, objects: Objects) -> None:
    objects.ranges = False
    url = f"{objects.url}/in.jsonl"
    told = folder.stageflow("run", "job.py", url, "-o", "out.jsonl", "--progress", "off")
    assert told.code == 0, told.err
    assert f"note: {url} cannot be resumed" in told.err
    assert folder.read("out.jsonl").count("\n") == 100_000


@pytest.mark.parametrize("given", [("-o", "s3://bucket/out.jsonl"), ("-o", "out.jsonl", "--dead", "gs://bucket/dead")])
def test_outputs_are_files(folder: Folder, given: tuple[str, ...]) -> None:
    before = folder.names()
    told = folder.stageflow("run", "job.py", "in.jsonl", *given)
    assert told.code == 2
    assert told.error == [
        f"stageflow: error: can't write to {given[-1]}: results are made safe on a disk of this machine",
        "  hint: give a file, and copy it there when the run is complete",
    ]
    assert folder.names() == before
