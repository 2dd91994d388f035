"""The benchmarks that hold the engine's promises: that they compare what they say, and notice what is wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import by_function  # noqa: E402 - the benchmarks' folder has to be on the path first
import engine  # noqa: E402
import in_flight  # noqa: E402
import instructions  # noqa: E402
import slow_items  # noqa: E402
import start  # noqa: E402
import workload  # noqa: E402

TINY = ["--tiny", "--loop", "asyncio"]
FULL = workload.Settings("full", "asyncio")


def test_all_scripts_that_are_named_are_there() -> None:
    spec = importlib.util.spec_from_file_location("all_benchmarks", BENCHMARKS / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    everything = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(everything)
    assert {"engine", "instructions", "in_flight", "slow_items", "start"} <= set(everything.SCRIPTS)
    assert [name for name in everything.SCRIPTS if not (BENCHMARKS / f"{name}.py").is_file()] == []


# The engine's shapes


@pytest.mark.parametrize("promise", engine.PROMISES, ids=lambda promise: f"{promise.shape}: {promise.ours}")
def test_a_lost_bound_of_the_engine_is_exit_1(promise: engine.Promise) -> None:
    for ratio, code in ((promise.bound, 0), (promise.bound - 0.01, 1)):
        report = workload.Report("engine", FULL, {"x": ""}, [{"x": "y"}])
        engine.hold(promise, ratio, report)
        assert report.finish() == code
    assert promise.shape in engine.SHAPES


def waiting_calls(shares: tuple[float, float, float]) -> list[int]:
    """By stage how many calls of a period wait."""

    def waits(call: Coroutine[Any, Any, int]) -> bool:
        try:
            call.send(None)
        except StopIteration:
            return False
        call.close()
        return True

    handlers = engine.waiting_stages(shares)
    arguments = [[n, n + 1, 2 * n + 2] for n in range(engine.PERIOD)]
    return [sum(waits(handler(row[stage])) for row in arguments) for stage, handler in enumerate(handlers)]


@pytest.mark.parametrize(
    ("shares", "waiting"),
    [((1, 1, 1), [1000, 1000, 1000]), ((0, 1, 0), [0, 1000, 0]), ((0.1, 0.1, 0.1), [100, 100, 100])],
)
def test_as_many_calls_wait_as_the_shape_says(shares: tuple[float, float, float], waiting: list[int]) -> None:
    assert waiting_calls(shares) == waiting


# Calls in flight


def test_a_doubled_a_wrong_and_a_lost_output_are_caught() -> None:
    calls = in_flight.Calls(in_flight.Load(2, 0.001, 3, 1))
    calls.take({"n": 0, "answer": 1})
    for output in ({"n": 0, "answer": 1}, {"n": 1, "answer": 1}, {"n": 1}):
        with pytest.raises(workload.WrongAnswer, match="the output"):
            calls.take(output)
    with pytest.raises(workload.WrongAnswer, match="0 calls and 1 outputs for 6 records"):
        calls.per_second()


def test_a_child_that_fails_is_caught() -> None:
    once = in_flight.in_child("nobody", in_flight.TINY[0], FULL)
    with pytest.raises(workload.WrongAnswer, match=r"nobody, 50 of 0\.05 s: exit code 1"):
        once()


# Slow items


def test_the_best_is_that_whoever_is_free_takes_the_next_one() -> None:
    calls = slow_items.Calls([4.0, 1.0, 1.0, 1.0, 1.0, 3.0], workers=2)
    assert calls.best() == 7.0  # one has the first and at 4 the last; the other the four between
    assert calls.even_share() == 5.5


def test_one_call_in_a_hundred_is_slow() -> None:
    calls = slow_items.calls_of(1_000, 8, 1.0)
    assert Counter(calls.seconds) == {1.0: 990, 50.0: 10}
    assert all(50.0 in calls.seconds[first : first + 100] for first in range(0, 1_000, 100))


def test_an_output_out_of_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = slow_items.to_a_file
    monkeypatch.setattr(slow_items, "to_a_file", lambda order, directory: right("completion", directory))
    with pytest.raises(workload.WrongAnswer, match="file, in order"):
        slow_items.main(TINY)


# A start


def test_a_wrong_answer_of_a_whole_run_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "JOB", start.JOB.replace("n + 1", "n + 2"))
    with pytest.raises(workload.WrongAnswer, match="one record"):
        start.main(TINY)


def test_a_process_that_fails_is_caught() -> None:
    with pytest.raises(workload.WrongAnswer, match="nothing: exit code 7"):
        start.measured("nothing", ["-c", "raise SystemExit(7)"], lambda name, output: None)()


# Instructions


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="counts by valgrind")
def test_instructions_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert instructions.main(TINY) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert [row["contender"] for row in rows] == [*instructions.WAYS] * len(instructions.SHAPES)
    assert all(row["instructions/record"] > 1_000 for row in rows)


def test_without_valgrind_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert instructions.main(TINY) == 0
    assert "valgrind is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ratio", "code", "notes"), [(1.0, 0, 0), (1.04, 0, 0), (1.06, 1, 0), (0.96, 0, 0), (0.94, 0, 1)]
)
@pytest.mark.parametrize("mode", ["full", "quick"])
def test_a_ratio_holds_within_a_twentieth(mode: workload.Mode, ratio: float, code: int, notes: int) -> None:
    report = workload.Report("instructions", workload.Settings(mode, "asyncio"), {"x": ""}, [{"x": "y"}])
    assert len(instructions.hold({"a / b": ratio}, {"a / b": 1.0}, report)) == notes
    assert report.finish() == code


def test_a_ratio_that_is_not_recorded_is_told() -> None:
    report = workload.Report("instructions", FULL, {"x": ""}, [{"x": "y"}])
    assert "not recorded" in instructions.hold({"a / b": 1.0}, {}, report)[0]
    assert report.bounds == []


def test_what_is_recorded_is_what_is_compared() -> None:
    names = {
        f"{shape}: {way} / {instructions.TUNED}" for shape in instructions.SHAPES for way in instructions.WAYS[:-1]
    }
    known = instructions.recorded()
    assert known
    assert [version for version, ratios in known.items() if ratios.keys() != names] == []


def test_recording_keeps_other_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instructions, "RECORDED", tmp_path / "some.json")
    instructions.RECORDED.write_text('{"2.7": {"a / b": 3.0}}')
    instructions.record({"a / b": 1.23456})
    assert instructions.recorded() == {"2.7": {"a / b": 3.0}, instructions.version(): {"a / b": 1.235}}


PROFILE = """\
positions: line
totals: 180
fn=(1) outer
1 20
+2 30
cfn=(2) inner'2
calls=3 0
* 100

fn=(2)
5 100
-1 30
"""


def test_own_instructions_are_without_those_of_calls(tmp_path: Path) -> None:
    first, second = tmp_path / "callgrind.out.1", tmp_path / "callgrind.out.2"
    first.write_text(PROFILE)
    second.write_text("totals: 7\nfn=(1)\n1 7\n")
    assert instructions.instructions_of(first) == 180
    found = list(by_function.instructions_by_function(iter([first, second])))
    assert found == [{"outer": 50, "inner": 130}, {"outer": 7}]


def test_a_profile_that_is_not_whole_is_caught(tmp_path: Path) -> None:
    part = tmp_path / "callgrind.out.2"
    for make in (lambda: None, lambda: part.write_text("events: Ir\n")):
        make()
        with pytest.raises(workload.WrongAnswer, match=r"no total in callgrind\.out\.2"):
            instructions.instructions_of(part)


def inner(times: int) -> int:
    return sum([times] * times)


def outer() -> int:
    return inner(1) + inner(2)


def test_bytecodes_are_counted_with_and_without_what_is_called() -> None:
    counted = by_function.Bytecodes().count(outer)
    again = by_function.Bytecodes().count(outer)
    assert counted == again
    assert counted.begun[inner.__code__] == 2
    both = counted.own[inner.__code__] + counted.own[outer.__code__]
    assert counted.inclusive[outer.__code__] == both > counted.own[outer.__code__] > 0
    assert counted.inclusive[inner.__code__] == counted.own[inner.__code__]
    assert counted.minus(again).own.total() == 0
