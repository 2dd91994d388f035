"""What is particular to a folder: drafts, modes, links that a file server makes and denies, and what is no folder."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from stageflow.errors import RequestError
from stageflow.stores import LocalStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def local(folder: Path) -> LocalStore:
    made = LocalStore(str(folder))
    made.check()
    return made


def refusal(path: Path) -> RequestError:
    with pytest.raises(RequestError) as refused:
        LocalStore(str(path)).check()
    return refused.value


def test_the_folder_is_made_and_the_one_it_is_in_is_not(tmp_path: Path) -> None:
    LocalStore(str(tmp_path / "out")).check()
    assert os.listdir(tmp_path / "out") == []
    error = refusal(tmp_path / "a" / "b")
    assert str(error) == f"cannot write to {tmp_path}/a/b: No such file or directory"
    assert error.hint == f"make the folder {tmp_path}/a first"
    assert not (tmp_path / "a").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert str(refusal(tmp_path / "out")) == f"cannot write to {tmp_path}/out: Not a directory"


def test_a_folder_that_is_read_only_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", opened)
    assert str(refusal(folder)) == f"cannot write to {folder}: Read-only file system"


def test_a_file_system_without_hard_links_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def linked(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", linked)
    error = refusal(folder)
    assert "is on a file system without hard links" in str(error)
    assert error.hint == "choose a folder on another one"
    assert os.listdir(folder) == []


@pytest.mark.parametrize("said", [errno.EEXIST, errno.EIO])
def test_a_link_that_was_made_and_denied_counts(
    local: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    link = os.link

    def linked(*arguments: Any, **options: Any) -> None:
        link(*arguments, **options)
        raise OSError(said, os.strerror(said))

    monkeypatch.setattr(os, "link", linked)
    assert local.create("commits/1", b"1")
    assert os.listdir(folder / "commits") == ["1"]


def test_a_link_that_fails_is_no_name_that_is_taken(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def linked(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", linked)
    with pytest.raises(OSError, match="Input/output error"):
        local.create("commits/1", b"1")


def test_a_write_that_fails_leaves_what_was_there(
    local: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("a", b"before")

    def synced(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        with pytest.raises(OSError, match="No space left"):
            local.put("a", b"after")
    assert local.read("a") == b"before"
    assert os.listdir(folder) == ["a"]


def test_drafts_of_those_who_were_killed_are_no_objects_and_go_after_a_day(local: LocalStore, folder: Path) -> None:
    local.put("a/b", b"1")
    old, new = (folder / "a" / f".b.{digit * 16}.tmp" for digit in "01")
    for draft in (old, new):
        draft.write_bytes(b"half")
    day_before = time.time() - 25 * 3600
    os.utime(old, (day_before, day_before))
    assert list(local.names()) == [("a/b", 1)]
    local.check()
    assert sorted(os.listdir(folder / "a")) == [new.name, "b"]


def test_dead_letters_are_for_their_owner(local: LocalStore, folder: Path) -> None:
    before = os.umask(0o022)
    try:
        local.put("_stageflow/attempts/1.dead", b"1")
        local.put("_stageflow/attempts/1.out", b"1")
    finally:
        os.umask(before)
    local.publish("_stageflow/attempts/1.dead", "dead/part-1")
    local.publish("_stageflow/attempts/1.out", "part-1")
    assert stat.S_IMODE((folder / "dead" / "part-1").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "part-1").stat().st_mode) == 0o644


def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("a", b"")
    done: list[str] = []
    for name in ("fsync", "link", "rename"):
        call = getattr(os, name)

        def told(*arguments: Any, _call: Any = call, _name: str = name, **options: Any) -> Any:
            synced = stat.S_ISDIR(os.fstat(arguments[0]).st_mode) if _name == "fsync" else False
            done.append("folder" if synced else _name)
            return _call(*arguments, **options)

        monkeypatch.setattr(os, name, told)
    local.put("a", b"1")
    local.create("b", b"1")
    local.publish("b", "c")
    assert done == ["fsync", "rename", "folder", "fsync", "link", "folder", "rename", "folder"]
    done.clear()
    local.create("x/y/z", b"1")
    assert done == ["folder", "folder", "fsync", "link", "folder"]
