"""The context style as values: what a stage sees, what is kept of an attempt, and what happens where branches meet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.contexts import View, commit, fields_of, fork, merge, required_fields, start
from stageflow.errors import ContextConflict, RecordError


@dataclasses.dataclass
class Context:
    query: str
    hits: list[str] = dataclasses.field(default_factory=list)
    answer: str | None = None
    score: float = 0.0
    made: int = dataclasses.field(default=7, init=False)


ABOVE = {"first": frozenset[str](), "left": frozenset({"first"}), "right": frozenset({"first"})}


def step(before: View, stage: str, **changes: Any) -> View:
    """What a stage makes of a view: a copy, changed, committed."""
    after = fork(before)
    for name, value in changes.items():
        setattr(after, name, value)
    return commit(before, after, stage)


def begin() -> View:
    return start(Context, {"query": "q"})


# The start


def test_a_context_is_built_from_the_fields_of_its_names() -> None:
    view = start(Context, {"query": "q", "score": 2.0, "id": 4})
    assert view.value == Context("q", score=2.0)
    assert view.writers == {}


def test_each_record_has_defaults_of_its_own() -> None:
    assert begin().value.hits is not begin().value.hits


def test_a_field_with_no_default_is_required() -> None:
    assert required_fields(Context) == ("query",)
    with pytest.raises(RecordError, match='the record has no field "query"'):
        start(Context, {"score": 1.0})


def test_a_record_that_is_no_object_is_refused() -> None:
    with pytest.raises(RecordError, match="Context can't be built from a int: the record is no object"):
        start(Context, 3)


def test_fields_added_to_an_instance_count() -> None:
    view = begin()
    view.value.extra = 1
    assert fields_of(view.value)["extra"] == 1


def test_slots_have_fields_too() -> None:
    @dataclasses.dataclass(slots=True)
    class Slim:
        x: int
        y: int = 0

    view = step(start(Slim, {"x": 1}), "s", y=5)
    assert fields_of(view.value) == {"x": 1, "y": 5}
    assert view.writers == {"y": "s"}


# One attempt


def test_a_failed_attempt_leaves_no_trace() -> None:
    view = begin()
    attempt = fork(view)
    attempt.answer, attempt.hits = "half", ["h"]
    assert view.value == Context("q")


def test_a_copy_is_shallow() -> None:
    view = begin()
    assert fork(view) is not view.value
    assert fork(view).hits is view.value.hits


def test_what_changed_is_noted_with_its_writer() -> None:
    view = step(step(begin(), "first", answer="a"), "left", score=1.0)
    assert view.writers == {"answer": "first", "score": "left"}
    assert step(view, "right", answer="b").writers == {"answer": "right", "score": "left"}


def test_writing_the_same_value_again_is_no_change() -> None:
    before = step(begin(), "first", answer="a")
    assert step(before, "left", answer=before.value.answer).writers == {"answer": "first"}


# Where branches meet


def test_parallel_branches_meet() -> None:
    first = step(begin(), "first", hits=["h"])
    merged = merge([step(first, "left", answer="a"), step(first, "right", score=1.0)], ABOVE)
    assert merged.value == Context("q", ["h"], "a", 1.0)
    assert merged.writers == {"hits": "first", "answer": "left", "score": "right"}


def test_merging_changes_none_of_the_views() -> None:
    first = begin()
    left, right = step(first, "left", answer="a"), step(first, "right", score=1.0)
    merge([left, right], ABOVE)
    assert (left.value.score, right.value.answer, first.value) == (0.0, None, Context("q"))


def test_the_later_writer_wins_in_any_order() -> None:
    first = step(begin(), "first", answer="draft")
    left, right = step(first, "left", answer="final"), step(first, "right", score=1.0)
    for views in ([left, right], [right, left]):
        assert merge(views, ABOVE).value.answer == "final"
        assert merge(views, ABOVE).writers["answer"] == "left"


def test_two_that_agree_are_no_conflict() -> None:
    first = begin()
    views = [step(first, "left", hits=["same"]), step(first, "right", hits=["same"])]
    assert merge(views, ABOVE).value.hits == ["same"]


def test_two_that_differ_are_a_conflict_that_names_both() -> None:
    first = begin()
    with pytest.raises(ContextConflict) as caught:
        merge([step(first, "left", answer="a"), step(first, "right", answer="b")], ABOVE)
    assert str(caught.value) == (
        'stages "left" and "right" both set "answer" and neither comes before the other; '
        "let one depend on the other, or set two fields"
    )


@given(st.data())
def test_branches_that_set_fields_of_their_own_meet_in_any_order(data: st.DataObject) -> None:
    names = ["hits", "answer", "score"]
    stages = [f"s{number}" for number in range(len(names))]
    above = {stage: frozenset[str]() for stage in stages}
    first = begin()
    values = {name: data.draw(st.integers(), label=name) for name in names}
    views = [step(first, stage, **{name: values[name]}) for stage, name in zip(stages, names, strict=True)]
    merged = merge(data.draw(st.permutations(views)), above)
    assert fields_of(merged.value) == {"query": "q", "made": 7, **values}


def test_a_frozen_context_whose_stages_return_copies_can_meet() -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        x: int
        a: int = 0
        b: int = 0

    first = start(Frozen, {"x": 1})
    left = commit(first, dataclasses.replace(first.value, a=1), "left")
    right = commit(first, dataclasses.replace(first.value, b=2), "right")
    assert merge([left, right], ABOVE).value == Frozen(1, 1, 2)
