"""An input in shards: every record once, in order, and in parts of which each process gets its share."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.memory import IterableSource
from stageflow.commit import Resumption
from stageflow.errors import SourceFailed
from stageflow.item import BadRecord
from stageflow.protocols import Source
from stageflow.replicas.coordinator import Shard
from stageflow.replicas.messages import Entries
from stageflow.replicas.sharding import Sharder


def sharder(source: Source, **given: Any) -> Sharder:
    return Sharder(
        source,
        found=given.get("found", Resumption(run="")),
        retries=iter(given.get("retries", ())),
        limit=given.get("limit"),
        replicas=given.get("replicas", 3),
        in_order=given.get("in_order", False),
        strict=False,
        read=lambda: None,
        warn=lambda message: None,
        stop=lambda error: None,
    )


def shards_of(found: Sharder) -> list[Shard]:
    async def go() -> list[Shard]:
        return [shard async for shard in found.shards()]

    return asyncio.run(go())


def file_of(folder: Path, lines: int, width: int = 100) -> JsonlSource:
    (folder / "in.jsonl").write_text("".join(f'{{"id": {n}, "text": "{"x" * width}"}}\n' for n in range(lines)))
    return JsonlSource(str(folder / "in.jsonl"))


def indices(shards: list[Shard]) -> list[int]:
    return [index for shard in shards for index in shard.indices]


@pytest.mark.parametrize("lines", [1, 7, 60, 5000, 60_000])
def test_a_file_comes_in_many_parts_for_each_process(tmp_path: Path, lines: int) -> None:
    found = sharder(file_of(tmp_path, lines))
    shards = shards_of(found)
    assert found.at_end
    assert indices(shards) == list(range(lines))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    largest = max(len(shard.indices) for shard in shards)
    assert largest <= max(3, lines / 55)  # twenty for each of three, less what the ends of blocks make of it
    assert max(len(shard.content.data) for shard in shards) <= 256 * 1024 + 200


def test_where_results_wait_for_their_order_the_parts_are_small(tmp_path: Path) -> None:
    shards = shards_of(sharder(file_of(tmp_path, 60_000), in_order=True))
    assert max(len(shard.content.data) for shard in shards) <= 16 * 1024 + 200


def test_of_what_has_no_known_end_the_parts_grow() -> None:
    def endless() -> Iterator[int]:
        yield from range(5000)

    shards = shards_of(sharder(IterableSource(endless())))
    sizes = [len(shard.indices) for shard in shards]
    assert indices(shards) == list(range(5000))
    assert sizes[:60] == [1] * 60
    assert max(sizes) == 16
    assert sizes[:-1] == sorted(sizes[:-1])


def test_a_limit_is_of_records_and_what_is_done_is_left_out(tmp_path: Path) -> None:
    source = file_of(tmp_path, 100)
    done = bytearray(100)
    done[3:90] = b"\x01" * 87
    found = sharder(source, limit=95, found=Resumption(run="", done=done))
    assert indices(shards_of(found)) == [0, 1, 2, *range(90, 95)]
    assert not found.at_end


def test_records_go_one_by_one_and_one_that_can_not_is_a_bad_record() -> None:
    values = [1, lambda: 1, {"a": 2}]
    found: list[Any] = []
    for shard in shards_of(sharder(IterableSource(values))):
        assert isinstance(shard.content, Entries)
        found += [pickle.loads(data) for _, data in shard.content.entries]
    assert (found[0], found[2]) == (1, {"a": 2})
    assert isinstance(found[1], BadRecord)


def test_retries_come_first_and_are_known() -> None:
    found = sharder(IterableSource([5, 6]), retries=[(7, "seven"), (9, "nine")])
    assert indices(shards_of(found)) == [7, 9, 0, 1]
    assert found.retried == {7, 9}


def test_a_source_that_fails_says_so() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise KeyError("gone")

    with pytest.raises(SourceFailed, match="gone"):
        shards_of(sharder(IterableSource(source())))
