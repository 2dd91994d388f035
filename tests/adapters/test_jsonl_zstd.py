"""Zstandard inputs: frames, what is cut or damaged, and the library that is not there."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.jsonl.lines import LineParser
from stageflow.adapters.jsonl.zst import MAGIC, ZstdReader
from stageflow.errors import InputDamaged, RequestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    zstd = pytest.importorskip("backports.zstd")

TEXT = b"".join(b'{"n": %d}\n' % n for n in range(1000))
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00xyz"


def reader(data: bytes, warned: list[str], *, seed: int = 0) -> ZstdReader:
    """Over reads of random sizes."""
    draw, at = random.Random(seed), 0

    def read(size: int) -> bytes:
        nonlocal at
        piece = data[at : at + min(size, draw.randint(1, 400))]
        at += len(piece)
        return piece

    return ZstdReader(read, "in.zst", warned.append)


def everything(data: bytes, warned: list[str], *, seed: int = 0) -> bytes:
    found, text = b"", reader(data, warned, seed=seed)
    while piece := text.read(97):
        assert len(piece) <= 97
        found += piece
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "data",
    [
        zstd.compress(TEXT),
        zstd.compress(TEXT[:500]) + zstd.compress(b"") + zstd.compress(TEXT[500:]),
        SKIPPABLE + zstd.compress(TEXT) + SKIPPABLE,
    ],
    ids=["one frame", "three frames", "frames without data"],
)
def test_any_number_of_frames_is_one_text(data: bytes, seed: int) -> None:
    warned: list[str] = []
    assert everything(data, warned, seed=seed) == TEXT
    assert warned == []


def test_what_follows_is_told_and_ignored() -> None:
    warned: list[str] = []
    assert everything(zstd.compress(TEXT) + b"more", warned) == TEXT
    assert warned == ["in.zst: what follows the Zstandard data is no Zstandard, and was ignored"]


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_what_ends_early_gives_what_there_is(cut: int) -> None:
    data = zstd.compress(os.urandom(300_000) + TEXT)
    text, found = reader(data[:cut], []), b""
    with pytest.raises(InputDamaged, match=r"in\.zst ends early"):  # noqa: PT012 - all reads but the last succeed
        while piece := text.read(1 << 16):
            found += piece
    assert cut > 0 or len(found) > 200_000


def test_what_is_damaged_says_so() -> None:
    data = bytearray(zstd.compress(os.urandom(300_000), options={zstd.CompressionParameter.checksum_flag: 1}))
    data[-10] ^= 1
    with pytest.raises(InputDamaged, match=r"in\.zst is damaged"):
        everything(bytes(data), [])


@pytest.mark.parametrize("data", [b"", b"{}\n", MAGIC[:3]])
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match=r"in\.zst is not Zstandard"):
        reader(data, []).read(1)


def read(source: JsonlSource) -> list[tuple[int, Any]]:
    async def entries() -> list[tuple[int, Any]]:
        return [entry async for portion in source.read() for entry in portion]

    return asyncio.run(entries())


@pytest.mark.parametrize("name", ["in.jsonl.zst", "in.zstd", "named otherwise"])
def test_a_file_is_known_by_its_name_or_how_it_begins(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(zstd.compress(TEXT))
    source = JsonlSource(str(tmp_path / name), block_bytes=1000)
    source.check()
    assert source.identity().codec == "zst"
    assert read(source) == [(n, {"n": n}) for n in range(1000)]
    marks = source.take_marks()
    assert len(marks) > 5
    assert source.first_difference(marks) is None


def test_standard_input_of_it_is_refused_with_the_way_round() -> None:
    parser = LineParser("-", 1000)
    with pytest.raises(RequestError, match="looks like Zstandard"):
        list(parser.feed(zstd.compress(TEXT)) or ())


def test_a_missing_library_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backports", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    (tmp_path / "in.zst").write_bytes(zstd.compress(TEXT))
    with pytest.raises(RequestError, match="takes Zstandard") as refusal:
        JsonlSource(str(tmp_path / "in.zst")).check()
    assert refusal.value.hint == "pip install 'stageflow[zst]'"
