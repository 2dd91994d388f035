"""The last step to a file that is no JSON lines: interrupted, refused by its library, and taken back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stageflow.errors import RequestError, StorageError
from stageflow.ledger.disk import Disk
from stageflow.ledger.form import Stopped, give_lines_back, make_form
from stageflow.ledger.names import Names

LINES = b"".join(b'{"n": %d}\n' % n for n in range(5000))


class Reversed:
    """The lines, each from its end."""

    lossless = True

    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        for line in lines():
            write(line[-2::-1] + b"\n")
        return ["they were turned round"]

    def lines_of(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        data = b"".join(iter(lambda: read(1000), b""))
        if b"!" in data:
            raise RequestError("it is another")
        for line in data.splitlines():
            write(line[::-1] + b"\n")


class Table(Reversed):
    lossless = False


class Refusing(Table):
    def make(self, lines: Callable[[], Iterator[bytes]], write: Callable[[bytes], object]) -> list[str]:
        write(b"half")
        raise ValueError("too wide")


@pytest.fixture
def names(tmp_path: Path) -> Names:
    made = Names(str(tmp_path / "out"), None, made=True)
    Path(made.output).write_bytes(LINES)
    os.chmod(made.output, 0o640)
    return made


def never() -> None:
    """Nobody asks to end."""


def there(names: Names) -> list[str]:
    return sorted(os.listdir(names.directory))


def test_it_is_made_once_with_the_mode_of_the_lines(names: Names) -> None:
    assert make_form(Disk(), names, Table(), never) == ["they were turned round"]
    assert there(names) == ["out", "out.jsonl"]
    assert os.stat(names.made or "").st_mode & 0o777 == 0o640
    assert make_form(Disk(), names, Refusing(), never) == []


def test_the_lines_go_where_they_can_be_had_again_and_come_back(names: Names) -> None:
    make_form(Disk(), names, Reversed(), never)
    assert there(names) == ["out"]
    give_lines_back(Disk(), names, Reversed())
    assert there(names) == ["out", "out.jsonl"]
    assert Path(names.output).read_bytes() == LINES
    Path(names.output).rename(names.partial)
    give_lines_back(Disk(), names, Reversed())
    assert there(names) == ["out", "out.partial"]


def test_what_is_asked_to_end_leaves_nothing_of_it(names: Names) -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        make_form(Disk(), names, Reversed(), check)
    assert there(names) == ["out.jsonl"]
    make_form(Disk(), names, Reversed(), never)
    assert there(names) == ["out"]


def test_what_a_library_refuses_is_told_and_leaves_the_lines(names: Names) -> None:
    with pytest.raises(StorageError, match=r"cannot make .*/out: too wide; the results are in .*/out\.jsonl"):
        make_form(Disk(), names, Refusing(), never)
    assert there(names) == ["out.jsonl"]


def test_a_file_that_gives_no_lines_back_is_told(names: Names) -> None:
    make_form(Disk(), names, Reversed(), never)
    Path(names.made or "").write_bytes(b"other!")
    with pytest.raises(StorageError, match=r"cannot read .*/out: it is another"):
        give_lines_back(Disk(), names, Reversed())
    assert there(names) == ["out"]
