"""A ledger against a plain dict: commits, syncs, crashes, retries, a growing input and a full disk, in any order."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from model_job import DEAD_PATH, OUT, DirectOutput, at_once, request_for
from simulated_disk import Crash, SimulatedDisk

from stageflow.commit import Commit, InputIdentity, InputMark
from stageflow.errors import StorageError

LINE_BYTES = 8


@dataclass(frozen=True)
class Settled:
    """What one record came to, the first time or when it was tried again."""

    ordinal: int
    lines: tuple[bytes, ...]
    letters: tuple[bytes, ...]
    again: bool = False
    replaced: bool = False


@dataclass
class Model:
    """Records by ordinal: their lines, in the order in which they were written, and the letters that are open."""

    lines: dict[int, list[bytes]] = field(default_factory=dict)
    letters: dict[int, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, commits: list[list[Settled]]) -> Model:
        model = cls()
        for settled in (each for commit in commits for each in commit):
            if settled.again:
                model.letters[settled.ordinal] = []
            if settled.replaced:
                model.lines[settled.ordinal] = []
            model.lines.setdefault(settled.ordinal, []).extend(settled.lines)
            model.letters.setdefault(settled.ordinal, []).extend(settled.letters)
        return model

    def output(self) -> list[bytes]:
        return [line for ordinal in sorted(self.lines) for line in self.lines[ordinal]]

    def dead(self) -> list[bytes]:
        return [letter for letters in self.letters.values() for letter in letters]


class Ledgers(RuleBasedStateMachine):
    """``sure`` commits survive a kill, ``marked`` ones a loss of power, too."""

    @initialize(seed=st.integers(0, 2**16), lines=st.integers(0, 12))
    def begin(self, seed: int, lines: int) -> None:
        self.source = Path("in.jsonl")
        self.disk = SimulatedDisk(random.Random(seed))
        self.rng = random.Random(seed)
        self.output: DirectOutput | None = None
        self.history: list[list[Settled]] = []
        self.sure = self.marked = self.made = 0
        self.again: dict[int, list[int]] = {}
        self.lines = 0
        self.finished = False
        self._grow(lines)

    def _grow(self, lines: int) -> None:
        self.lines += lines
        self.source.write_bytes(b"{}     \n" * self.lines)

    def _request(self, retry: bool) -> Any:
        size = LINE_BYTES * self.lines
        return request_for(InputIdentity(str(self.source), 1, 1, size, self.lines, self.lines), retry_failed=retry)

    def is_open(self) -> bool:
        return getattr(self, "output", None) is not None

    def is_closed(self) -> bool:
        return hasattr(self, "source") and self.output is None

    # What a run does

    @precondition(is_closed)
    @rule(retry=st.booleans())
    def resume(self, retry: bool) -> None:
        output = DirectOutput(OUT, dead=DEAD_PATH, fsync="off", disk=self.disk, disk_full_wait=0.0)
        try:
            resumption = output.open(self._request(retry))
        except Crash:
            return self._after_crash()
        model = Model.of(self.history)
        if resumption.complete:
            assert self.finished
            return self._check_files()
        self.output = output
        self._recovered(output._open.state.commits)
        model = Model.of(self.history)
        done = {ordinal for ordinal in range(self.lines) if output._open.state.is_done(ordinal)}
        assert done == set(model.lines)
        assert sorted(output._open.state.letters[number] for number in output._open.state.open_letters()) == sorted(
            ordinal for ordinal, letters in model.letters.items() for _ in letters
        )
        self.again = {}
        found: dict[int, list[bytes]] = {}
        for place in resumption.letters:
            self.again.setdefault(place.ordinal, []).append(place.number)
            found.setdefault(place.ordinal, []).append(output.read_letter(place))
        assert all(letters == model.letters[ordinal] for ordinal, letters in found.items())
        self.finished = False

    def _recovered(self, commits: int) -> None:
        assert self.sure <= commits <= len(self.history), (self.sure, commits, len(self.history))
        del self.history[commits:]
        self.sure = self.marked = commits

    @precondition(is_open)
    @rule(data=st.data(), room=st.none() | st.integers(0, 200))
    def settle(self, data: st.DataObject, room: int | None) -> None:
        """Write a commit, perhaps to a disk that has not room for all of it."""
        choices = sorted(self._todo())
        if not choices:
            return
        ordinals = data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=4, unique=True))
        commit = [self._settled(ordinal, data) for ordinal in ordinals]
        before = {DEAD_PATH: b"", **self.disk.contents()}
        self.disk.capacity = None if room is None else sum(map(len, before.values())) + room
        try:
            self._write(commit)
        except StorageError:
            self.history.pop()
            assert {DEAD_PATH: b"", **self.disk.contents()} == before
        finally:
            self.disk.capacity = None

    def _todo(self) -> set[int]:
        return set(self.again) | (set(range(self.lines)) - set(Model.of(self.history).lines))

    def _settled(self, ordinal: int, data: st.DataObject) -> Settled:
        lines, letters = data.draw(st.integers(0, 2)), data.draw(st.sampled_from((0, 0, 1, 2)))
        again = ordinal in self.again
        self.made += 1
        return Settled(
            ordinal,
            tuple(b'{"of":%d,"line":%d,"n":%d}\n' % (ordinal, line, self.made) for line in range(lines)),
            tuple(b'{"dead":%d,"letter":%d,"n":%d}\n' % (ordinal, letter, self.made) for letter in range(letters)),
            again,
            again and data.draw(st.booleans()),
        )

    def _write(self, settled: list[Settled]) -> None:
        assert self.output is not None
        commit = Commit(
            ordinals=[each.ordinal for each in settled],
            lines=[line for each in settled for line in each.lines],
            line_counts={each.ordinal: len(each.lines) for each in settled if len(each.lines) != 1},
            letters=[letter for each in settled for letter in each.letters],
            letter_counts={each.ordinal: len(each.letters) for each in settled if each.letters},
            resolved=[number for each in settled for number in self.again.get(each.ordinal, ())],
            replaced=[each.ordinal for each in settled if each.replaced],
        )
        self.history.append(settled)
        try:
            at_once(self.output.write(commit))
        except Crash:
            return self._after_crash()
        self.sure = len(self.history)
        for each in settled:
            self.again.pop(each.ordinal, None)

    @precondition(is_open)
    @rule()
    def sync(self) -> None:
        assert self.output is not None
        try:
            self.output.sync()
        except Crash:
            return self._after_crash()
        self.marked = len(self.history)

    @precondition(is_open)
    @rule(complete=st.booleans(), data=st.data())
    def close(self, complete: bool, data: st.DataObject) -> None:
        """Stop in good order, or settle what is left and finish the files."""
        assert self.output is not None
        output, left = self.output, sorted(self._todo())
        if complete and left:
            self._write([self._settled(ordinal, data) for ordinal in left])
        try:
            if self.output is not None and complete:
                at_once(output.write(Commit(marks=[InputMark(self.lines, LINE_BYTES * self.lines, "digest")])))
            if self.output is not None:
                at_once(output.close(complete=complete))
        except Crash:
            self.finished = complete
            return self._after_crash()
        if self.output is None:
            return
        self.output = None
        self.finished = complete
        self.sure = self.marked = len(self.history)
        if complete:
            self._check_files()

    def _check_files(self) -> None:
        files, model = self.disk.contents(), Model.of(self.history)
        assert files[OUT].splitlines(keepends=True) == model.output()
        assert Counter(files.get(DEAD_PATH, b"").splitlines(keepends=True)) == Counter(model.dead())
        assert set(files) <= {OUT, OUT + ".ledger", DEAD_PATH}

    # What happens to it

    @precondition(lambda self: hasattr(self, "source"))
    @rule(operations=st.integers(1, 25))
    def crash_soon(self, operations: int) -> None:
        self.disk.crash_at = self.disk.operations + operations

    @precondition(is_open)
    @rule()
    def crash_now(self) -> None:
        self._after_crash()

    @precondition(is_closed)
    @rule()
    def lose_power_between_runs(self) -> None:
        self.sure = self.marked
        self.disk.restart(power_lost=True)

    @precondition(is_closed)
    @rule(lines=st.integers(1, 4))
    def grow(self, lines: int) -> None:
        self._grow(lines)

    def _after_crash(self) -> None:
        if self.output is not None:
            self.output.abandon()
        self.output = None
        power_lost = self.rng.random() < 0.5
        if power_lost:
            self.sure = self.marked
        self.disk.restart(power_lost=power_lost)


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
