"""Runs on real files, in a test's own folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from model_job import DirectOutput, at_once, request_for

from stageflow.commit import Commit, InputIdentity, InputMark, OpenRequest, Resumption
from stageflow.errors import StageflowError

__all__ = ["Place", "commit", "finish", "numbers", "refusal"]


def commit(*ordinals: int, **more: Any) -> Commit:
    """A line for each record, unless ``line_counts`` says that it has none."""
    counts = more.get("line_counts", {})
    lines = [b'{"n":%d}\n' % ordinal for ordinal in ordinals for _ in range(counts.get(ordinal, 1))]
    return Commit(ordinals=list(ordinals), lines=lines, **more)


class Place:
    """An input of so many lines, and the files of a run over it."""

    def __init__(self, folder: Path, lines: int = 10) -> None:
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.out = folder / "out.jsonl"
        self.dead = folder / "out.jsonl.dead.jsonl"
        self.partial = folder / "out.jsonl.partial"
        self.ledger = folder / "out.jsonl.ledger"
        self.said: list[str] = []
        self.write_input(lines)

    def write_input(self, lines: int) -> None:
        self.input.write_text("".join(f'{{"i":{n}}}\n' for n in range(lines)))

    def request(self, **settings: Any) -> OpenRequest:
        found = self.input.stat()
        source = InputIdentity(
            str(self.input), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )
        return request_for(settings.pop("input", source), **settings)

    def mark(self, lines: int) -> InputMark:
        """The mark behind so many lines of one digit."""
        return InputMark(lines, 8 * lines, f"digest {lines}")

    def output(self, **settings: Any) -> DirectOutput:
        dead = str(settings.pop("dead", self.dead))
        out = str(settings.pop("out", self.out))
        return DirectOutput(out, dead=dead, fsync="off", tell=self.said.append, **settings)

    def open(self, **settings: Any) -> tuple[DirectOutput, Resumption]:
        output = self.output()
        return output, output.open(self.request(**settings))

    def finished(self) -> None:
        """A run of the whole input; record 3 is dead."""
        output, _ = self.open()
        at_once(output.write(commit(*range(3), marks=[self.mark(10)])))
        at_once(output.write(commit(3, line_counts={3: 0}, letters=[b'{"dead":3}\n'], letter_counts={3: 1})))
        at_once(output.write(commit(*range(4, 10))))
        at_once(output.close(complete=True))

    def stopped(self) -> None:
        """A run that ended in good order after six records, one of them dead."""
        output, _ = self.open()
        at_once(output.write(commit(4, 0, 1, 2, marks=[self.mark(5)])))
        at_once(output.write(commit(3, 5, line_counts={3: 0}, letters=[b'{"dead":3}\n'], letter_counts={3: 1})))
        at_once(output.close(complete=False))

    def killed(self) -> None:
        """A run that was killed after six records; a marker speaks of four."""
        output, _ = self.open()
        at_once(output.write(commit(4, 0, 1, 2, marks=[self.mark(5)])))
        output.sync()
        at_once(output.write(commit(3, 5)))
        store = output._open
        output.abandon()
        store.close()

    def files(self) -> dict[str, bytes | str]:
        """Everything in the folder: the bytes of files, where links lead."""
        return {
            str(path.relative_to(self.folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }

    @staticmethod
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def is_locked(self) -> bool:
        if not self.ledger.exists():
            return False
        with self.ledger.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def refusal(place: Place, kind: type[StageflowError], match: str, **request: Any) -> StageflowError:
    """The error with which a run is refused. It changed nothing, and holds nothing."""
    before, open_files = place.files(), place.descriptors()
    out = {name: request.pop(name) for name in ("out", "dead", "disk") if name in request}
    with pytest.raises(kind, match=match) as caught:
        place.output(**out).open(place.request(**request))
    assert type(caught.value) is kind
    assert place.files() == before
    assert place.descriptors() == open_files
    assert not place.is_locked()
    return caught.value


def finish(place: Place, *ordinals: int, **request: Any) -> None:
    output, _ = place.open(**request)
    at_once(output.write(commit(*ordinals)))
    at_once(output.close(complete=True))


def numbers(path: Path) -> list[int]:
    return [int(line[5:-1]) for line in path.read_bytes().splitlines()]
