"""Compressed input: any number of members, any cut, and what is wrong with it in the user's words."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.jsonl.gz import GzipReader
from stageflow.errors import InputDamaged, RequestError, RunStopped

MIB = 1024 * 1024


def reader(data: bytes, warned: list[str], *, seed: int | None = None) -> GzipReader:
    """A reader of bytes in memory, which come in pieces as chance will have it."""
    draw, at = random.Random(seed), 0

    def read_raw(size: int) -> bytes:
        nonlocal at
        piece = data[at : at + (draw.randint(1, size) if seed is not None and size > 1 else size)]
        at += len(piece)
        return piece

    return GzipReader(read_raw, "in.gz", warned.append)


def text_of(data: bytes, *, step: int = MIB, seed: int | None = None) -> tuple[bytes, list[str], str | None]:
    """All that can be had of it, what was warned of, and how it failed."""
    warned: list[str] = []
    source, text = reader(data, warned, seed=seed), b""
    try:
        while piece := source.read(step):
            assert len(piece) <= step
            text += piece
    except InputDamaged as error:
        assert source.read is not None
        return text, warned, str(error)
    assert source.consumed <= len(data)
    return text, warned, None


@given(
    st.lists(st.binary(max_size=2000), min_size=1, max_size=5), st.integers(0, 700), st.integers(1, 3000), st.integers()
)
def test_members_are_one_text_however_they_are_read(parts: list[bytes], zeros: int, step: int, seed: int) -> None:
    data = (b"\0" * zeros).join(gzip.compress(part) for part in parts) + b"\0" * zeros
    for chance in (None, seed):
        assert text_of(data, step=step, seed=chance) == (b"".join(parts), [], None)


@given(st.binary(max_size=3000), st.integers(1, 1000), st.data())
def test_of_what_ends_early_all_that_is_there_is_read(text: bytes, step: int, draw: st.DataObject) -> None:
    data = gzip.compress(text) + gzip.compress(text)
    cut = draw.draw(st.integers(2, len(data) - 1))
    whole = zlib.decompressobj(wbits=31)
    first = whole.decompress(data[:cut])
    second = zlib.decompressobj(wbits=31).decompress(whole.unused_data)
    found, warned, failed = text_of(data[:cut], step=step)
    assert found == first + second
    if cut == len(data) // 2:
        assert (warned, failed) == ([], None)
    elif cut == len(data) // 2 + 1:  # one byte says nothing of a member
        assert (len(warned), failed) == (1, None)
    else:
        assert (warned, failed) == ([], "in.gz ends early (unexpected end of gzip data)")


@pytest.mark.parametrize("tail", [b"garbage", b"\x1f", b"\0\0x", b"\x1fx"])
def test_what_follows_is_ignored_with_a_warning(tail: bytes) -> None:
    for seed in (None, 1, 2):
        found, warned, failed = text_of(gzip.compress(b"{}\n") + tail, seed=seed)
        assert (found, failed) == (b"{}\n", None)
        assert warned == ["in.gz: what follows the gzip data is no gzip, and was ignored"]


@pytest.mark.parametrize("at", [-1, -5, -8])
def test_a_checksum_or_length_that_is_wrong_is_told(at: int) -> None:
    data = bytearray(gzip.compress(b"{}\n" * 100))
    data[at] ^= 1
    assert text_of(bytes(data))[2] == "in.gz is damaged (its checksum does not match)"


def test_other_damage_is_told_in_the_words_of_zlib() -> None:
    data = bytearray(gzip.compress(b"{}\n" * 100))
    data[10] = 0xFF
    assert text_of(bytes(data))[2] == "in.gz is damaged (invalid block type)"


@pytest.mark.parametrize(("data", "hint"), [(b"", "it is empty"), (b"{}\n", "rename it"), (b"\x1f", "rename it")])
def test_what_is_not_gzip_is_refused(data: bytes, hint: str) -> None:
    with pytest.raises(RequestError, match=r"^in.gz is not gzip$") as caught:
        reader(data, []).read(10)
    assert str(caught.value.hint).startswith(hint)


# Files


async def read_all(source: JsonlSource) -> list[tuple[int, Any]]:
    return [entry async for portion in source.read() for entry in portion]


def write(path: Path, data: bytes, **options: Any) -> JsonlSource:
    path.write_bytes(data)
    return JsonlSource(str(path), **options)


def test_looking_ahead_and_counting_work_on_the_text(tmp_path: Path) -> None:
    text = b"".join(
        b'{"n":%d,"noise":"%s"}\n' % (n, random.Random(n).randbytes(20).hex().encode()) for n in range(5000)
    )
    source = write(tmp_path / "in.gz", gzip.compress(text), block_bytes=20_000)
    source.check()
    assert [index for index, _ in source.peek(3)] == [0, 1, 2]
    estimate = source.estimate()
    assert estimate is not None
    assert 3000 < estimate < 9000  # what gzip takes ahead blurs the ratio
    assert JsonlSource(str(tmp_path / "in.gz"), block_bytes=len(text) + 1).estimate() == 5000
    assert write(tmp_path / "cut.gz", gzip.compress(text)[:-9], block_bytes=len(text) + 1).estimate() is None
    assert source.warnings == []


def test_looking_ahead_at_what_is_damaged_shows_what_is_before(tmp_path: Path) -> None:
    source = write(tmp_path / "in.gz", gzip.compress(b"{}\n{}\n{")[:-9])
    source.check()
    assert source.peek(5) == [(0, {}), (1, {})]
    with pytest.raises(InputDamaged):
        asyncio.run(read_all(source))


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_whole_lines_before_the_damage_are_yielded_and_the_last_piece_is_not(tmp_path: Path, block: int) -> None:
    for text, whole in ((b"{}\n{}\n{}", 2), (b"{}\n", 1), (b"{}", 0), (b"\n\n", 0), (b"\n", 0), (b"{}\n" * 30, 30)):
        source = write(tmp_path / "in.gz", gzip.compress(text)[:-8], block_bytes=block)
        found: list[int] = []
        with pytest.raises(InputDamaged, match=r"in.gz ends early \(unexpected end of gzip data\)$"):
            asyncio.run(count(source, found))
        assert len(found) == whole
        assert [mark.lines for mark in source.take_marks()][-1:] == [text.count(b"\n")] * (b"\n" in text)


async def count(source: JsonlSource, found: list[int]) -> None:
    async for portion in source.read():
        found.extend(index for index, _ in portion)


def test_a_line_of_nothing_takes_no_memory_to_look_at_or_to_skip(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(squeeze.compress(b" " * MIB) for _ in range(60)), squeeze.flush()])
    source = write(tmp_path / "in.gz", bomb, max_line_bytes=MIB)
    tracemalloc.start()
    try:
        source.check()
        ((_, bad),) = asyncio.run(read_all(source))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bad.error.message == "RecordTooLarge: 60.0 MiB > 1 MiB"
    assert peak < 8 * MIB


@pytest.mark.parametrize("compressed", [False, True])
def test_reading_stops_behind_the_last_line_that_is_not_too_much(tmp_path: Path, compressed: bool) -> None:
    text = b'{"n":1}\n' * 100
    for limit, lines in ((1, 0), (7, 0), (8, 1), (15, 1), (799, 99)):
        source = write(
            tmp_path / "in", gzip.compress(text) if compressed else text, max_input_bytes=limit, block_bytes=50
        )
        source.check()
        seen: list[Any] = []

        async def scenario(source: JsonlSource = source, seen: list[Any] = seen) -> None:
            async for portion in source.read():
                seen.extend(portion)

        with pytest.raises(RunStopped, match=rf"^the input is larger than --max-input-bytes {limit}$"):
            asyncio.run(scenario())
        assert len(seen) == lines
    source = write(tmp_path / "in", gzip.compress(text) if compressed else text, max_input_bytes=800)
    assert len(asyncio.run(read_all(source))) == 100
