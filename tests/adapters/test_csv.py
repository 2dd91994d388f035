"""CSV as a source: records over lines, marks between them, and what is refused or set aside."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stageflow.adapters.separated import CsvSource
from stageflow.commit import InputMark
from stageflow.errors import InputDamaged, RecordError, RequestError
from stageflow.item import BadRecord


def read(source: CsvSource, start: InputMark | None = None) -> tuple[list[tuple[int, Any]], list[InputMark]]:
    async def everything() -> tuple[list[tuple[int, Any]], list[InputMark]]:
        entries, marks = [], []
        async for portion in source.read(start):
            entries += portion
            marks += source.take_marks()
        return entries, [*marks, *source.take_marks()]

    return asyncio.run(everything())


def source(path: Path, data: bytes, *, block: int = 1 << 16, **options: Any) -> CsvSource:
    path.write_bytes(data)
    return CsvSource(str(path), block_bytes=block, **options)


def errors(entries: Sequence[tuple[int, Any]]) -> dict[int, str]:
    return {index: value.error.message for index, value in entries if isinstance(value, BadRecord)}


TEXTS = st.text(st.sampled_from('ab,;"\n\r\t é\u2028\U0001f600'), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(TEXTS, min_size=3, max_size=3), max_size=12),
    ends=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 60),
    last=st.booleans(),
)
def test_what_was_written_comes_back_and_reading_begins_at_any_mark(
    tmp_path: Path, rows: list[list[str]], ends: str, block: int, last: bool
) -> None:
    rows = [row for row in rows if row != ["", "", ""]] if not last else rows
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerows([["x", "y", "z"], *rows])
    data = text.getvalue().encode()
    made = source(tmp_path / "in.csv", data if last else data.removesuffix(ends.encode()), block=block)
    expected = list(enumerate(dict(zip("xyz", row, strict=True)) for row in rows))
    entries, marks = read(made)
    assert entries == expected
    assert marks[-1].bytes == len(data) - (0 if last else len(ends))
    assert made.first_difference(marks) is None
    for mark in marks:
        again, after = read(made, mark)
        assert again == expected[mark.lines :]
        assert after == [later for later in marks if later.bytes > mark.bytes]


def test_a_header_alone_and_nothing_at_all_hold_no_records(tmp_path: Path) -> None:
    for data in (b"", b"x,y", b"x,y\n", b"\xef\xbb\xbfx,y\r\n\r\n"):
        made = source(tmp_path / "in.csv", data)
        made.check()
        assert read(made)[0] == []


def test_a_mark_of_bytes_at_the_start_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read(source(tmp_path / "in.csv", b"\xef\xbb\xbfx\n1\n"))[0] == [(0, {"x": "1"})]
    assert read(source(tmp_path / "in.csv", b'\xef\xbb\xbf"x"\n1\n'))[0] == [(0, {"x": "1"})]


@pytest.mark.parametrize("block", [5, 1000])
def test_what_is_no_record_is_set_aside_with_its_number_and_line(tmp_path: Path, block: int) -> None:
    data = b'x,y\n1,2\n3\n"a\nb",4\n\n5,6,7\n"8"8,9\n\xff,1\n10,11\n'
    entries, _ = read(source(tmp_path / "in.csv", data, block=block))
    assert [(index, value) for index, value in entries if type(value) is dict] == [
        (0, {"x": "1", "y": "2"}),
        (2, {"x": "a\nb", "y": "4"}),
        (6, {"x": "10", "y": "11"}),
    ]
    assert errors(entries) == {
        1: "WrongFields: 1 values, the header has 2 (record 2, line 3)",
        3: "WrongFields: 3 values, the header has 2 (record 4, line 7)",
        4: "InvalidCSV: ',' expected after '\"' (record 5, line 8)",
        5: "InvalidEncoding: it is not UTF-8 (record 6, line 9)",
    }
    bad = {index: value for index, value in entries if isinstance(value, BadRecord)}
    assert bad[5].raw == b"\xff,1"
    assert isinstance(bad[5].error, RecordError)
    assert bad[5].error.line == 9


def test_behind_a_quote_that_is_never_closed_reading_goes_on_in_the_next_line(tmp_path: Path) -> None:
    data = b'x,y\n1,"2\n3,4\n5,6\n'
    entries, _ = read(source(tmp_path / "in.csv", data))
    assert errors(entries) == {0: "InvalidCSV: a quote that opens here is never closed (record 1, line 2)"}
    assert entries[1:] == [(1, {"x": "3", "y": "4"}), (2, {"x": "5", "y": "6"})]


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    data = b"x,y\n1,2\n" + b"z" * 5000 + b",\n3,4\n"
    made = source(tmp_path / "in.csv", data, block=100, max_record_bytes=1000)
    entries, marks = read(made)
    assert [value for _, value in entries if type(value) is dict] == [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]
    assert errors(entries) == {1: "RecordTooLarge (record 2, line 3)"}
    for mark in marks:
        assert [index for index, _ in read(made, mark)[0]] == list(range(mark.lines, len(entries)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"x,y,x\n1,2,3\n", 'two columns named "x"'),
        ("x,y\n1,2\n".encode("utf-16"), "looks like UTF-16"),
        (b'"x"y,z\n', "is not CSV: its header"),
        (b"x,y\n" + b"1\n" * 20, "is not CSV: 20 of its first 20 lines hold no record"),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        source(tmp_path / "in.csv", data).check()


def test_compressed_text_and_other_delimiters(tmp_path: Path) -> None:
    made = source(tmp_path / "in.tsv.gz", gzip.compress(b"x\ty\n1,5\t2\n"), delimiter="\t")
    made.check()
    assert read(made)[0] == [(0, {"x": "1,5", "y": "2"})]
    assert made.estimate() == 1


def test_text_that_ends_early_gives_what_is_whole(tmp_path: Path) -> None:
    data = gzip.compress(b"x,y\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000)))
    made = source(tmp_path / "in.csv.gz", data[: len(data) // 2], block=1000)
    found: list[Any] = []

    async def everything() -> None:
        async for portion in made.read():
            found.extend(portion)

    with pytest.raises(InputDamaged, match=r"in\.csv\.gz ends early"):
        asyncio.run(everything())
    assert len(found) > 1000
    assert found == [(n, {"x": str(n), "y": str(n * n)}) for n in range(len(found))]


def test_a_value_that_changed_is_found_and_more_at_the_end_is_not_a_change(tmp_path: Path) -> None:
    rows = [b"%d,%d\n" % (n, n) for n in range(100)]
    made = source(tmp_path / "in.csv", b"x,y\n" + b"".join(rows), block=100)
    _, marks = read(made)
    with open(tmp_path / "in.csv", "ab") as file:
        file.write(b"7,7\n")
    assert made.first_difference(marks) is None
    assert read(made, marks[-1])[0] == [(100, {"x": "7", "y": "7"})]
    rows[50] = b"50,51\n"
    (tmp_path / "in.csv").write_bytes(b"x,y\n" + b"".join(rows))
    first, last = made.first_difference(marks) or (0, 0)
    assert first <= 51 <= last
    assert made.estimate() == pytest.approx(100, rel=0.2)
