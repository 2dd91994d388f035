"""The benchmark against a service that fails runs, and notices records and tokens that are lost, doubled or wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import faulty_service
import workload

TINY = ["--tiny", "--loop", "asyncio"]


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_service, "TINY", faulty_service.Load(120, 40, 0.5, 1))


def test_it_tells_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert faulty_service.main(TINY) == 0
    good, faulty = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert (good["calls"], good["faults"]) == (120, 0)
    assert faulty["faults"] > 5
    assert faulty["calls"] > 120


def test_every_fault_there_is_strikes_but_those_that_stop_a_run_or_need_a_stream() -> None:
    from stageflow.testing.faults import KINDS

    struck = {fault["do"] for fault in faulty_service.script(faulty=True)["fault"]}
    of_streams = {"error_event", "no_done"}  # tests/llm/test_llm_stream.py
    assert struck == KINDS.keys() - {"quota", "unauthorized"} - of_streams


def lose_one(sink: Path) -> None:
    sink.write_bytes(sink.read_bytes().partition(b"\n")[2])


def write_one_twice(sink: Path) -> None:
    sink.write_bytes(sink.read_bytes().partition(b"\n")[0] + b"\n" + sink.read_bytes())


def change_one(sink: Path) -> None:
    sink.write_bytes(sink.read_bytes().replace(b'"generate":"', b'"generate":"not ', 1))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [(lose_one, "1 of 120 records did not settle, 0"), (write_one_twice, "0 of 120 .* 1 did"), (change_one, "'not ")],
)
def test_a_wrong_output_is_caught(
    harm: Callable[[Path], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = faulty_service.Pipeline.run

    async def wrong(self: Any, source: Any, sink: Path, **options: Any) -> Any:
        report = await right(self, source, sink, **options)
        harm(sink)
        return report

    monkeypatch.setattr(faulty_service.Pipeline, "run", wrong)
    with pytest.raises(workload.WrongAnswer, match=complaint):
        faulty_service.main(TINY)


@pytest.mark.parametrize("what", ["tokens", "cost"])
def test_what_is_not_counted_is_caught(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = faulty_service.Pipeline.run

    async def wrong(self: Any, *given: Any, **options: Any) -> Any:
        report = await right(self, *given, **options)
        stage = report.stages["generate"]
        stages = {"generate": dataclasses.replace(stage, **{what: getattr(stage, what) * 0.99})}
        return dataclasses.replace(report, stages=stages)

    monkeypatch.setattr(faulty_service.Pipeline, "run", wrong)
    with pytest.raises(workload.WrongAnswer, match=f"{what}: "):
        faulty_service.main(TINY)


def test_a_client_that_asks_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = faulty_service.Chat.complete

    async def twice(self: Any, messages: Any, **options: Any) -> Any:
        await right(self, messages, **options)
        return await right(self, messages, **options)

    monkeypatch.setattr(faulty_service.Chat, "complete", twice)
    with pytest.raises(workload.WrongAnswer, match=r"attempts: |paid for twice"):
        faulty_service.main(TINY)
