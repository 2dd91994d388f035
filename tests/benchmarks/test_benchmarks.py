"""Every benchmark runs, tells its result, and notices a wrong answer. What it measures is not tested here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import durability  # noqa: E402 - the benchmarks' folder has to be on the path first
import engine  # noqa: E402
import formats  # noqa: E402
import hedging  # noqa: E402
import in_flight  # noqa: E402
import jsonl  # noqa: E402
import memory  # noqa: E402
import sleeping  # noqa: E402
import slow_items  # noqa: E402
import start  # noqa: E402
import sweep  # noqa: E402
import workload  # noqa: E402

SCRIPTS = (engine, sleeping, in_flight, slow_items, hedging, jsonl, formats, durability, memory, start, sweep)
TINY = ["--tiny", "--loop", "asyncio"]


def name_of(script: ModuleType) -> str:
    return script.__name__


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_runs_and_prints_a_table_and_a_json_line(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(TINY) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[0].startswith(f"{script.__name__} (tiny, asyncio)")
    told = json.loads(last)
    assert told["benchmark"] == script.__name__
    assert told["loop"] == "asyncio"
    assert {"python", "machine", "rows", "bounds", "goals"} <= told.keys()
    assert len(told["rows"]) == len(table) - 2  # a title and the headings


async def forgetful(
    source: Iterable[workload.Item], steps: Any, queue_size: int, take: Callable[[workload.Item], object]
) -> None:
    """A pipeline that is very quick: it loses every record but the first."""
    for item in source:
        for step in steps:
            await step.work(item)
        take(item)
        return


@pytest.mark.parametrize("script", [engine, sleeping, jsonl, sweep], ids=name_of)
def test_a_baseline_that_loses_records_is_caught(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "hand_written", forgetful)
    with pytest.raises(workload.WrongAnswer, match="by hand"):
        script.main(TINY)


@pytest.mark.parametrize("script", [engine, slow_items], ids=name_of)
def test_a_tuned_baseline_that_loses_records_is_caught(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "hand_tuned", forgetful)
    with pytest.raises(workload.WrongAnswer, match="by hand, tuned"):
        script.main(TINY)


@pytest.mark.parametrize("script", [engine, sleeping, sweep], ids=name_of)
def test_a_wrong_result_of_stageflow_is_caught(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sleeping.Pipeline.run

    async def wrong(self: Any, source: Any, sink: list[Any], **options: Any) -> object:
        report = await right(self, source, sink, **options)
        sink[-1] = sink[-1] | {next(reversed(sink[-1])): None}
        return report

    monkeypatch.setattr(sleeping.Pipeline, "run", wrong)
    with pytest.raises(workload.WrongAnswer, match="stageflow"):
        script.main(TINY)


@pytest.mark.parametrize("script", [jsonl, memory], ids=name_of)
@pytest.mark.parametrize("field", ["notes", "third"])
def test_a_wrong_line_is_caught(script: ModuleType, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = jsonl.answer
    monkeypatch.setattr(jsonl, "answer", lambda n: right(n) | ({field: None} if n == 200 else {}))
    with pytest.raises(workload.WrongAnswer, match="line 201 "):
        script.main(TINY)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [([0, 1], "1 records are missing"), ([0, 1, 1], "line 3 "), ([0, 2, 1], "line 2 "), ([0, 1, 2, 2], "line 4 ")],
)
def test_lost_doubled_and_disordered_lines_are_caught(lines: list[int], complaint: str, tmp_path: Path) -> None:
    sink = tmp_path / "out.jsonl"
    sink.write_text("".join(json.dumps(jsonl.answer(n)) + "\n" for n in lines))
    with pytest.raises(workload.WrongAnswer, match=complaint):
        jsonl.check("somebody", sink, 3, ordered=True)


def test_contenders_take_turns_and_each_second_round_runs_backwards() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    figures = workload.in_turns({"a": contender("a"), "b": contender("b")}, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert figures == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    assert workload.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


@pytest.mark.parametrize(
    ("mode", "value", "code"), [("full", 1.0, 0), ("full", 0.99, 1), ("quick", 0.86, 0), ("quick", 0.84, 1)]
)
def test_a_missed_bound_is_exit_1(mode: workload.Mode, value: float, code: int) -> None:
    report = workload.Report("some", workload.Settings(mode, "asyncio"), {"x": ".1f"}, [{"x": 1.0}])
    report.at_least("ratio", value, 1.0)
    assert report.finish() == code


@pytest.mark.parametrize("mode", ["full", "quick"])
@pytest.mark.parametrize(("value", "said"), [(2.5, "goal reached: ratio"), (2.49, "goal not reached: ratio")])
def test_a_goal_is_told_and_is_no_failure(
    mode: workload.Mode, value: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = workload.Report("some", workload.Settings(mode, "asyncio"), {"x": ".1f"}, [{"x": 1.0}])
    report.goal("ratio", value, 2.5)
    assert report.finish() == 0
    *_, goal, last = capsys.readouterr().out.splitlines()
    assert goal.startswith(said)
    assert json.loads(last)["goals"] == [{"what": "ratio", "value": value, "limit": 2.5, "met": value == 2.5}]


def test_a_steady_state_is_without_the_ramps() -> None:
    meter = workload_meter([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 9.0], last_begin=3.0, workers=2)
    assert meter.per_second() == 3 / 1.5  # the ends at 2.0, 2.5 and 3.0, between 1.5 and 3.0


def workload_meter(ends: list[float], *, last_begin: float, workers: int) -> sleeping.Meter:
    meter = sleeping.Meter(workers)
    meter.ends, meter.last_begin = ends, last_begin
    return meter
