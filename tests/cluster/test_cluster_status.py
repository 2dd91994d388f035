"""How far a run past one machine is, in the voice of the status of any other."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from sharded_outputs import commit_all, plan_over

from stageflow.cli import invoke
from stageflow.cluster.plan import ShardPlan
from stageflow.stores import LocalStore

Made = tuple[LocalStore, ShardPlan]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the disk is tested with the stores."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A plan of ten shards of four records each, and nothing done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(b'{"n":1}\n{"n":2}\n{"x":"dead"}\n{"x":"drop"}\n' * 10)
    store = LocalStore("out")
    store.check()
    return store, plan_over(store, tmp_path / "in.jsonl", shard_bytes=42)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert invoke(["status", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def lock(store: LocalStore, *, pid: int, host: str, ago: float) -> None:
    text = json.dumps({"pid": pid, "host": host, "at": time.time() - ago})
    store.put("_stageflow/lock.json", text.encode())


def test_nothing_is_done_yet(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "out") == [
        "out: interrupted",
        "  0 of 10 shards committed",
        "  0 records done = 0 written + 0 dropped + 0 dead",
        "  run 0123abcd: job.py over in.jsonl",
    ]


def test_some_of_it_is_done(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    commit_all(*made, left={3, 7, 8})
    assert told(capsys, "out") == [
        "out: interrupted",
        "  7 of 10 shards committed",
        "  28 records done = 14 written + 7 dropped + 7 dead, about 12 left",
        "  run 0123abcd: job.py over in.jsonl",
    ]


def test_all_is_done_and_some_of_it_failed(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    commit_all(*made, failed=range(7))
    assert told(capsys, "out") == [
        "out: complete",
        "  10 of 10 shards committed",
        "  12 records done = 6 written + 3 dropped + 3 dead",
        "  run 0123abcd: job.py over in.jsonl",
        "  7 shards failed: replicas died again and again, and nothing of it is in the output",
        *(f"    shard {number}: in.jsonl, bytes {42 * number} to {42 * number + 42}" for number in range(5)),
        "    and 2 more",
    ]


def test_the_same_as_json(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    commit_all(*made, failed={4}, left={3})
    (line,) = told(capsys, "out", "--json")
    assert json.loads(line) == {
        "output": "out",
        "state": "interrupted",
        "shards": 10,
        "committed": 9,
        "failed_shards": [4],
        "totals": {"written": 16, "dropped": 8, "dead": 8},
        "left": 4,
        "run": "0123abcd",
        "holder": None,
        "input": "in.jsonl",
        "job": "job.py",
        "settled": 32,
    }


@pytest.mark.parametrize(
    ("pid", "host", "ago", "running"),
    [
        (os.getpid(), socket.gethostname(), 3, True),
        (2**22 + 1, socket.gethostname(), 3, False),  # no process has such a number
        (2**22 + 1, "elsewhere", 3, True),
        (os.getpid(), socket.gethostname(), 300, False),
    ],
    ids=["here", "gone", "elsewhere", "silent"],
)
def test_who_was_heard_of_and_is_alive_holds_it(
    made: Made, capsys: pytest.CaptureFixture[str], pid: int, host: str, ago: float, running: bool
) -> None:
    lock(made[0], pid=pid, host=host, ago=ago)
    first = told(capsys, "out")[0]
    if running:
        assert first.startswith(f"out: running (pid {pid} on {host}, heard of at 20")
    else:
        assert first == "out: interrupted"


@pytest.mark.parametrize("text", [b"", b"[]", b'{"pid": null}', b"\xff"])
def test_a_lock_that_can_not_be_read_is_nobodys(made: Made, capsys: pytest.CaptureFixture[str], text: bytes) -> None:
    made[0].put("_stageflow/lock.json", text)
    assert told(capsys, "out")[0] == "out: interrupted"


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"stageflow: error: {tmp_path} holds no run",
        "  hint: OUT is what was given to -o of a run with --engine",
    ]


def test_nothing_is_changed(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    commit_all(*made, left={3})
    before = list(made[0].names())
    told(capsys, "out")
    assert list(made[0].names()) == before
