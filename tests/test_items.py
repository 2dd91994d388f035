"""Items, made one at a time and many at once."""

from __future__ import annotations

import pytest

from stageflow.errors import RecordError
from stageflow.item import BadRecord, Item, Reentry, items_of


def test_items_made_at_once_are_as_those_made_one_by_one() -> None:
    entries = [(3, {"x": 1}), (5, "text"), (6, None)]
    for made, (index, record) in zip(items_of(entries, 2), entries, strict=True):
        alone = Item(index, record, 2)
        assert made.record is record
        for name in (*(slot for slot in Item.__slots__ if slot != "__dict__"), "path", "failure", "attempts"):
            assert getattr(made, name) == getattr(alone, name), name


def test_each_has_results_of_its_own() -> None:
    first, second = items_of([(0, {}), (1, {})], 1)
    first.results["s"] = 1
    assert second.results == {}


@pytest.mark.parametrize("stand_in", [BadRecord(RecordError("no object")), Reentry({"x": 1}, (7,))])
def test_what_stands_for_a_record_ends_them(stand_in: object) -> None:
    assert [item.index for item in items_of([(0, {}), (1, {}), (2, stand_in), (3, {})], 1)] == [0, 1]
