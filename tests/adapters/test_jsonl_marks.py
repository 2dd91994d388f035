"""Marks in an input: where they stand, how reading begins at one, and what they say of a file that has changed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.jsonl import source as source_module
from stageflow.adapters.jsonl.marks import BEGINNING, Block, Text, first_difference, marked_blocks
from stageflow.adapters.memory import IterableSource
from stageflow.commit import InputMark
from stageflow.errors import InputDamaged, RequestError, StorageError
from stageflow.item import BadRecord

Seen = tuple[int, Any]
Place = tuple[int, int, str]


class Pieces:
    """A text in memory, of which a read gives as much as chance will have it."""

    def __init__(self, data: bytes, seed: int | None = None, *, at: int = 0, fails: Exception | None = None) -> None:
        self._data = data
        self._at = at
        self._draw = random.Random(seed)
        self._short = seed is not None
        self._fails = fails

    def read(self, size: int, /) -> bytes:
        assert size > 0
        size = self._draw.randint(1, size) if self._short else size
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        if not piece and self._fails is not None:
            raise self._fails
        return piece

    def fill(self, size: int, /) -> bytes:
        piece = self.read(size)
        while len(piece) < size and (more := self.read(size - len(piece))):
            piece += more
        return piece


def place(mark: InputMark) -> Place:
    return mark.lines, mark.bytes, mark.digest


def places(marks: list[InputMark]) -> list[Place]:
    """Where marks stand; one that is given once more, with blank lines, stands there once."""
    return list(dict.fromkeys(map(place, marks)))


def marks_of(data: bytes, block: int, start: InputMark = BEGINNING, *, mid_line: bool = False) -> list[InputMark]:
    blocks = marked_blocks(Pieces(data, at=start.bytes), block, start, mid_line=mid_line)
    return [block.mark for block in blocks if block.mark is not None]


def difference(data: bytes, marks: list[InputMark]) -> tuple[int, int] | None:
    def opened() -> AbstractContextManager[Text]:
        return nullcontext(Pieces(data, seed=len(data)))

    return first_difference(opened, marks)


async def read_all(source: JsonlSource, start: InputMark | None = None) -> tuple[list[Seen], list[InputMark]]:
    """The entries, and the marks as a run takes them: after each portion, and after the end."""
    seen: list[Seen] = []
    marks: list[InputMark] = []
    async for portion in source.read(start):
        seen += portion
        marks += source.take_marks()
    return seen, marks + source.take_marks()


def read(source: JsonlSource, start: InputMark | None = None) -> tuple[list[Seen], list[InputMark]]:
    return asyncio.run(read_all(source, start))


def plain(seen: list[Seen]) -> list[Any]:
    return [
        (index, (value.error.message, value.error.line, value.raw)) if isinstance(value, BadRecord) else (index, value)
        for index, value in seen
    ]


LINES = st.lists(
    st.sampled_from([b"", b" \r", b'{"a":1}', b"bad", b"[1]", b'{"a":"' + b"x" * 70 + b'"}', b"\0\0", b'{"a":"\xff"}']),
    max_size=30,
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    # A first record, for whether the whole is one array is another question.
    lines = [b"{}", *draw(LINES)]
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))


# Where they stand


@given(texts(), st.integers(4, 200), st.integers())
def test_blocks_end_with_lines_wherever_reads_end(data: bytes, block: int, seed: int) -> None:
    blocks = list(marked_blocks(Pieces(data), block, BEGINNING))
    assert list(marked_blocks(Pieces(data, seed), block, BEGINNING)) == blocks
    assert b"".join(block.data for block in blocks) == data
    assert all(len(found.data) <= block for found in blocks)
    at = 0
    for found in blocks[:-1]:
        end = found.data.rfind(b"\n") + 1
        assert (found.mark is not None) == bool(end)
        assert found.mark is None or found.mark.bytes == at + end
        at += len(found.data)
    assert blocks[-1].mark is not None
    assert blocks[-1].mark.bytes == len(data)


@given(texts(), st.integers(4, 200))
def test_a_mark_is_made_of_the_digest_before_and_the_bytes_between(data: bytes, block: int) -> None:
    before = BEGINNING
    for mark in marks_of(data, block):
        between = data[before.bytes : mark.bytes]
        assert mark.digest == hashlib.sha256(before.digest.encode() + between).hexdigest()
        assert mark.lines == data[: mark.bytes].count(b"\n") + (not data[: mark.bytes].endswith(b"\n"))
        assert mark.bytes > before.bytes
        before = mark
    assert before.bytes == len(data)


@given(texts(), st.integers(4, 200), st.booleans())
def test_a_source_that_nobody_asks_for_marks_has_the_same_entries_and_gives_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int, compressed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "in.jsonl"
    path.write_bytes(gzip.compress(data) if compressed else data)
    source = JsonlSource(str(path), block_bytes=block, marked=False)
    seen, marks = read(source)
    assert plain(seen) == plain(read(JsonlSource(str(path), block_bytes=block))[0])
    assert not marks
    assert source.identity() is not None
    assert not source.changed()


@given(texts(), st.integers(4, 200), st.booleans())
def test_blocks_come_cut_at_their_line_ends(data: bytes, block: int, mid_line: bool) -> None:
    for found in marked_blocks(Pieces(data, seed=block), block, BEGINNING, mid_line=mid_line):
        assert found.pieces == found.data.split(b"\n")


@given(texts(), st.integers(4, 200), st.booleans())
def test_reading_from_a_mark_is_reading_on(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int, compressed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "in.jsonl"
    path.write_bytes(gzip.compress(data) if compressed else data)
    source = JsonlSource(str(path), block_bytes=block)
    seen, marks = read(source)
    assert sorted(index for mark in marks for index in mark.blank) == [
        index
        for index, line in enumerate(data.split(b"\n"))
        if not line.strip(b" \t\r") and (line or index < marks[-1].lines)
    ]
    assert source.first_difference(marks) is None
    stood = places(marks)
    for at, mark in enumerate({place(mark): mark for mark in marks}.values()):
        rest, later = read(source, mark)
        assert plain(rest) == plain([entry for entry in seen if entry[0] >= mark.lines])
        assert places(later) == stood[at + 1 :]
        assert source.first_difference([*marks, *later]) is None


def test_marks_come_with_the_portion_that_ends_at_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n\n{}\n" * 3)

    async def scenario() -> list[list[tuple[int, tuple[int, ...]]]]:
        source = JsonlSource(str(path), block_bytes=7)
        taken = []
        async for portion in source.read():
            taken.append([(mark.lines, mark.blank) for mark in source.take_marks()])
            list(portion)
        taken.append([(mark.lines, mark.blank) for mark in source.take_marks()])
        return [*taken, [(mark.lines, mark.blank) for mark in source.take_marks()]]

    # Taken before a portion is iterated, its blank lines come with the next mark; those of the last with it once more.
    assert asyncio.run(scenario()) == [[(3, ())], [(6, (1,))], [(9, (4,))], [(9, (7,))], []]


def test_a_line_longer_than_a_block_has_a_mark_at_its_end_only() -> None:
    data = b"{}\n" + b"x" * 1000 + b"\n{}\n"
    assert [mark.bytes for mark in marks_of(data, 64)] == [3, len(data)]
    for length in range(200):
        found = [(mark.lines, mark.bytes) for mark in marks_of(b"{}\n" + b"x" * length, 64)]
        # The first line by itself where more than a block was there, which it shares with what follows otherwise.
        assert found in ([(1, 3), (2, 3 + length)], [(2, 3 + length)], [(1, 3)]), length
        assert (found == [(1, 3)]) == (length == 0)


def test_what_is_no_regular_file_has_neither_marks_nor_identity(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("-", str(tmp_path / "fifo"), os.devnull):
        source = JsonlSource(path)
        assert source.identity() is None
        assert source.first_difference([InputMark(1, 3, "x")]) is None
        assert (source.take_marks(), source.changed()) == ([], False)
    assert read(JsonlSource(os.devnull)) == ([], [])
    values = IterableSource([{}])
    assert values.identity() is None
    assert values.first_difference([]) is None
    assert (values.take_marks(), values.changed()) == ([], False)


def test_marks_that_nobody_takes_are_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{}\n\n" * 100)
    monkeypatch.setattr(source_module, "MARKS_KEPT", 50)
    source = JsonlSource(str(tmp_path / "in.jsonl"), block_bytes=4)

    async def untaken(portions: int) -> list[InputMark]:
        left = portions
        async for portion in source.read():
            list(portion)
            left -= 1
            if not left:
                source.take_marks()
        return source.take_marks()

    assert asyncio.run(untaken(51)) == []
    assert [mark.lines for mark in asyncio.run(untaken(50))] == list(range(102, 201, 2))


def test_what_fails_is_raised_behind_the_last_whole_line() -> None:
    def blocks(data: bytes) -> Generator[Block]:
        return marked_blocks(Pieces(data, fails=OSError(5, "broken")), 100, BEGINNING)

    found = blocks(b"{}\n{}\n{")
    assert next(found) == Block(b"{}\n{}\n", marks_of(b"{}\n{}\n", 100)[0])
    with pytest.raises(OSError, match="broken"):
        next(found)
    with pytest.raises(OSError, match="broken"):
        list(blocks(b"{"))
    found = blocks(b"{}\n" + b"x" * 500)
    assert next(found).mark == marks_of(b"{}\n", 100)[0]
    seen = []
    with pytest.raises(OSError, match="broken"):
        seen.extend(found)
    assert [block.mark for block in seen] == [None] * len(seen)


# What they say of a file that has changed


TEXT = b"".join(b'{"n":%d}\n' % n for n in range(1000))


@given(texts(), st.integers(4, 100), st.data())
def test_an_edit_is_found_between_the_marks_around_it(data: bytes, block: int, more: st.DataObject) -> None:
    marks = marks_of(data, block)
    assert difference(data, marks) is None
    at = more.draw(st.integers(0, len(data) - 1))
    edited = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    before = max((mark for mark in [BEGINNING, *marks] if mark.bytes <= at), key=lambda mark: mark.bytes)
    after = min((mark for mark in marks if mark.bytes > at), key=lambda mark: mark.bytes)
    assert difference(edited, marks) == (before.lines + 1, max(after.lines, before.lines + 1))
    assert difference(data[:at], marks) == (before.lines + 1, max(after.lines, before.lines + 1))


@given(texts(), st.integers(4, 100), texts())
def test_a_file_that_grew_is_the_same_up_to_there(data: bytes, block: int, more: bytes) -> None:
    marks = marks_of(data, block)
    if data.endswith(b"\n"):
        assert difference(data + more, marks) is None
        return
    for end in (b"\n", b"\r\n"):
        assert difference(data + end + more, marks) is None
    assert difference(data + b"x" + more, marks) is not None


@given(texts(), st.lists(texts(), min_size=1, max_size=4), st.integers(4, 100), st.data())
def test_the_marks_of_several_runs_over_a_growing_file_hold(
    data: bytes, more: list[bytes], block: int, draw: st.DataObject
) -> None:
    """Each run begins at any mark of those before, by blocks of any size, and is cut off anywhere."""
    marks = marks_of(data, block)
    for grown in more:
        data += (b"" if data.endswith(b"\n") else b"\n") + grown
        start = draw.draw(st.sampled_from(marks))
        mid_line = data[start.bytes - 1 : start.bytes] != b"\n"
        taken = marks_of(data, draw.draw(st.sampled_from([block, 2 * block])), start, mid_line=mid_line)
        marks += taken[: draw.draw(st.integers(0, len(taken)))]
        assert difference(data, marks) is None
    changed = data[:-1] + b"?"
    if marks[-1].bytes == len(data):
        assert difference(changed, marks) is not None


def test_a_line_put_in_moves_everything_behind_it() -> None:
    marks = marks_of(TEXT, 100)
    found = difference(TEXT.replace(b'{"n":500}\n', b'{"n":500}\n{}\n'), marks)
    assert found is not None
    assert found[0] <= 502 <= found[1] + 1
    assert found[1] - found[0] < 100 // 9


def test_a_source_compares_what_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(TEXT)
    source = JsonlSource(str(path), block_bytes=1000)
    _, marks = read(source)
    path.write_bytes(gzip.compress(TEXT + TEXT))
    assert source.first_difference(marks) is None
    path.write_bytes(gzip.compress(TEXT)[:-100])
    assert source.first_difference(marks) is not None
    path.write_bytes(TEXT.replace(b"77", b"78"))
    found = source.first_difference(marks)
    assert found is not None
    assert found[0] == 1
    path.unlink()
    assert source.first_difference(marks) is None
    assert source.identity() is None


def test_beginning_behind_the_end_is_told(tmp_path: Path) -> None:
    for name, data in (("a", b"{}\n"), ("b", gzip.compress(b"{}\n"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputDamaged, match=r"^the input is shorter than it was$"):
            read(JsonlSource(str(tmp_path / name)), InputMark(9, 90, "x"))


def test_a_line_that_was_not_ended_is_ended_by_what_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    for end in (b"\n", b"\r\n"):
        path.write_bytes(b'{"a":1}\n{"a":2}')
        source = JsonlSource(str(path))
        _, (mark,) = read(source)
        with path.open("ab") as file:
            file.write(end)
        assert read(source, mark)[0] == []
        assert [taken.lines for taken in read(source, mark)[1]] == [2]
        with path.open("ab") as file:
            file.write(b'\n{"a":4}')
        seen, (later,) = read(source, mark)
        assert (seen, source.blank, later.lines, later.blank) == ([(3, {"a": 4})], 1, 4, (2,))
        assert source.first_difference([mark, later]) is None


# Identity


def test_identity_is_that_of_the_file_and_not_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(TEXT)
    source = JsonlSource(str(path))
    first = source.identity()
    assert first is not None
    assert (first.path, first.size, first.codec) == (str(path), len(TEXT), "plain")
    os.symlink(path, tmp_path / "link")
    by_link = JsonlSource(str(tmp_path / "link")).identity()
    assert by_link is not None
    assert first.same_file(by_link)
    path.write_bytes(gzip.compress(TEXT))
    now = source.identity()
    assert now is not None
    assert now.codec == "gz"
    assert not first.same_file(now)
    assert first.same_file(replace(first, path="elsewhere"))


@pytest.mark.parametrize("how", ["grows", "is replaced", "is removed", "is cut off"])
def test_a_change_while_reading_is_seen(tmp_path: Path, how: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(TEXT)
    os.utime(path, ns=(0, 0))
    source = JsonlSource(str(path), block_bytes=1000)
    assert not source.changed()

    async def scenario() -> int:
        count = 0
        async for portion in source.read():
            if not count:
                assert not source.changed()
                if how == "grows":
                    with path.open("ab") as file:
                        file.write(TEXT)
                elif how == "is replaced":
                    (tmp_path / "new").write_bytes(TEXT)
                    os.replace(tmp_path / "new", path)
                elif how == "is removed":
                    path.unlink()
                else:
                    os.truncate(path, 5000)
            count += len(list(portion))
        return count

    count = asyncio.run(scenario())
    assert source.changed()
    # All that is there at the end is read; what was replaced or removed is read as it was.
    assert count == {"grows": 2000, "is cut off": len(TEXT[:5000].splitlines())}.get(how, 1000)


def test_what_can_not_be_opened_or_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(TEXT)
    source = JsonlSource(str(path))

    def broken(descriptor: int, size: int) -> bytes:
        raise OSError(5, os.strerror(5))

    def forbidden(path: str, flags: int) -> int:
        raise PermissionError(13, os.strerror(13))

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", broken)
        with pytest.raises(StorageError, match=r"Input/output error$"):
            source.first_difference(marks_of(TEXT, 100))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", forbidden)
        with pytest.raises(RequestError, match=r"Permission denied$"):
            source.identity()
