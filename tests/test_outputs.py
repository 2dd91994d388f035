"""Lines made of many settled items at once are those made of each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.adapters.jsonl.encode import encode_strictly
from stageflow.errors import ResultError
from stageflow.item import Failure, Item, Note
from stageflow.output import bulk_maker, output_record
from stageflow.protocols import unchanged


def pipeline(kind: str) -> Pipeline:
    """Two stages a and b: in a row, side by side, or with something left out."""
    made = Pipeline("job")
    made.add_stage("a", lambda x: x)
    made.add_stage("b", lambda x: x, depends_on=[] if kind == "beside" else ["a"], emit=kind != "hidden")
    if kind == "emitted":
        made.emit("b", "x")
    return made


def item(index: int, **results: Any) -> Item:
    made = Item(index, {"b": "of the input", "x": index}, 0)
    made.results.update(results)
    return made


def noted() -> Item:
    made = item(9, a=1, b=None)
    made.note("b", Note("skipped", None, 0))
    return made


def failed() -> Item:
    made = item(9, a=1)
    made.failure, made.closed = Failure("b", LookupError("gone"), 1), True
    return made


def no_mapping() -> Item:
    made = item(9, a=1, b=2)
    made.record = "text"
    return made


@pytest.mark.parametrize("kind", ["row", "beside", "hidden", "emitted"])
def test_ordinary_items_make_the_lines_they_make_alone(kind: str) -> None:
    plan, lines, indices = pipeline(kind).plan(), list[Any](), list[int]()
    items = [item(0, a=1, b=2), item(1, b=3, a=None), item(2, a=[4], b={})]
    assert bulk_maker(plan, unchanged, sized=False)(iter(items), indices, lines, 0) == 0
    alone = [output_record(each, plan) for each in items]
    assert [list(line.items()) for line in lines[::2]] == [list(line.items()) for line in alone[::2]]
    assert (indices, lines) == ([0, 1, 2], alone)
    assert all(line is not each.record for line, each in zip(lines, items, strict=True))


@pytest.mark.parametrize("odd", [noted, failed, no_mapping, lambda: item(9, a=1), lambda: item(9, a=1, b={1, 2})])
def test_the_first_that_is_not_ordinary_is_left_to_others(odd: Callable[[], Item]) -> None:
    lines, indices = list[Any](), list[int]()
    each = iter([item(0, a=1, b=2), odd(), item(2, a=1, b=2)])
    make = bulk_maker(pipeline("row").plan(), encode_strictly, sized=True)
    assert make(each, indices, lines, 1000) == len(lines[0])
    assert (indices, lines) == ([0], [b'{"b":2,"x":0,"a":1}\n'])
    assert [rest.index for rest in each] == [2], "it was taken, and what comes after it was not"


def test_lines_are_made_up_to_so_many_bytes() -> None:
    lines, indices = list[Any](), list[int]()
    make = bulk_maker(pipeline("row").plan(), encode_strictly, sized=True)
    assert make(iter([item(index, a=1, b=2) for index in range(9)]), indices, lines, 50) == 60
    assert indices == [0, 1, 2]


def test_an_error_that_is_no_refusal_is_not_kept_quiet() -> None:
    def encode(record: Any) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bulk_maker(pipeline("row").plan(), encode, sized=True)(iter([item(0, a=1, b=2)]), [], [], 0)

    def refuse(record: Any) -> bytes:
        raise ResultError("no")

    assert bulk_maker(pipeline("row").plan(), refuse, sized=True)(iter([item(0, a=1, b=2)]), [], [], 0) == 0
