"""Whatever the input looks like, several processes make of it what one does."""

from __future__ import annotations

import gzip
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleets import letters

from stageflow import RunReport
from stageflow.errors import RequestError
from stageflow.events import Event, Warned
from stageflow.loader import load

JOB = """
    from stageflow import Pipeline, Batch, done, drop

    pipeline = Pipeline("odd", key="id")

    @pipeline.stage(max_in_flight=8)
    async def one(record):
        if record.get("id") == 3:
            raise ValueError("no three")
        if record.get("id") == 4:
            return drop("four")
        return done("five") if record.get("id") == 5 else record.get("id")

    @pipeline.stage(batch=Batch(2, within=0.005), max_in_flight=4)
    async def pair(one):
        return [[each] for each in one]

    @pipeline.stage(max_in_flight=8)
    async def children(pair, record):
        for n in range(record.get("id", 0) % 3 if isinstance(record.get("id", 0), int) else 0):
            yield n
        if record.get("id") == 11:
            raise ValueError("eleven breaks off")

    @pipeline.stage(max_in_flight=8)
    async def grown(children, pair):
        if children == 1 and pair == [8]:
            raise ValueError("the second child of eight")
        return children + 1
"""


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"id": n, "text": f"x{n}" * 40}).encode() + b"\n" for n in numbers)


INPUTS: dict[str, bytes] = {
    "many": lines(*range(900)),
    "one line": lines(1),
    "one line without LF": lines(1)[:-1],
    "empty": b"",
    "nothing but blank lines": b"\n \n\t\r\n",
    "blank lines": b"\n\n" + lines(1, 2) + b"  \r\n" + lines(*range(3, 200)) + b"\n\x0b\n" + lines(200, 201) + b"\n\n",
    "no last LF": lines(*range(300))[:-1],
    "BOM": b"\xef\xbb\xbf" + lines(*range(50)),
    "BOM and a blank line": b"\xef\xbb\xbf\n" + lines(*range(50)),
    "CRLF": lines(*range(200)).replace(b"\n", b"\r\n"),
    "bad lines": lines(*range(150)) + b"{oops\n[1]\n\xff\xfe\n" + lines(*range(150, 300)) + b'{"id": 1e999}\n{',
    "gzip": gzip.compress(lines(*range(600))),
    "two gzip members": gzip.compress(lines(*range(300))) + gzip.compress(lines(*range(300, 400))),
    "gzip that breaks off": gzip.compress(lines(*range(4000)))[:-60],
    "long digits": b'{"id": 123456789012345678901234567890}\n' * 40,
}


class Runs:
    """Runs of one job over one input."""

    def __init__(self, folder: Path) -> None:
        (folder / "job.py").write_text(textwrap.dedent(JOB))
        self.folder = folder
        self.pipeline = load(str(folder / "job.py")).pipeline
        self.told: list[str] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.told.append(event.message)

    def __call__(self, output: str, **options: Any) -> RunReport:
        self.told.clear()
        source, sink = self.folder / "in.jsonl", self.folder / output
        return self.pipeline.run_sync(str(source), str(sink), listeners=(self,), **options)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def account(report: RunReport) -> dict[str, Any]:
    names = ("read", "written", "dropped", "dead", "bad", "blank", "not_done", "exit_code", "stopped", "earlier")
    found: dict[str, Any] = {name: getattr(report, name) for name in names}
    for name, stage in report.stages.items():
        found[name] = (stage.received, stage.passed, stage.dropped, stage.dead)
    return found


def outcome(call: Callable[[], RunReport]) -> dict[str, Any]:
    try:
        return account(call())
    except RequestError as error:
        return {"refused": str(error)}


@pytest.mark.parametrize("name", INPUTS)
def test_odd_inputs(runs: Runs, name: str) -> None:
    (runs.folder / "in.jsonl").write_bytes(INPUTS[name])
    alone, told = outcome(lambda: runs("alone.jsonl")), [*runs.told]
    processes = 3 if name == "many" else 2  # an interpreter more is most of what a test here takes
    assert outcome(lambda: runs("out.jsonl", processes=processes)) == alone
    assert runs.told == told
    there = [(runs.folder / each).exists() for each in ("alone.jsonl", "out.jsonl")]
    assert there[0] == there[1]
    if there[0]:
        assert (runs.folder / "out.jsonl").read_bytes() == (runs.folder / "alone.jsonl").read_bytes()
        assert letters(runs.folder, "out.jsonl") == letters(runs.folder, "alone.jsonl")


@pytest.mark.parametrize("limit", [1, 151, 290])
def test_a_limit_then_all_of_it(runs: Runs, limit: int) -> None:
    (runs.folder / "in.jsonl").write_bytes(b"\n" + INPUTS["bad lines"])
    runs("alone.jsonl", limit=limit)
    first = account(runs("out.jsonl", limit=limit, processes=2))
    assert (first["read"], first["not_done"]) == (limit, 0)
    alone = account(runs("alone.jsonl"))
    rest = account(runs("out.jsonl", processes=3))
    assert {name: rest[name] for name in ("read", "written", "dropped", "dead", "blank", "earlier")} == {
        name: alone[name] for name in ("read", "written", "dropped", "dead", "blank", "earlier")
    }
    assert (runs.folder / "out.jsonl").read_bytes() == (runs.folder / "alone.jsonl").read_bytes()
    assert runs("out.jsonl", processes=2).already_complete


def test_dead_letters_are_tried_again_and_a_fresh_run_starts_anew(runs: Runs) -> None:
    (runs.folder / "in.jsonl").write_bytes(INPUTS["many"])
    first = runs("out.jsonl", processes=2)
    assert first.dead == 3
    (runs.folder / "job.py").write_text(textwrap.dedent(JOB).replace("== 3:", "== -3:").replace("== [8]", "== [-8]"))
    mended = Runs(runs.folder)
    mended.folder.joinpath("job.py").write_text((runs.folder / "job.py").read_text())
    again = mended("out.jsonl", processes=2, retry_failed=True)
    assert (again.dead, again.written, again.not_done) == (3, first.written, 0)
    fresh = mended("out.jsonl", processes=2, fresh=True)
    assert (fresh.read, fresh.earlier) == (900, 0)
    assert (runs.folder / "out.jsonl.1").exists()


def test_a_key_that_comes_twice_is_warned_of_once(runs: Runs) -> None:
    twice = b'{"id": 1, "text": "a", "text": "b"}\n'
    (runs.folder / "in.jsonl").write_bytes(lines(*range(100)) + twice * 900)
    runs("alone.jsonl")
    told = [*runs.told]
    assert len(told) == 1
    assert "in.jsonl:101: duplicate key" in told[0]
    runs("out.jsonl", processes=3)
    assert runs.told == told
    assert runs("strict.jsonl", processes=3, strict=True).bad == 900


def test_bad_input_may_stop_the_run(runs: Runs) -> None:
    (runs.folder / "in.jsonl").write_bytes(INPUTS["bad lines"])
    report = runs("out.jsonl", processes=2, on_bad_input="stop")
    assert report.exit_code == 4
    assert report.stopped is not None
    assert "in.jsonl:151" in report.stopped
    assert runs("out.jsonl", processes=2).exit_code == 3
    runs("alone.jsonl")
    assert (runs.folder / "out.jsonl").read_bytes() == (runs.folder / "alone.jsonl").read_bytes()


def test_lines_that_are_too_long_are_counted_and_not_done_twice(runs: Runs) -> None:
    from stageflow.adapters.jsonl import JsonlSource

    long = b'{"id": 7, "text": "' + b"x" * 600_000 + b'"}\n'
    (runs.folder / "in.jsonl").write_bytes(lines(1) + long + lines(2) + long + lines(12))

    def go(output: str, **options: Any) -> RunReport:
        source = JsonlSource(str(runs.folder / "in.jsonl"), max_line_bytes=100_000)
        return runs.pipeline.run_sync(source, str(runs.folder / output), **options)

    go("alone.jsonl")
    first = go("out.jsonl", processes=2, limit=2)
    assert (first.read, first.bad, first.dead) == (2, 1, 1)
    rest = go("out.jsonl", processes=2)
    assert (rest.read, rest.dead, rest.not_done) == (5, 2, 0)
    assert (runs.folder / "out.jsonl").read_bytes() == (runs.folder / "alone.jsonl").read_bytes()
    assert letters(runs.folder, "out.jsonl") == letters(runs.folder, "alone.jsonl")
