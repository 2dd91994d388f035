"""One file of all parts: in the order of the input, with dead letters at their lines, and never over another file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from sharded_outputs import commit, commit_all, lines_of, plan_over

from stageflow.cli import invoke
from stageflow.cluster.merge import merge
from stageflow.errors import RequestError, StageflowError, StorageError
from stageflow.stores import LocalStore


class Output:
    """A folder with two inputs and the output of a run over them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        records = [b'{"n":%d%s}\n' % (n, {3: b',"x":"dead"', 5: b',"x":"drop"'}.get(n % 7, b"")) for n in range(60)]
        records[20:20] = [b"\n", b"   \n"]
        self.inputs = [path / "a.jsonl", path / "b.jsonl"]
        self.texts = [b"".join(records[:31]), b"".join(records[31:]).rstrip(b"\n")]
        for file, text in zip(self.inputs, self.texts, strict=True):
            file.write_bytes(text)
        self.store = LocalStore(str(path / "out"))
        self.store.check()
        self.plan = plan_over(self.store, *self.inputs)
        self.told: list[str] = []

    def commit(self, **options: Any) -> None:
        commit_all(self.store, self.plan, **options)

    def merge(self, name: str = "merged.jsonl", *, fresh: bool = False) -> int:
        self.told = []
        return merge(str(self.path / "out"), str(self.path / name), fresh=fresh, tell=self.told.append)

    def read(self, name: str = "merged.jsonl") -> bytes:
        return (self.path / name).read_bytes()

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name not in ("a.jsonl", "b.jsonl", "out"))

    @property
    def results(self) -> bytes:
        """What is to come of it, by looking at the inputs."""
        lines = b"\n".join(self.texts).split(b"\n")
        return b"".join(line + b"\n" for line in lines if line.strip() and b"dead" not in line and b"drop" not in line)

    @property
    def dead(self) -> list[tuple[int, int, str, str]]:
        """Index, line and path of each dead letter, and the line itself."""
        found, index = [], 0
        for file, text in zip(self.inputs, self.texts, strict=True):
            for number, line in enumerate(text.rstrip(b"\n").split(b"\n")):
                if b"dead" in line:
                    found.append((index, number + 1, file.name, line.decode()))
                index += 1
        return found

    def letters(self, name: str = "merged.jsonl.dead.jsonl") -> list[tuple[int, int, str, str]]:
        letters = map(json.loads, self.read(name).splitlines())
        return [(found["index"], found["line"], found["path"], found["record"]) for found in letters]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the disk is tested with the stores."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path)


def refusal(output: Output, *arguments: Any, **options: Any) -> StageflowError:
    before = output.names()
    with pytest.raises(StageflowError) as refused:
        output.merge(*arguments, **options)
    assert output.names() == before
    return refused.value


def test_results_are_in_the_order_of_the_input_and_dead_letters_at_their_lines(output: Output) -> None:
    output.commit()
    assert len(output.plan.shards) == 19
    assert output.merge() == 0
    assert output.read() == output.results
    assert output.letters() == output.dead
    assert output.names() == ["merged.jsonl", "merged.jsonl.dead.jsonl"]
    assert stat.S_IMODE(os.stat(output.path / "merged.jsonl.dead.jsonl").st_mode) == 0o600
    folder = output.path
    assert output.told == [
        f"stageflow: merged {len(output.plan.shards)} shards: {output.results.count(10)} lines into "
        f"{folder}/merged.jsonl, {len(output.dead)} dead letters into {folder}/merged.jsonl.dead.jsonl"
    ]


def test_without_dead_letters_there_is_no_file_of_them(output: Output) -> None:
    for shard in output.plan.shards:
        commit(output.store, shard.number, [b'{"n":%d}\n' % shard.number])
    (output.path / "merged.jsonl.dead.jsonl").write_bytes(b"{}\n")
    assert "exists, and there are no dead letters" in str(refusal(output))
    assert output.merge(fresh=True) == 0
    assert output.names() == ["merged.jsonl", "merged.jsonl.dead.jsonl.1"]
    assert output.read() == b"".join(b'{"n":%d}\n' % number for number in range(19))


def test_the_same_merge_again_leaves_what_is_there(output: Output) -> None:
    output.commit()
    output.merge()
    before = os.stat(output.path / "merged.jsonl").st_ino
    assert output.merge() == 0
    assert os.stat(output.path / "merged.jsonl").st_ino == before
    os.unlink(output.path / "merged.jsonl")  # it was killed between the two
    assert output.merge() == 0
    assert output.read() == output.results


@pytest.mark.parametrize("change", [lambda text: text + b"{}\n", lambda text: text[:-1], lambda text: b"x" + text[1:]])
@pytest.mark.parametrize("name", ["merged.jsonl", "merged.jsonl.dead.jsonl"])
def test_another_file_is_refused_or_renamed(output: Output, name: str, change: Any) -> None:
    output.commit()
    output.merge()
    changed = change(output.read(name))
    (output.path / name).write_bytes(changed)
    error = refusal(output)
    assert str(error) == f"{output.path}/{name} exists, and holds something else"
    assert error.hint == "choose another -o, or pass --fresh to keep it under another name"
    assert error.exit_code == 2
    assert output.merge(fresh=True) == 0
    assert output.read() == output.results
    assert output.letters() == output.dead
    assert output.read(f"{name}.1") == changed
    assert len(output.names()) == 4


def test_what_is_not_complete_is_not_merged(output: Output) -> None:
    output.commit(left={3, 4})
    error = refusal(output)
    assert str(error) == f"{output.path}/out is not complete: 2 of its {len(output.plan.shards)} shards are not done"
    assert error.exit_code == 2


def test_what_was_not_published_is(output: Output) -> None:
    output.commit()
    record = json.loads(output.store.read("_stageflow/commits/000004.json"))
    output.store.publish("part-000004.jsonl", f"_stageflow/attempts/000004.1-{record['drawn']}.out")
    assert output.merge() == 0
    assert output.read() == output.results


def test_failed_shards_are_named_and_their_lines_counted(output: Output) -> None:
    failed = {2, 9, 10}
    output.commit(failed=failed)
    assert output.merge() == 3
    lost = [line.strip().decode() for number in failed for line in lines_of(output.plan, output.plan.shards[number])]
    assert output.letters() == [found for found in output.dead if found[3] not in lost]
    assert output.read().decode().split("\n") == [
        line for line in output.results.decode().split("\n") if line not in lost or not line
    ]
    assert output.told[1].splitlines() == [
        "stageflow: 3 shards failed: replicas died again and again, and nothing of it is in the output",
        "  shard 2: a.jsonl, bytes 80 to 120",
        "  shard 9: b.jsonl, bytes 0 to 40",
        "  shard 10: b.jsonl, bytes 40 to 80",
    ]


def test_lines_that_can_not_be_counted_are_not_guessed(output: Output) -> None:
    output.commit(failed={0})
    os.unlink(output.inputs[0])
    assert output.merge() == 3
    assert {line for _, line, path, _ in output.letters() if path == "a.jsonl"} == {None}
    assert [found[1:] for found in output.letters() if found[2] == "b.jsonl"] == [
        found[1:] for found in output.dead if found[2] == "b.jsonl"
    ]
    assert "can't be counted" in output.told[-1]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda store: store.delete("part-000004.jsonl"), "lacks part-000004.jsonl, which was committed"),
        (lambda store: store.put("part-000004.jsonl", b'{"n":1}\n'), "part-000004.jsonl of {out} is not what was"),
        (lambda store: store.put("part-000004.jsonl", b'{"n":1}\n{'), "part-000004.jsonl of {out} is not what was"),
        (
            lambda store: store.put("part-000004.jsonl", store.read("part-000004.jsonl") + b"{"),
            "part-000004.jsonl of {out} is not what was",
        ),
        (lambda store: store.put("dead/part-000000.jsonl", b"{}\n"), "dead/part-000000.jsonl of {out} is not what was"),
    ],
)
def test_parts_that_are_not_what_was_committed_are_refused(output: Output, harm: Any, said: str) -> None:
    output.commit()
    harm(output.store)
    error = refusal(output)
    assert isinstance(error, StorageError)
    assert said.format(out=output.path / "out") in str(error)


def test_compressed_and_tables(output: Output) -> None:
    output.commit()
    assert output.merge("merged.jsonl.gz") == 0
    assert gzip.decompress(output.read("merged.jsonl.gz")) == output.results
    assert output.letters("merged.jsonl.gz.dead.jsonl") == output.dead
    assert output.merge("merged.jsonl.gz") == 0
    assert output.merge("merged.csv") == 0
    rows = list(csv.DictReader(io.StringIO(output.read("merged.csv").decode())))
    assert [int(row["n"]) for row in rows] == [json.loads(line)["n"] for line in output.results.splitlines()]


def test_a_compressed_input_is_one_shard(tmp_path: Path) -> None:
    output = Output(tmp_path)
    store = LocalStore(str(tmp_path / "gz"))
    store.check()
    (tmp_path / "c.jsonl.gz").write_bytes(b'{"n":1}\n{"x":"dead"}\n')  # the lines count, and nobody reads them here
    plan = plan_over(store, tmp_path / "c.jsonl.gz", output.inputs[1])
    assert [shard.file for shard in plan.shards[:2]] == [0, 1]
    commit_all(store, plan)
    merge(str(tmp_path / "gz"), str(tmp_path / "merged.jsonl"), fresh=False, tell=output.told.append)
    dead = [(2 + index - 31, *rest) for index, *rest in output.dead if rest[1] == "b.jsonl"]
    assert output.letters() == [(1, 2, "c.jsonl.gz", '{"x":"dead"}'), *dead]


def test_odd_places_are_refused(output: Output) -> None:
    output.commit()
    (output.path / "other.jsonl.ledger").write_text("")
    for name, said in [
        ("a.jsonl", "the merged file and the input are the same file"),
        ("other.jsonl", "is the output of another run"),
        ("out", "it is no file"),
        ("nowhere/merged.jsonl", "cannot write to"),
    ]:
        error = refusal(output, name, fresh=True)
        assert isinstance(error, RequestError)
        assert said in str(error)
    for name in ("-", "s3://bucket/merged.jsonl"):
        with pytest.raises(RequestError, match="can't merge into"):
            merge(str(output.path / "out"), name, fresh=False, tell=output.told.append)


def test_where_no_run_was_there_is_none(output: Output, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no run"):
        merge(str(tmp_path / "nothing"), str(tmp_path / "merged.jsonl"), fresh=False, tell=output.told.append)


def test_the_command_merges(
    output: Output, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output.path)
    output.commit(failed={2})
    assert invoke(["merge", "out", "-o", "merged.jsonl"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "stageflow: merged 19 shards: 41 lines into merged.jsonl, 8 dead letters into merged.jsonl.dead"
    )
    assert "stageflow: 1 shard failed" in err
    (output.path / "merged.jsonl").write_bytes(b"")
    assert invoke(["merge", "out", "-o", "merged.jsonl"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "stageflow: error: merged.jsonl exists, and holds something else"
    )
    assert invoke(["merge", "out", "-o", "merged.jsonl", "--fresh"]) == 3
    assert output.read("merged.jsonl.1") == b""
