"""From the lines of dead letters to records that come in again, and what of a letter is not believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from reentries import Job

from stageflow.commit import LetterPlace
from stageflow.item import Note, Part, Reentry
from stageflow.protocols import Entry
from stageflow.retries import reentries

EDGES = {"a": [], "b": ["a"], "split": ["b"], "of_it": ["split"], "beside": ["a"], "both": ["of_it", "beside"]}
PLAN = Job(EDGES, fan_outs={"split": 3}).pipeline.plan()
UPSTREAM = {"b": "before b", "of_it": "before of_it"}
AT_B = {"from": "b", "upstream": "before b"}
ABOVE = {"a": 1, "b": 2, "beside": 3, "split": "x"}


def letter(index: int, retry: Any = None, stage: str | None = "b", **other: Any) -> bytes:
    return json.dumps(
        {"index": index, "record": {"id": index}, "stage": stage, "results": {"a": 1}, "retry": retry} | other
    ).encode()


def of_child(*place: int, **retry: Any) -> dict[str, Any]:
    return {"retry": {"from": "of_it", "upstream": "before of_it", "child": list(place), **retry}, "results": ABOVE}


def read(*lines: bytes, plan: Any = PLAN) -> tuple[list[Entry], list[int]]:
    """The entries, and the numbers of the letters that were passed over."""
    passed_over: list[int] = []
    letters = [(LetterPlace(number, index_of(line), 0, len(line)), line) for number, line in enumerate(lines)]
    entries = reentries(letters, plan, UPSTREAM, passed_over=lambda place: passed_over.append(place.number))
    return list(entries), passed_over


def index_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["index"])
    except (ValueError, TypeError, RecursionError):
        return 0


def parts_of(*lines: bytes, plan: Any = PLAN) -> tuple[Part, ...]:
    (((_, reentry),), _) = read(*lines, plan=plan)
    return reentry.parts


def test_a_letter_becomes_its_record_at_the_stage_that_failed() -> None:
    retry = AT_B | {"notes": {"a": {"outcome": "degraded", "error": "E: so", "attempts": 2}}}
    entries, passed_over = read(letter(7, retry))
    part = Part("b", {"a": 1}, notes={"a": Note("degraded", "E: so", 2)})
    assert (entries, passed_over) == ([(7, Reentry({"id": 7}, (0,), (part,)))], [])


def test_the_letters_of_a_record_come_in_together() -> None:
    entries, _ = read(letter(1, AT_B), letter(4, **of_child(0)), letter(4, **of_child(2)), letter(5, AT_B))
    assert [(index, reentry.numbers) for index, reentry in entries] == [(1, (0,)), (4, (1, 2)), (5, (3,))]
    assert [part.path for part in entries[1][1].parts] == [(0,), (2,)]


def test_a_record_goes_from_its_source_where_one_of_its_letters_must() -> None:
    assert parts_of(letter(4, **of_child(0)), letter(4, **(of_child(1) | {"retry": None}))) == ()
    entries, passed_over = read(letter(0, **of_child(0)), b"{torn")
    assert (entries, passed_over) == ([(0, Reentry({"id": 0}, (0, 1)))], [])  # the torn one is settled with it


def test_it_is_lazy() -> None:
    asked: list[int] = []

    def letters() -> Iterator[tuple[LetterPlace, bytes]]:
        for number in range(5):
            asked.append(number)
            yield LetterPlace(number, number, 0, 0), letter(number, AT_B)

    next(reentries(letters(), PLAN, UPSTREAM))
    assert asked == [0, 1]  # the second says that the first record has no more


def test_letters_that_hold_no_record_are_passed_over() -> None:
    entries, passed_over = read(
        letter(0, stage=None, record="not json"),
        json.dumps({"index": 1, "stage": None, "raw_b64": "eA==", "results": {}}).encode(),
        b"{torn",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        letter(3, AT_B),
    )
    assert (len(entries), passed_over) == (1, [0, 1, 2, 3, 4, 5])


def test_an_object_that_failed_behind_its_last_stage_goes_from_its_source() -> None:
    assert read(letter(0, stage=None)) == ([(0, Reentry({"id": 0}, (0,)))], [])


def test_integers_of_any_size_come_back_as_they_were() -> None:
    ((_, reentry),), _ = read(letter(0, AT_B, record={"id": 10**30 + 1}, results={"a": -(10**30)}))
    assert (reentry.record, reentry.parts[0].results) == ({"id": 10**30 + 1}, {"a": -(10**30)})


@pytest.mark.parametrize(
    "other",
    [
        {"retry": AT_B | {"from": "gone"}},
        {"retry": AT_B | {"upstream": "before b, once"}},
        {"retry": {"from": "b"}},
        {"retry": {"upstream": "before b"}},
        {"retry": "b"},
        {"retry": AT_B | {"from": ["b"]}},
        {"retry": AT_B | {"child": [0]}},
        {"retry": AT_B | {"notes": {"a": {"outcome": "degraded"}}}},
        {"retry": AT_B | {"notes": {"a": {"outcome": "done", "error": None, "attempts": 1}}}},
        {"retry": AT_B | {"yielded": {"b": 1}}},
        {"retry": AT_B | {"yielded": {"split": -1}}},
        {"retry": AT_B, "results": {}},
        {"retry": AT_B, "results": {"a": 1, "b": 2}},
        {"retry": AT_B, "results": None},
        of_child(),
        of_child(0, 0),
        of_child(0.5),
        of_child(True),
        of_child(-1),
        of_child(0) | {"results": {name: 0 for name in ABOVE if name != "beside"}},
    ],
    ids=str,
)
def test_what_no_longer_fits_the_job_goes_from_its_source(other: dict[str, Any]) -> None:
    assert parts_of(letter(0, **other)) == ()


def test_two_letters_of_one_item_go_from_the_source() -> None:
    assert parts_of(letter(4, **of_child(0)), letter(4, **of_child(0))) == ()


def test_a_job_that_is_all_or_nothing_by_now_goes_from_the_source() -> None:
    plan = Job(EDGES, fan_outs={"split": 3}, on_partial="drop").pipeline.plan()
    assert parts_of(letter(0, AT_B), plan=plan) == ()


def test_a_stage_of_the_parent_that_was_cut_off_is_not_missed() -> None:
    notes = {"a": {"outcome": "done", "error": None, "attempts": 1}}
    edges = {"a": [], "beside": ["a"], "split": [], "of_it": ["split"], "both": ["of_it", "beside"]}
    plan = Job(edges, fan_outs={"split": 3}).pipeline.plan()
    results = {"a": 1, "split": 2}
    (part,) = parts_of(letter(0, **(of_child(0, notes=notes) | {"results": results})), plan=plan)
    assert part.notes["a"].outcome == "done"
    assert parts_of(letter(0, **(of_child(0) | {"results": results})), plan=plan) == ()
