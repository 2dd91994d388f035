"""Commits in a folder and in a bucket: many at once, one that is ended half-way, and a whole run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stageflow.cli import invoke
from stageflow.cluster.commits import Commits, dead_name, part_name
from stageflow.cluster.messages import ShardCommit
from stageflow.errors import StorageError
from stageflow.stores import Store, store_of

WRITERS = 16
FOUND = ShardCommit(3, 1, lines=2, written=1, dead=1, out_lines=1, dead_lines=1)
JOB = """
from stageflow import Pipeline, drop

pipeline = Pipeline("job", key="n")

@pipeline.stage
def inverse(n: int):
    return drop("seven") if n % 7 == 3 else 1 / (n % 11)
"""


class Ended(BaseException):
    """The process is ended here."""


def ended() -> None:
    raise Ended


def test_of_many_who_commit_a_shard_one_is_published(store: Store, again: Callable[[], Store]) -> None:
    begun = threading.Barrier(WRITERS)

    def commit(number: int) -> ShardCommit:
        commits = Commits(again())
        begun.wait()
        found = ShardCommit(3, number, lines=2, written=1, dead=1, out_lines=1, dead_lines=1)
        return commits.commit(found, b"out %d\n" % number, b"dead %d\n" % number)

    with ThreadPoolExecutor(WRITERS) as writers:
        (winner,) = set(writers.map(commit, range(WRITERS)))
    assert Commits(store).repair() == {3: winner}
    assert store.read(part_name(3)) == b"out %d\n" % winner.attempt
    assert store.read(dead_name(3)) == b"dead %d\n" % winner.attempt
    assert [name for name, _ in store.names()] == ["_stageflow/commits/000003.json", dead_name(3), part_name(3)]


@pytest.mark.parametrize("published", [0, 1])
def test_what_was_committed_and_not_published_is_repaired(
    store: Store, again: Callable[[], Store], monkeypatch: pytest.MonkeyPatch, published: int
) -> None:
    publish, left = store.publish, iter(range(published))

    def some(source: str, target: str) -> None:
        if next(left, None) is None:
            ended()
        publish(source, target)

    monkeypatch.setattr(store, "publish", some)
    with pytest.raises(Ended):
        Commits(store).commit(FOUND, b"out\n", b"dead\n")
    assert len(list(again().names("_stageflow/attempts/"))) == 2 - published
    assert Commits(again()).repair() == {3: FOUND}
    assert [name for name, _ in again().names()] == ["_stageflow/commits/000003.json", dead_name(3), part_name(3)]
    assert (again().read(part_name(3)), again().read(dead_name(3))) == (b"out\n", b"dead\n")


def test_many_commits_come_back_with_and_without_a_snapshot(store: Store) -> None:
    commits = Commits(store)
    found = {number: ShardCommit(number, 1, lines=1, dropped=1) for number in range(40)}
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda commit: commits.commit(commit, b"", b""), found.values()))
    assert commits.all() == found
    commits.compact(found)
    assert commits.all() == found


def test_a_run_is_told_of_and_merged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(JOB)
    for name, first in (("a.jsonl", 0), ("b.jsonl", 500)):
        lines = [json.dumps({"n": n}) if n % 100 else "" for n in range(first, first + 500)]
        Path(name).write_text("\n".join([*lines, "{bad", ""]))
    command = ["run", "job.py", "a.jsonl", "b.jsonl", "--progress", "off", "-o"]
    assert invoke([*command, "local.jsonl"]) == 3
    static = [*command, url, "--engine", "static", "--shard-bytes", "2000"]
    assert invoke([*static, "--shard", "0/2"]) in (0, 3)
    assert invoke(["merge", url, "-o", "merged.jsonl"]) == 2
    assert invoke(["status", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "interrupted"
    assert invoke([*static, "--shard", "1/2"]) == 3
    assert invoke(["status", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"
    assert invoke(["merge", url, "-o", "merged.jsonl"]) == 0
    assert Path("merged.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert letters("merged.jsonl") == letters("local.jsonl")


def letters(path: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in Path(f"{path}.dead.jsonl").read_text().splitlines()]
    return sorted(({**letter, "at": None} for letter in found), key=lambda letter: letter["index"])


def test_a_bucket_that_is_not_there_is_told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue("bucket").enter(monkeypatch)
    store = store_of("s3://another/out")
    with pytest.raises(StorageError, match="cannot use s3://another/out: there is no such object or bucket"):
        Commits(store).commit(FOUND, b"out\n", b"dead\n")
