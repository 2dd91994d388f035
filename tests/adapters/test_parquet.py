"""Parquet as a source and as what results are made into."""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from stageflow.adapters.forms import form_of
from stageflow.adapters.parquet import ParquetSource
from stageflow.commit import InputMark
from stageflow.errors import InputDamaged, RequestError
from stageflow.item import BadRecord

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(source: ParquetSource, start: InputMark | None = None) -> tuple[list[tuple[int, Any]], list[InputMark]]:
    async def everything() -> tuple[list[tuple[int, Any]], list[InputMark]]:
        entries, marks = [], []
        async for portion in source.read(start):
            entries += portion
            marks += source.take_marks()
        return entries, [*marks, *source.take_marks()]

    return asyncio.run(everything())


def written(path: Path, rows: list[dict[str, Any]], *, group: int = 1000, schema: Any = None) -> ParquetSource:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return ParquetSource(str(path))


ROWS = [{"n": n, "text": f"row {n}", "list": [n, None], "deep": {"x": n / 2}} for n in range(2500)]


def test_rows_are_records_and_reading_begins_at_any_mark(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", ROWS, group=400)
    source.check()
    assert source.estimate() == 2500
    assert source.peek(3) == list(enumerate(ROWS[:3]))
    entries, marks = read(source)
    assert entries == list(enumerate(ROWS))
    assert [mark.lines for mark in marks] == [400, 800, 1200, 1600, 2000, 2400, 2500]
    assert source.first_difference(marks) is None
    for mark in marks:
        again, after = read(source, mark)
        assert again == entries[mark.lines :]
        assert after == [later for later in marks if later.lines > mark.lines]


def test_other_rows_are_a_difference_and_the_same_in_front_of_others_are_none(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", ROWS, group=400)
    _, marks = read(source)
    before = source.identity()
    changed = [dict(row) for row in ROWS]
    changed[900]["n"] = -1
    assert written(tmp_path / "in.parquet", changed, group=400).first_difference(marks) == (801, 1200)
    assert not source.identity().same_file(before)
    assert written(tmp_path / "in.parquet", ROWS[:500], group=400).first_difference(marks[:1]) is None
    assert written(tmp_path / "in.parquet", ROWS[:300], group=400).first_difference(marks[:1]) == (1, 400)


def test_what_json_lacks_comes_as_text(tmp_path: Path) -> None:
    utc = datetime.UTC
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678000)
    columns = {
        "date": (pa.date32(), moment.date(), "2026-01-02"),
        "time": (pa.time32("ms"), moment.time(), "03:04:05.678000"),
        "local": (pa.timestamp("us"), moment, "2026-01-02T03:04:05.678000"),
        "zoned": (pa.timestamp("ms", tz="UTC"), moment.replace(tzinfo=utc), "2026-01-02T03:04:05.678000+00:00"),
        "nano": (pa.timestamp("ns"), 1_767_323_045_000_000_001, "2026-01-02T03:04:05.000000001"),
        "nano0": (pa.timestamp("ns", tz="UTC"), -1_000_000_000, "1969-12-31T23:59:59+00:00"),
        "took": (pa.duration("ms"), datetime.timedelta(seconds=1.5), 1.5),
        "price": (pa.decimal128(10, 2), Decimal("12.30"), "12.30"),
        "raw": (pa.binary(), b"\xff\x00", "/wA="),
        "fixed": (pa.binary(2), b"ab", "YWI="),
        "word": (pa.dictionary(pa.int32(), pa.string()), "a", "a"),
        "large": (pa.large_string(), "b", "b"),
        "big": (pa.uint64(), 2**64 - 1, 2**64 - 1),
        "map": (pa.map_(pa.string(), pa.date32()), {"d": moment.date()}, {"d": "2026-01-02"}),
        "pairs": (pa.map_(pa.int32(), pa.int32()), {1: 2}, [[1, 2]]),
        "dates": (pa.list_(pa.date32()), [moment.date(), None], ["2026-01-02", None]),
        "inner": (
            pa.struct([("d", pa.date32()), ("n", pa.int8())]),
            {"d": moment.date(), "n": 1},
            {"d": "2026-01-02", "n": 1},
        ),
        "nothing": (pa.null(), None, None),
    }
    schema = pa.schema([(name, kind) for name, (kind, _, _) in columns.items()])
    arrays = [
        pa.array([list(value.items()) if pa.types.is_map(kind) else value, None], kind)
        for kind, value, _ in columns.values()
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / "in.parquet")
    (_, first), (_, second) = read(ParquetSource(str(tmp_path / "in.parquet")))[0]
    assert first == {name: expected for name, (_, _, expected) in columns.items()}
    json.dumps(first)
    assert second == dict.fromkeys(columns)


def test_what_has_no_form_is_a_bad_record_in_its_place(tmp_path: Path) -> None:
    rows = [{"x": 1.0, "l": [1.0]}, {"x": math.nan, "l": None}, {"x": 2.0, "l": [math.inf]}, {"x": None, "l": None}]
    entries, _ = read(written(tmp_path / "in.parquet", rows))
    assert [type(value) for _, value in entries] == [dict, BadRecord, BadRecord, dict]
    assert [value.error.message for _, value in entries[1:3]] == [
        'NaN is not JSON (column "x")',
        'Infinity is not JSON (column "l")',
    ]


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    written(path, ROWS)
    whole = path.read_bytes()
    for data in (b"", b'{"x": 1}\n' * 10, whole[:-100], whole[100:]):
        path.write_bytes(data)
        with pytest.raises(RequestError, match=r"in\.parquet is not Parquet|in\.parquet is damaged"):
            ParquetSource(str(path)).check()
    with pytest.raises(RequestError, match=r"gone\.parquet: No such file"):
        ParquetSource(str(tmp_path / "gone.parquet")).check()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), path)
    with pytest.raises(RequestError, match='two columns named "x"'):
        ParquetSource(str(path)).check()


def test_damage_in_the_middle_is_told_behind_the_rows_before(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    source = written(path, ROWS, group=1000)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + 200] = bytes(200)
    path.write_bytes(bytes(data))
    found: list[Any] = []

    async def everything() -> None:
        async for portion in source.read():
            found.extend(portion)

    with pytest.raises(InputDamaged, match=r"in\.parquet is damaged in row group 1"):
        asyncio.run(everything())
    assert found == list(enumerate(ROWS[:1000]))


def table(*records: object) -> tuple[list[dict[str, Any]], list[str]]:
    form, data = form_of("out.parquet"), io.BytesIO()
    assert form is not None
    notes = form.make(lambda: iter([json.dumps(record).encode() + b"\n" for record in records]), data.write)
    data.seek(0)
    return pq.read_table(data).to_pylist(), notes


def test_types_are_those_of_all_lines(tmp_path: Path) -> None:
    records = [
        {"n": 1, "f": 1, "l": [], "d": {"a": None}, "none": None, "b": True},
        {"f": 1.5, "l": [{"x": 1}], "d": {"b": [1.5]}, "none": None},
        {"n": 2**63 - 1, "late": "é", "l": [{"y": "z"}], "d": None, "none": None},
    ]
    rows, notes = table(*records)
    assert notes == []
    assert rows == [
        {"n": 1, "f": 1.0, "l": [], "d": {"a": None, "b": None}, "none": None, "b": True, "late": None},
        {
            "n": None,
            "f": 1.5,
            "l": [{"x": 1, "y": None}],
            "d": {"a": None, "b": [1.5]},
            "none": None,
            "b": None,
            "late": None,
        },
        {"n": 2**63 - 1, "f": None, "l": [{"x": None, "y": "z"}], "d": None, "none": None, "b": None, "late": "é"},
    ]


def test_types_that_do_not_go_together_stand_as_json(tmp_path: Path) -> None:
    records = [
        {"m": 1, "deep": {"x": [1]}, "big": 2**70, "round": 2**60, "e": {}},
        {"m": "1", "deep": {"x": ["a"]}, "big": 1, "round": 0.5, "e": {}},
    ]
    rows, notes = table(*records)
    assert rows == [
        {"m": "1", "deep": {"x": ["1"]}, "big": str(2**70), "round": str(2**60), "e": "{}"},
        {"m": '"1"', "deep": {"x": ['"a"']}, "big": "1", "round": "0.5", "e": "{}"},
    ]
    assert notes == [
        f'column "{name}": values of different types stand as JSON text (first in line {line})'
        for name, line in (("big", 1), ("m", 2), ("deep", 2), ("round", 2))
    ]


@pytest.mark.parametrize("count", [0, 1, 40_000])
def test_many_rows_come_back(tmp_path: Path, count: int) -> None:
    records = [{"n": n, "text": f"row {n}"} for n in range(count)]
    rows, _ = table(*records)
    assert rows == records
