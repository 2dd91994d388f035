"""What failed comes in again where it failed: nothing before it is called, and the output is that of one run."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from reentries import Job, again, records, run

from stageflow import Batch, Pipeline, degrade, done, drop
from stageflow.output import family

LINE = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}
DIAMOND = {"a": [], "left": ["a"], "right": ["a"], "join": ["left", "right"], "end": ["join"]}


def multiset(lines: list[dict[str, Any]]) -> Counter[str]:
    return Counter(repr(sorted(line.items())) for line in lines)


def whole(job: Job, count: int) -> Counter[str]:
    """The lines of an undisturbed run."""
    job.heal()
    lines = run(job.pipeline, records(count)).lines
    job.take_calls()
    return multiset(lines)


# Lines, diamonds, joins


def test_a_line_goes_on_at_the_stage_that_failed() -> None:
    job = Job(LINE)
    job.failing = {("c", "1")}
    first = run(job.pipeline, records(3), upstream={"c": "digest"})
    assert first.retries == [{"from": "c", "upstream": "digest"}]
    assert ("c", "1", 1) in job.take_calls()

    job.heal()
    second = again(job.pipeline, first, upstream={"c": "digest"})
    assert job.take_calls() == [("c", "1", 1), ("d", "1", 1)]  # the same keys, and attempts from 1
    assert multiset(first.lines + second.lines) == whole(job, 3)
    (item,) = second.settled
    assert (item.index, item.reentry.numbers) == (1, (0,))


def test_what_fails_again_is_one_new_letter_that_says_the_same() -> None:
    job = Job(LINE, settings={"c": {"retry": 3}})
    job.failing = {("c", "0")}
    first = run(job.pipeline, records(1))
    job.take_calls()
    second = again(job.pipeline, first)
    assert job.take_calls() == [("c", "0", 1), ("c", "0", 2), ("c", "0", 3)]
    assert (second.lines, second.retries, second.dead[0]["results"]) == ([], first.retries, first.dead[0]["results"])


def test_a_failed_branch_goes_on_beside_one_that_had_finished() -> None:
    job = Job(DIAMOND, seconds={"right": 1})
    job.failing = {("right", "0")}
    first = run(job.pipeline, records(1))
    assert first.dead[0]["results"].keys() == {"a", "left"}
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.stages_called() == ["end", "join", "right"]
    assert multiset(second.lines) == whole(job, 1)


def test_a_branch_that_was_given_up_with_the_record_is_run_too() -> None:
    job = Job(DIAMOND, seconds={"right": 1})
    job.failing = {("left", "0")}
    first = run(job.pipeline, records(1))
    assert first.dead[0]["results"].keys() == {"a"}
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.stages_called() == ["end", "join", "left", "right"]
    assert multiset(second.lines) == whole(job, 1)


def test_a_join_that_failed_has_what_it_joins() -> None:
    job = Job(DIAMOND)
    job.failing = {("join", "0"), ("join", "2")}
    first = run(job.pipeline, records(3))
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.stages_called() == ["end", "end", "join", "join"]
    assert multiset(first.lines + second.lines) == whole(job, 3)


def test_the_first_of_several_first_stages_may_be_what_failed() -> None:
    job = Job({"a": [], "b": [], "join": ["a", "b"]}, seconds={"b": 1})
    job.failing = {("b", "0")}
    first = run(job.pipeline, records(1))
    assert first.retries == [{"from": "b", "upstream": ""}]
    job.take_calls()
    job.heal()
    assert multiset(again(job.pipeline, first).lines) == multiset(
        [{"id": 0, "a": "a()", "b": "b()", "join": "join(a(),b())"}]
    )
    assert job.stages_called() == ["b", "join"]


def test_a_batch_takes_those_that_come_again_with_others() -> None:
    job = Job(LINE, settings={"c": {"batch": Batch(4, within=1.0)}})
    job.failing = {("c", "1"), ("c", "3")}
    first = run(job.pipeline, records(4))
    assert [letter["index"] for letter in first.dead] == [1, 3]
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.take_calls() == [("c", "1", 1), ("c", "3", 1), ("d", "1", 1), ("d", "3", 1)]
    assert second.seconds == 0.0  # in one batch, which the end of the input closed
    assert multiset(first.lines + second.lines) == whole(job, 4)


def test_more_come_again_than_the_channels_hold() -> None:
    job = Job(DIAMOND, settings={name: {"max_in_flight": 1, "queue_size": 1} for name in DIAMOND}, seconds={"end": 1})
    job.failing = {(stage, str(index)) for index in range(30) for stage in ("left", "right") if index % 3}
    first = run(job.pipeline, records(30))
    assert len(first.letters) == 20
    job.heal()
    second = again(job.pipeline, first)
    assert multiset(first.lines + second.lines) == whole(job, 30)


# What was out of the ordinary


def test_notes_are_kept_as_if_there_had_been_one_run() -> None:
    edges = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"]}
    settings = {
        "a": {"on_error": "skip", "retry": 2},
        "b": {"when": lambda record: False},
        "c": {"on_error": degrade("stand-in")},
    }
    job = Job(edges, settings=settings)
    job.failing = {("a", "0"), ("c", "0"), ("e", "0")}
    first = run(job.pipeline, records(1))
    notes = {
        "a": {"outcome": "skipped", "error": "ValueError: a 0", "attempts": 2},
        "b": {"outcome": "skipped", "error": None, "attempts": 0},
        "c": {"outcome": "degraded", "error": "ValueError: c 0", "attempts": 1},
    }
    assert first.retries == [{"from": "e", "upstream": "", "notes": notes}]
    job.take_calls()
    job.failing.discard(("e", "0"))
    (line,) = again(job.pipeline, first).lines
    assert job.stages_called() == ["e"]
    assert job.outcomes["e", "0"] == {"a": "skipped", "b": "skipped", "c": "degraded", "d": "ok"}
    assert (line["_stageflow"], line["e"]) == (notes, "e(d(stand-in))")
    assert multiset([line]) == multiset(run(job.pipeline, records(1)).lines)


def test_what_done_cut_off_is_not_run_and_absent() -> None:
    calls: list[str] = []
    broken = True

    async def answer(record: Any) -> Any:
        calls.append("answer")
        return done("canned")

    async def below(answer: str) -> str:
        raise AssertionError("it was cut off")

    async def beside(record: Any) -> str:
        calls.append("beside")
        if broken:
            raise ValueError("so")
        return "beside"

    async def after(beside: str) -> str:
        return beside

    async def both(after: str, below: str) -> str:
        raise AssertionError("it was cut off")

    pipeline = Pipeline("cut")
    for function in (answer, below, beside, after, both):
        pipeline.add_stage(function.__name__, function)
    first = run(pipeline, records(1))
    broken = False
    second = again(pipeline, first)
    assert calls == ["answer", "beside", "beside"]
    assert second.lines == [
        {
            "id": 0,
            "answer": "canned",
            "beside": "beside",
            "after": "beside",
            "_stageflow": {"answer": {"outcome": "done", "error": None, "attempts": 1}},
        }
    ]


# Fan-out


def test_a_child_comes_again_without_its_siblings() -> None:
    edges = {"a": [], "split": ["a"], "b": ["split"], "c": ["b", "a"], "beside": ["a"], "all": ["beside", "c"]}
    job = Job(edges, fan_outs={"split": 3})
    job.failing = {("c", "0-1"), ("b", "1-0"), ("b", "1-2")}
    first = run(job.pipeline, records(3))
    assert first.retries == [
        {"from": "c", "upstream": "", "child": [1]},
        {"from": "b", "upstream": "", "child": [0]},
        {"from": "b", "upstream": "", "child": [2]},
    ]
    assert len(first.lines) == 6
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.take_calls() == [
        *(("all", place, 1) for place in ("0-1", "1-0", "1-2")),
        *(("b", place, 1) for place in ("1-0", "1-2")),
        *(("c", place, 1) for place in ("0-1", "1-0", "1-2")),
    ]
    assert [(item.index, item.reentry.numbers) for item in second.settled] == [(0, (0,)), (1, (1, 2))]
    assert multiset(first.lines + second.lines) == whole(job, 3)


def test_a_child_of_a_child_comes_again_at_its_place() -> None:
    edges = {"a": [], "outer": ["a"], "mid": ["outer"], "inner": ["mid"], "leaf": ["inner", "a"], "end": ["leaf"]}
    job = Job(edges, fan_outs={"outer": 2, "inner": 3})
    job.failing = {("leaf", "0-0-1"), ("end", "0-1-2"), ("leaf", "0-1-0"), ("mid", "1-1"), ("inner", "2-0")}
    first = run(job.pipeline, records(3))
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    called = job.take_calls()
    assert [place for stage, place, _ in called if stage == "leaf"] == [
        "0-0-1", "0-1-0", "1-1-0", "1-1-1", "1-1-2", "2-0-0", "2-0-1", "2-0-2",
    ]  # fmt: skip
    assert {stage for stage, _, _ in called} == {"leaf", "end", "mid", "inner"}
    assert Counter(stage for stage, _, _ in called)["end"] == 9
    assert len(second.settled) == 3
    for record in second.settled:
        paths = [item.path for item in family(record)]
        assert len(set(paths)) == len(paths)
    assert multiset(first.lines + second.lines) == whole(job, 3)
    # In the order in which they were yielded.
    assert [line["inner"] for line in second.lines if line["id"] == 0] == [
        "inner1(mid(outer0(a())))",
        "inner0(mid(outer1(a())))",
        "inner2(mid(outer1(a())))",
    ]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_generator_that_broke_passes_over_what_it_had_yielded(after: int) -> None:
    job = Job({"a": [], "split": ["a"], "b": ["split"], "beside": ["a"]}, fan_outs={"split": 4})
    job.breaking = {("split", "0"): after}
    first = run(job.pipeline, records(2))
    assert first.retries == [{"from": "split", "upstream": "", "yielded": {"split": after}}]
    assert len(first.lines) == 4 + after
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    new = [f"0-{number}" for number in range(after, 4)]
    assert job.take_calls() == [*(("b", place, 1) for place in new), ("split", "0", 1)]
    assert multiset(first.lines + second.lines) == whole(job, 2)


def test_a_generator_may_break_again_and_again() -> None:
    job = Job(
        {"split": [], "b": ["split"]}, fan_outs={"split": 5}, settings={"split": {"retry": 2, "on_error": "skip"}}
    )
    job.breaking = {("split", "0"): 1}
    ran = [run(job.pipeline, records(1))]
    # Before the next value of its own it is tried again; it is not skipped, for it has yielded.
    ran.append(again(job.pipeline, ran[-1]))
    assert (ran[-1].lines, ran[-1].retries) == ([], ran[0].retries)
    assert [attempt for stage, _, attempt in job.take_calls() if stage == "split"] == [1, 1, 2]
    job.breaking = {("split", "0"): 3}
    ran.append(again(job.pipeline, ran[-1]))
    assert ran[-1].retries == [{"from": "split", "upstream": "", "yielded": {"split": 3}}]
    job.heal()
    ran.append(again(job.pipeline, ran[-1]))
    assert multiset([line for each in ran for line in each.lines]) == whole(job, 1)


def test_two_generators_that_broke_both_go_on() -> None:
    edges = {"x": [], "y": [], "z": [], "of_x": ["x"], "of_y": ["y"], "of_z": ["z"]}
    job = Job(edges, fan_outs={"x": 3, "y": 3, "z": 3})
    job.breaking = {("x", "0"): 1, ("y", "0"): 2}
    first = run(job.pipeline, records(1))
    (retry,) = first.retries
    assert retry["yielded"] == {"x": 1, "y": 2}
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert Counter(job.stages_called()) == {"x": 1, "y": 1, "of_x": 2, "of_y": 1}
    assert multiset(first.lines + second.lines) == whole(job, 1)


def test_of_two_generators_that_go_on_one_may_break_again() -> None:
    job = Job({"x": [], "y": [], "of_x": ["x"], "of_y": ["y"]}, fan_outs={"x": 3, "y": 3}, seconds={"of_y": 1})
    job.breaking = {("x", "0"): 1, ("y", "0"): 1}
    first = run(job.pipeline, records(1))
    job.breaking = {("x", "0"): 1}
    second = again(job.pipeline, first)
    assert [line["y"] for line in second.lines] == ["y1()", "y2()"]  # they are kept, as after any other yield
    assert second.retries == [{"from": "x", "upstream": "", "yielded": {"x": 1}}]
    job.heal()
    third = again(job.pipeline, second)
    assert multiset(first.lines + second.lines + third.lines) == whole(job, 1)


def test_a_stage_that_is_new_in_the_job_does_not_make_a_generator_forget_what_it_yielded() -> None:
    job = Job({"x": [], "of_x": ["x"]}, fan_outs={"x": 3})
    job.breaking = {("x", "0"): 1}
    first = run(job.pipeline, records(1))
    job = Job({"x": [], "of_x": ["x"], "new": []}, fan_outs={"x": 3}, seconds={"x": 1})
    job.failing = {("new", "0")}
    second = again(job.pipeline, first)
    assert second.retries == [{"from": "new", "upstream": "", "yielded": {"x": 1}}]
    job.heal()
    third = again(job.pipeline, second)
    assert [line["x"] for line in third.lines] == ["x1()", "x2()"]


def test_a_generator_and_a_child_of_it_come_again_together() -> None:
    job = Job({"split": [], "b": ["split"]}, fan_outs={"split": 3})
    job.breaking, job.failing = {("split", "0"): 2}, {("b", "0-0")}
    first = run(job.pipeline, records(1))
    assert len(first.letters) == 2
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert job.take_calls() == [("b", "0-0", 1), ("b", "0-2", 1), ("split", "0", 1)]
    assert len(second.settled) == 1
    assert multiset(first.lines + second.lines) == whole(job, 1)


def test_a_child_that_fails_again_takes_no_other_with_it() -> None:
    job = Job({"split": [], "b": ["split"]}, fan_outs={"split": 3})
    job.failing = {("b", "0-0"), ("b", "0-2")}
    first = run(job.pipeline, records(1))
    job.failing = {("b", "0-2")}
    second = again(job.pipeline, first)
    assert [line["split"] for line in second.lines] == ["split0()"]
    assert second.retries == [{"from": "b", "upstream": "", "child": [2]}]


# What has to start from its source


def from_the_source(job: Job, count: int, first_retry: Any = None) -> None:
    first = run(job.pipeline, records(count))
    assert first.retries == [first_retry] * len(first.letters)
    job.take_calls()
    job.heal()
    second = again(job.pipeline, first)
    assert {item.reentry.parts for item in second.settled} == {()}
    called = Counter(job.stages_called())
    again_whole = {letter["index"] for letter in first.dead}
    lines = whole(job, count)
    kept = [line for line in first.lines if line["id"] not in again_whole]
    assert multiset(kept + second.lines) == lines
    first_stage = job.pipeline.plan().first[0]
    assert called[first_stage] == len(again_whole)


def test_all_or_nothing_starts_from_the_source() -> None:
    job = Job({"a": [], "split": ["a"], "b": ["split"]}, fan_outs={"split": 3}, on_partial="drop")
    job.failing = {("b", "1-1")}
    from_the_source(job, 3)


def test_a_record_whose_children_were_given_up_with_it_starts_from_the_source() -> None:
    job = Job({"a": [], "split": ["a"], "b": ["split"], "beside": ["a"]}, fan_outs={"split": 2}, seconds={"beside": 1})
    job.failing = {("beside", "0"), ("b", "0-0")}  # the child's letter alone would forget the record's
    from_the_source(job, 2)


def test_a_generator_that_broke_before_its_record_was_given_up_starts_from_the_source() -> None:
    job = Job({"a": [], "split": ["a"], "b": ["split"], "beside": ["a"]}, fan_outs={"split": 3}, seconds={"beside": 1})
    job.failing, job.breaking = {("beside", "0")}, {("split", "0"): 2}
    from_the_source(job, 1)


def test_a_child_of_a_record_that_was_dropped_starts_from_the_source() -> None:
    """In one run nothing of it would have been written."""

    async def beside(record: Any) -> Any:
        await asyncio.sleep(1)
        return drop("no")

    job = Job({"a": [], "split": ["a"], "b": ["split"]}, fan_outs={"split": 2})
    job.pipeline.add_stage("beside", beside)
    job.failing = {("b", "0-0")}
    first = run(job.pipeline, records(1))
    assert (first.retries, first.lines) == ([None], [])
    job.heal()
    second = again(job.pipeline, first)
    assert (second.lines, second.letters) == ([], [])


@dataclass
class Context:
    id: int
    x: str = ""


def test_the_context_style_starts_from_the_source() -> None:
    broken, calls = True, list[str]()

    async def a(ctx: Context) -> None:
        calls.append("a")
        ctx.x = "a"

    async def b(ctx: Context) -> None:
        if broken:
            raise ValueError("so")
        ctx.x += "b"

    pipeline = Pipeline.linear(a, b, context=Context)
    first = run(pipeline, records(1))
    assert first.retries == [None]
    broken = False
    assert again(pipeline, first).lines == [{"id": 0, "x": "ab"}]
    assert calls == ["a", "a"]


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {"deep": [{"a": (1,)}]},
        {1: 2},
        Context(1),
        {"x": float("nan")},
        float("inf"),
        b"x",
        "\ud800",
        {"\ud800": 1},
        10**5000,
        type("Text", (str,), {})("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_that_would_come_back_as_something_else_starts_from_the_source(value: Any) -> None:
    (letter,) = results_with(value)
    assert letter["retry"] is None


def test_a_result_inside_itself_or_too_deep_starts_from_the_source() -> None:
    inside: list[Any] = []
    inside += [inside, inside]
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for value in (inside, deep):
        (letter,) = results_with(value)
        assert letter["retry"] is None


@pytest.mark.parametrize(
    "value", [None, True, 0, -(10**30), 1.5, "é\n", [], {}, [{"a": [None, {"b": [0.1, "x"]}]}]], ids=repr
)
def test_a_result_of_the_types_of_json_comes_back(value: Any) -> None:
    given: list[Any] = []
    (letter,) = results_with(value, given)
    assert letter["retry"] == {"from": "fails", "upstream": ""}
    assert given == [value, value]
    assert type(given[0]) is type(given[1])


def results_with(value: Any, given: list[Any] | None = None) -> list[dict[str, Any]]:
    """The letters of a record that failed behind a stage that had returned the value; then it comes again."""

    async def gives(record: Any) -> Any:
        return value

    async def fails(gives: Any) -> None:
        if given is not None:
            given.append(gives)
        raise ValueError("so")

    pipeline = Pipeline("values")
    pipeline.add_stage("gives", gives)
    pipeline.add_stage("fails", fails)
    first = run(pipeline, records(1))
    if given is not None:
        again(pipeline, first)
    return first.dead
