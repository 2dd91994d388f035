"""Several inputs as one source: numbering, marks, and what may have changed between two runs."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from stageflow import Files, RequestError, StateMismatch
from stageflow.adapters.chain import ChainedSource
from stageflow.adapters.jsonl import JsonlSource
from stageflow.commit import InputMark
from stageflow.files import expanded


def chained(folder: Path, *names: str) -> ChainedSource:
    return ChainedSource([JsonlSource(str(folder / name), block_bytes=64) for name in names])


def written(folder: Path, name: str, first: int, count: int, *, end: str = "\n") -> None:
    text = "\n".join(f'{{"n": {n}}}' for n in range(first, first + count)) + end
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (folder / name).write_bytes(data)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Twenty records in three files, the first of which does not end its last line; an empty one is between them."""
    written(tmp_path, "a.jsonl", 0, 10, end="")
    (tmp_path / "empty.jsonl").write_text("")
    written(tmp_path, "b.jsonl.gz", 10, 5)
    written(tmp_path, "c.jsonl", 15, 5)
    return tmp_path


NAMES = ("a.jsonl", "empty.jsonl", "b.jsonl.gz", "c.jsonl")


def read(source: ChainedSource, start: InputMark | None = None) -> tuple[list[tuple[int, Any]], list[InputMark]]:
    return asyncio.run(read_all(source, start))


async def read_all(
    source: ChainedSource, start: InputMark | None = None
) -> tuple[list[tuple[int, Any]], list[InputMark]]:
    entries, marks = [], []
    async for portion in source.read(start):
        entries += list(portion)
        marks += source.take_marks()
    return entries, [*marks, *source.take_marks()]


def test_records_are_numbered_through(three: Path) -> None:
    source = chained(three, *NAMES)
    source.check()
    entries, marks = read(source)
    assert entries == [(n, {"n": n}) for n in range(20)]
    assert marks[-1].lines == 20
    assert [source.place(n) for n in (0, 9, 10, 14, 15, 19)] == [
        (str(three / name), line)
        for name, line in (
            ("a.jsonl", 1),
            ("a.jsonl", 10),
            ("b.jsonl.gz", 1),
            ("b.jsonl.gz", 5),
            ("c.jsonl", 1),
            ("c.jsonl", 5),
        )
    ]
    assert not source.changed()


def test_reading_begins_at_any_mark(three: Path) -> None:
    _, marks = read(chained(three, *NAMES))
    assert len(marks) >= 4
    for mark in marks:
        source = chained(three, *NAMES)
        entries, after = read(source, mark)
        assert entries == [(n, {"n": n}) for n in range(mark.lines, 20)]
        assert after == [later for later in marks if later.bytes > mark.bytes]
        source.recall(marks)
        assert source.place(3) == (str(three / "a.jsonl"), 4)


def test_marks_hold_while_nothing_changes_and_when_more_comes_behind(three: Path) -> None:
    before = chained(three, *NAMES)
    _, marks = read(before)
    assert chained(three, *NAMES).first_difference(marks) is None
    written(three, "d.jsonl", 20, 5)
    with open(three / "c.jsonl", "a") as file:
        file.write('{"n": 99}\n')
    more = chained(three, *NAMES, "d.jsonl")
    assert more.first_difference(marks) is None
    assert not more.identity().same_file(before.identity())
    entries, _ = read(more, marks[-1])
    assert [index for index, _ in entries] == list(range(20, 26))


def test_blank_lines_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"n": 0}\n\n')
    (tmp_path / "b").write_text('\n{"n": 3}\n\n')
    source = chained(tmp_path, "a", "b")
    entries, marks = read(source)
    assert [index for index, _ in entries] == [0, 3]
    assert source.blank == 3
    assert sorted(place for mark in marks for place in mark.blank) == [1, 2, 4]


@pytest.mark.parametrize("how", ["changed", "reordered", "removed", "fewer", "grown"])
def test_an_earlier_input_that_is_another_is_named(three: Path, how: str) -> None:
    _, marks = read(chained(three, *NAMES))
    names: tuple[str, ...] = NAMES
    match how:
        case "changed":
            written(three, "b.jsonl.gz", 30, 5)
            told = r"b\.jsonl\.gz is not what input 3 was \(first difference in lines 1-\d\)"
        case "reordered":
            names, told = ("a.jsonl", "empty.jsonl", "c.jsonl", "b.jsonl.gz"), r"c\.jsonl is not what input 3 was"
        case "removed":
            names, told = ("empty.jsonl", "b.jsonl.gz", "c.jsonl"), "had read 4 inputs, and there are 3 now"
        case "fewer":
            names, told = NAMES[:3], "had read 4 inputs, and there are 3 now"
        case "grown":
            with open(three / "a.jsonl", "a") as file:
                file.write('\n{"n": 10}\n')
            told = r"a\.jsonl or .*/empty\.jsonl is not of the size it was"
    with pytest.raises(StateMismatch, match=told):
        chained(three, *names).first_difference(marks)


def test_what_can_be_read_once_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "a", 0, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match=r"pipe can be read only once"):
        chained(tmp_path, "a", "pipe").check()
    with pytest.raises(RequestError, match=r"standard input can be read only once"):
        ChainedSource([JsonlSource(str(tmp_path / "a")), JsonlSource("-")]).check()


def test_patterns_stand_for_files_in_order(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(three)
    assert expanded("*.jsonl") == ["a.jsonl", "c.jsonl", "empty.jsonl"]
    assert expanded("[ab].jsonl*") == ["a.jsonl", "b.jsonl.gz"]
    (three / "[x].jsonl").write_text("")
    assert expanded("[x].jsonl") == ["[x].jsonl"]
    with pytest.raises(RequestError, match=r"no file matches emty\*\.jsonl") as refusal:
        expanded("emty*.jsonl")
    assert refusal.value.hint == 'did you mean "empty.jsonl"?'


def test_files_take_names_and_lists_of_names() -> None:
    assert Files("a", ["b", Path("c")]).paths == ("a", "b", Path("c"))
    assert Files(["a"]) == Files("a")
