"""The places of dead letters, whatever the lines, the shards and those of them that failed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sharded_outputs import commit_all, plan_over
from stepped_store import SteppedStore

from stageflow.cluster.commits import Commits
from stageflow.cluster.parts import Parts

LINES = st.lists(st.sampled_from([b"", b"{}", b'"dead"', b'"drop"', b"1" * 30]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    files=st.lists(st.tuples(LINES, st.booleans()), min_size=1, max_size=3),
    shard_bytes=st.integers(1, 60),
    data=st.data(),
)
def test_letters_are_at_their_lines(
    files: list[tuple[list[bytes], bool]], shard_bytes: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths, expected, index = [], list[tuple[int, int, str]](), 0
        for number, (lines, ended) in enumerate(files):
            paths.append(Path(folder, f"é{number}.jsonl"))
            text = b"".join(line + b"\n" for line in lines)
            paths[-1].write_bytes(text if ended else text[:-1])
            for place, line in enumerate(paths[-1].read_bytes().splitlines()):
                if b"dead" in line:
                    expected.append((index + place, place + 1, paths[-1].name))
            index += len(paths[-1].read_bytes().splitlines())
        store = SteppedStore({})
        plan = plan_over(store, *paths, shard_bytes=shard_bytes)
        numbers = range(len(plan.shards))
        failed = data.draw(st.sets(st.sampled_from(numbers))) if numbers else set[int]()
        commit_all(store, plan, failed=failed)
        parts = Parts(store, plan, Commits(store).all())
        letters = [json.loads(line) for some in parts.letters() for line in some.splitlines()]
        found = [(letter["index"], letter["line"], letter["path"]) for letter in letters]
        assert not parts.uncounted
        assert set(found) <= set(expected)
        assert found == sorted(found)
        assert len(found) == parts.dead_lines
        if not failed:
            assert found == expected
            lines = [line for lines, _ in files for line in lines if line in (b"{}", b"1" * 30)]
            assert b"".join(parts.results()).splitlines() == lines


@pytest.mark.parametrize(("bytes_ahead", "at_first"), [(0, 1), (100, 3), (10_000, 8)])
def test_so_much_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_ahead: int, at_first: int
) -> None:
    monkeypatch.setattr("stageflow.cluster.parts._AHEAD_BYTES", bytes_ahead)
    (tmp_path / "in.jsonl").write_bytes((b"1" * 49 + b"\n") * 20)
    store = SteppedStore({})
    plan = plan_over(store, tmp_path / "in.jsonl", shard_bytes=50)
    commit_all(store, plan)
    parts = Parts(store, plan, Commits(store).all())
    store.reads = 0
    results = parts.results()
    first = next(results)
    results.close()
    assert store.reads == at_first
    assert len(first) == 50
