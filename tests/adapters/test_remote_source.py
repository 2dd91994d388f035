"""Objects read by ranges: as lasting as a file where they have a tag, and read once where they have not."""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from objects import Objects, serving

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.remote import RemoteObject
from stageflow.commit import InputMark
from stageflow.ends import source_of
from stageflow.errors import RequestError, StorageError
from stageflow.protocols import Source

pytest.importorskip("obstore")

TEXT = b"".join(b'{"n": %d}\n' % n for n in range(100_000))


@pytest.fixture
def objects() -> Iterator[Objects]:
    with serving() as served:
        served.data = {"in.jsonl": TEXT, "in.jsonl.gz": gzip.compress(TEXT), "empty.jsonl": b"", "a b/é.csv": b"n\n1\n"}
        yield served


def read(source: Source, start: InputMark | None = None) -> tuple[list[tuple[int, Any]], list[InputMark]]:
    async def everything() -> tuple[list[tuple[int, Any]], list[InputMark]]:
        entries, marks = [], []
        async for portion in source.read(start):
            entries += list(portion)
            marks += source.take_marks()
        return entries, [*marks, *source.take_marks()]

    return asyncio.run(everything())


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_an_object_is_read_by_ranges_and_again_from_any_mark(objects: Objects, name: str) -> None:
    source = source_of(f"{objects.url}/{name}")
    source.check()
    identity = source.identity()
    assert identity is not None
    assert (identity.size, identity.version) == (len(objects.data[name]), '"1"')
    entries, marks = read(source)
    assert entries == [(n, {"n": n}) for n in range(100_000)]
    assert source.first_difference(marks) is None
    assert not source.changed()
    objects.asked.clear()
    again, _ = read(source, marks[-2])
    assert again == entries[marks[-2].lines :]
    if name == "in.jsonl":
        assert max(int(asked.removeprefix("bytes=").split("-")[0]) for asked in objects.asked if asked) > len(TEXT) / 2
        assert len(objects.asked) < 4


def test_names_are_quoted_and_nothing_is_nothing(objects: Objects) -> None:
    assert read(source_of(f"{objects.url}/a%20b/%C3%A9.csv"))[0] == [(0, {"n": "1"})]
    assert read(source_of(f"{objects.url}/empty.jsonl"))[0] == []


def test_parquet_is_read_from_its_end(objects: Objects) -> None:
    arrow = pytest.importorskip("pyarrow")
    data, rows = io.BytesIO(), [{"n": n} for n in range(5000)]
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), data, row_group_size=1000)
    objects.data["in.parquet"] = data.getvalue()
    source = source_of(f"{objects.url}/in.parquet")
    source.check()
    entries, marks = read(source)
    assert entries == list(enumerate(rows))
    assert read(source, marks[2])[0] == entries[3000:]


def test_what_changes_while_it_is_read_is_an_error_and_then_a_difference(objects: Objects) -> None:
    source = JsonlSource(f"{objects.url}/in.jsonl", medium=RemoteObject(f"{objects.url}/in.jsonl"))
    _, marks = read(source)
    before = source.identity()
    assert before is not None

    async def changing() -> None:
        async for _ in source.read():
            objects.tag = '"2"'

    with pytest.raises(StorageError, match="was changed while it was read"):
        asyncio.run(changing())
    assert source.changed()
    there = source.identity()
    assert there is not None
    assert not there.same_file(before)
    assert source.first_difference(marks) is None  # the same bytes under another tag are the same input
    objects.data["in.jsonl"] = TEXT.replace(b'"n": 7}', b'"n": 8}')
    assert source.first_difference(marks) is not None


@pytest.mark.parametrize("lacking", ["ranges", "tag"])
def test_what_has_no_ranges_or_no_tag_is_read_once(objects: Objects, lacking: str) -> None:
    setattr(objects, lacking, False if lacking == "ranges" else None)
    source = source_of(f"{objects.url}/in.jsonl")
    source.check()
    assert source.identity() is None
    entries, marks = read(source)
    assert (len(entries), marks) == (100_000, [])


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ftp://host/x", "can't read from ftp://"),
        ("s3://bucket", "names no object"),
        ("https://host/x?sig=abc", "may be a key"),
        ("https://me:pass@host/x", "may be a key"),
    ],
)
def test_addresses_that_are_none_or_hold_keys_are_refused(address: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as refusal:
        source_of(address)
    assert "abc" not in refusal.value.message
    assert "pass" not in refusal.value.message


def test_what_is_not_there_is_refused(objects: Objects) -> None:
    with pytest.raises(RequestError, match=r"cannot read .*/gone\.jsonl: there is no such object"):
        source_of(f"{objects.url}/gone.jsonl").check()
    with pytest.raises(RequestError, match=r"cannot read http://127.0.0.1:9/x"):
        source_of("http://127.0.0.1:9/x").check()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(RequestError, match="takes obstore") as refusal:
        source_of("s3://bucket/in.jsonl")
    assert refusal.value.hint == "pip install 'stageflow[remote]'"
