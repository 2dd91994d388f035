"""An input cut into shards: every line is in one of them, whole, and knows its place."""

from __future__ import annotations

import asyncio
import gzip
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.cluster import reading
from stageflow.cluster.messages import ShardLease
from stageflow.cluster.plan import PLACES, PlannedFile, Shard, ShardPlan, place_in_shard, shard_bytes, shard_of
from stageflow.cluster.reading import LeasedShards, lines_of
from stageflow.commit import InputIdentity, JobIdentity
from stageflow.errors import RequestError, SourceFailed, StateMismatch, StorageError
from stageflow.files import Files, sources_of_files
from stageflow.item import BadRecord, Lost
from stageflow.options import Options
from stageflow.stores import store_of

JOB = JobIdentity(file="job.py", rest="r", stages={"a": "1"}, graph={"a": ()})


class Bytes:
    """An opened medium that gives at most three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        found = self._data[self._position : self._position + min(size, 3)]
        self._position += len(found)
        return found


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"long line", b""]), max_size=30), st.integers(1, 12))
def test_the_shards_of_a_text_are_the_text_cut_at_line_ends(pieces: list[bytes], size: int) -> None:
    text = b"".join(pieces)
    found = []
    for number, start in enumerate(range(0, len(text), size)):
        shard = Shard(number, 0, start, min(start + size, len(text)))
        lines = lines_of(Bytes(text), shard)  # type: ignore[arg-type]
        begins = [
            start for start in range(shard.start, shard.end or 0) if start == 0 or text[start - 1 : start] == b"\n"
        ]
        assert lines.count(b"\n") + (lines != b"" and not lines.endswith(b"\n")) == len(begins)
        found.append(lines)
    assert b"".join(found) == text


def planned(paths: list[Path], size: int) -> ShardPlan:
    files = []
    for source in sources_of_files(Files(paths), Options()):
        there = source.identity()
        assert isinstance(there, InputIdentity)
        files.append(PlannedFile.of(there, str(source.path)))
    return ShardPlan("run", size, tuple(files), JOB)


class Desk:
    def __init__(self, *leases: ShardLease) -> None:
        self.left = list(leases)
        self.run: list[tuple[int, int]] = []

    async def next(self) -> ShardLease | None:
        return self.left.pop(0) if self.left else None

    def coming(self) -> ShardLease | None:
        return self.left[0] if self.left else None

    async def about_to_run(self, number: int, place: int) -> None:
        self.run.append((number, place))


class Takings:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def begin(self, lease: ShardLease) -> None:
        self.said.append(("begin", lease.number))

    def wants(self, number: int) -> bool:
        return True

    def read_whole(self, number: int, **counts: int) -> None:
        self.said.append((number, counts))

    async def settled(self, index: int) -> None:
        self.said.append(("settled", place_in_shard(index)))


def portions(plan: ShardPlan, *leases: ShardLease) -> list[list[tuple[int, Any]]]:
    """What the leases' shards are read as."""
    return read(LeasedShards(plan, Desk(*leases), Takings(), strict=False))


def read(source: LeasedShards) -> list[list[tuple[int, Any]]]:
    async def all_of_it() -> list[list[tuple[int, Any]]]:
        return [[*portion] async for portion in source.read()]

    return asyncio.run(all_of_it())


def leases_of(plan: ShardPlan) -> list[ShardLease]:
    return [ShardLease(shard.number, 1) for shard in plan.shards]


def test_entries_bear_their_shard_and_their_place_in_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(b'{"n": 0}\n\n{"n": 1}\nnonsense\n{"n": 2}')
    second.write_bytes(b'\xef\xbb\xbf{"n": 3}\n{"n": 4}\n')
    plan = planned([first, second], 12)
    takings = Takings()
    source = LeasedShards(plan, Desk(*leases_of(plan)), takings, strict=False)
    found = list(chain.from_iterable(read(source)))
    assert [record["n"] if isinstance(record, dict) else "bad" for _, record in found] == [0, 1, "bad", 2, 3, 4]
    assert [index for index, _ in found] == sorted({index for index, _ in found})
    assert [place_in_shard(index) for index, _ in found if shard_of(index) == 0] == [0, 2]
    assert source.blank == 1
    counts = [said[1] for said in takings.said if isinstance(said[1], dict)]
    assert sum(count["lines"] for count in counts) == 7
    assert sum(count["records"] for count in counts) == 6
    assert sum(count["bad"] for count in counts) == 1
    last = place_in_shard(found[-1][0])
    assert source.locate(found[-1][0]) == {
        "index": last,
        "line": last + 1,
        "path": str(second),
        "shard": shard_of(found[-1][0]),
    }


def test_what_is_compressed_is_one_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(1000))))
    plan = planned([path], 64)
    assert plan.shards == [Shard(0, 0)]
    assert list(chain.from_iterable(portions(plan, ShardLease(0, 1)))) == [(n, {"n": n}) for n in range(1000)]


def test_records_that_kill_are_not_run_and_careful_shards_go_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    plan = planned([path], 1000)
    desk, takings = Desk(ShardLease(0, 4, careful=True, fatal=(1,))), Takings()
    found = read(LeasedShards(plan, desk, takings, strict=False))
    assert [len(portion) for portion in found] == [1, 1, 1]
    assert isinstance(found[1][0][1], Lost)
    assert desk.run == [(0, 0), (0, 1), (0, 2)]
    assert [said for said in takings.said if said[0] == "settled"] == [("settled", n) for n in range(3)]


def test_a_file_that_was_changed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n')
    plan = planned([path], 1000)
    path.write_bytes(b'{"n": 0}\n{"n": 1}\n')
    with pytest.raises(SourceFailed, match="is not what it was"):
        portions(plan, ShardLease(0, 1))


def test_a_bad_line_is_bad_in_its_shard_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n[1]\n{"n": 2}\n')
    plan = planned([path], 9)
    found = [record for _, record in chain.from_iterable(portions(plan, *leases_of(plan)))]
    assert isinstance(found[1], BadRecord)
    assert [found[0], found[2]] == [{"n": 0}, {"n": 2}]


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n' * 10)
    plan = planned([tmp_path / "a.jsonl"], 20)
    store = store_of(str(tmp_path / "out"))
    store.check()
    assert ShardPlan.read(store) is None
    assert plan.freeze(store)
    assert not plan.freeze(store)
    assert ShardPlan.read(store) == plan
    assert [shard.base for shard in plan.shards] == [number * PLACES for number in range(5)]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda text: text.replace(b'"run"', b'"ran"'), "is damaged"),
        (lambda text: text.replace(b'"format": 1', b'"format": 99'), "another version"),
    ],
)
def test_a_plan_that_cannot_be_read_is_told_of(tmp_path: Path, damage: Any, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n')
    store = store_of(str(tmp_path / "out"))
    store.check()
    planned([tmp_path / "a.jsonl"], 20).freeze(store)
    path = tmp_path / "out/_stageflow/plan.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=says):
        ShardPlan.read(store)


def test_another_input_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        path.write_bytes(b'{"n": 0}\n')
    plan = planned(paths, 20)
    plan.refuse_other_input(planned(paths, 20).files)
    with pytest.raises(StateMismatch, match="2 files, and there are 1"):
        plan.refuse_other_input(plan.files[:1])
    with pytest.raises(StateMismatch, match=r"a\.jsonl, not over .*b\.jsonl"):
        plan.refuse_other_input(plan.files[::-1])
    paths[1].write_bytes(b'{"n": 1, "more": 1}\n')
    with pytest.raises(StateMismatch, match=r"b\.jsonl was changed"):
        plan.refuse_other_input(planned(paths, 20).files)


def test_another_job_is_refused(tmp_path: Path) -> None:
    plan = ShardPlan("run", 20, (), JOB)
    plan.refuse_other_job(JOB, lambda before, now: [])
    with pytest.raises(StateMismatch, match='stage "a"'):
        plan.refuse_other_job(JOB, lambda before, now: ['stage "a"'])


def test_shards_are_small_enough_to_end_together_and_few_enough_to_list() -> None:
    mib = 1024 * 1024
    assert shard_bytes(100, 4, None) == 4096
    assert shard_bytes(80 * mib, 4, None) == mib
    assert shard_bytes(8 * mib, 4, None) == 8 * mib // 80
    assert shard_bytes(200_000 * 3 * mib, 4, None) == 3 * mib
    assert shard_bytes(100, 4, 7) == 7
    with pytest.raises(RequestError, match="more than 200,000"):
        shard_bytes(200_000 * 3 * mib, 4, mib)


def test_the_plan_says_nothing_of_the_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"secret": "hunter2"}\n')
    store = store_of(str(tmp_path / "out"))
    store.check()
    planned([tmp_path / "a.jsonl"], 20).freeze(store)
    found = json.loads((tmp_path / "out/_stageflow/plan.json").read_bytes())
    assert "hunter2" not in json.dumps(found)


def test_one_shard_is_read_ahead_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n' * 8)
    plan = planned([path], 18)
    lines_read, begun = reading._lines_read, []

    def noted(file: PlannedFile, shard: Shard) -> bytes:
        begun.append(shard.number)
        return lines_read(file, shard)

    monkeypatch.setattr(reading, "_lines_read", noted)

    async def seen() -> list[list[int]]:
        found = []
        async for portion in LeasedShards(plan, Desk(*leases_of(plan)), Takings(), strict=False).read():
            while len(begun) < min(len(plan.shards), len(found) + 2):  # noqa: ASYNC110 - a thread does it
                await asyncio.sleep(0.001)
            found.append(list(begun))
            assert len(list(portion)) == 2
        return found

    assert asyncio.run(seen()) == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
