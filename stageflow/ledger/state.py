"""What a ledger says, added up line by line. Pure: the same lines give the same state, when they are written and read.

A record is open, or it has settled as one of the kinds below. In an ordinary epoch a record settles once. In one that
retries dead letters a record that died may settle again: what its letters were is then settled with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from stageflow.commit import BLANK, DEAD_IN_PART, Commit, InputIdentity, InputMark, JobIdentity, Spend, Totals
from stageflow.ledger.format import Fields, merge_ranges
from stageflow.money import from_text, to_text

__all__ = ["DEAD", "DEAD_IN_PART", "OPEN", "State"]

OPEN: Final = 0
WRITTEN: Final = 1
DROPPED: Final = 2
DEAD: Final = 3
"""Nothing of the record was written."""


class State:
    """The sum of a ledger's lines.

    Attributes:
        header: The newest ``h`` line; ``None`` before the first.
        done: One byte per line of the input: what became of its record. Longer than the input, or shorter.
        results_end, letters_end: How far the two files are covered by commits, in bytes.
        synced_results, synced_letters, synced_totals, synced_at: What was durable by the newest marker, and when.
        peak_memory: Of the process until then, in bytes.
        letters: The ordinal of each dead letter, by number: its line in the file of dead letters.
        settled_letters: By number whether the letter was tried again since.
        retrying: Numbers of the letters of the newest retry, if it has not been finished.
        replaced: By ordinal the numbers of the commits whose lines took the place of all its earlier ones.
        places: By ordinal the place among its record's children of each of its lines, in the order in which they stand
            in the file; only of records whose lines were, or may be, written by more than one commit.
        sorted_commits: How many commits, the first ones, an earlier epoch left in the order of the input.
        ascending: The lines in the file of results are in the order of the input.
        final: The ``f`` line, if nothing followed it.
        base: The newest ``f`` line with a header after it: where the file that is continued was finished.
        spend: What the calls have cost.
        clean: The newest line is a marker written at the end of a run.
        beginning: Nothing was committed in the newest epoch yet.
    """

    def __init__(self) -> None:
        self.header: Fields | None = None
        self.done = bytearray()
        self.totals = Totals()
        self.marks: list[InputMark] = []
        self.results_end = 0
        self.letters_end = 0
        self.synced_results = 0
        self.synced_letters = 0
        self.synced_totals = Totals()
        self.synced_at: str | None = None
        self.peak_memory = 0
        self.letters = array("Q")
        self.settled_letters = bytearray()
        self.retrying: list[list[int]] = []
        self.replaced: dict[int, list[int]] = {}
        self.places: dict[int, list[list[int]]] = {}
        self.commits = 0
        self.sorted_commits = 0
        self.ascending = True
        self.final: Fields | None = None
        self.base: Fields | None = None
        self.spend = Spend()
        self.clean = False
        self.beginning = False
        self._last = -1

    # What it says

    @property
    def run(self) -> str:
        return str(self._head["run"])

    @property
    def epoch(self) -> int:
        return int(self._head["epoch"])

    @property
    def _head(self) -> Fields:
        assert self.header is not None, "a ledger begins with a header"
        return self.header

    def input(self) -> InputIdentity | None:
        """The input as it was when the newest epoch began."""
        found = self._head["input"]
        return InputIdentity(**found) if found is not None else None

    def job(self) -> JobIdentity:
        """The job as it was when the newest epoch began."""
        found = dict(self._head["job"])
        found["graph"] = {name: tuple(needs) for name, needs in found["graph"].items()}
        return JobIdentity(**found)

    def is_done(self, ordinal: int) -> bool:
        return ordinal < len(self.done) and self.done[ordinal] != OPEN

    def open_letters(self) -> Iterator[int]:
        """Numbers of the dead letters that were not tried again since."""
        return (number for number, settled in enumerate(self.settled_letters) if not settled)

    def pending_retries(self) -> Iterator[int]:
        """Of an unfinished retry, the letters still to be tried."""
        return (number for number in merge_ranges(self.retrying) if not self.settled_letters[number])

    @property
    def holds_replaced(self) -> bool:
        """Whether lines that others took the place of are still in the file of results."""
        return any(later[-1] >= self.sorted_commits for later in self.replaced.values())

    def start(self) -> InputMark | None:
        """The last mark before which every record has settled."""
        found, checked = None, 0
        for mark in self.marks:
            if len(self.done) < mark.lines or self.done.find(OPEN, checked, mark.lines) >= 0:
                break
            found, checked = mark, mark.lines
        return found

    # What comes

    def may_settle(self, ordinals: list[int]) -> bool:
        """Whether all of them are open, or dead and being tried again."""
        done, known = self.done, len(self.done)
        if (run := _run_of(ordinals)) is not None and not done[run.start : run.stop].strip(_OPEN_BYTE):
            return True
        settled = [done[ordinal] for ordinal in ordinals if ordinal < known and done[ordinal] != OPEN]
        return not settled or (bool(self.retrying) and {DEAD, DEAD_IN_PART}.issuperset(settled))

    def commit_fields(self, commit: Commit, results: Sequence[int], letters: Sequence[int]) -> Fields:
        """The line of a commit whose results and letters stand at ``[start, end, crc]``."""
        fields: Fields = {"t": "c", "o": results, "x": letters, "k": commit.ordinals}
        if commit.line_counts:
            fields["m"] = commit.line_counts
        if commit.letter_counts:
            fields["d"] = commit.letter_counts
        if commit.places:
            fields["y"] = commit.places
        if commit.resolved:
            fields["q"] = commit.resolved
        if commit.replaced:
            fields["u"] = commit.replaced
        return fields

    def spend_fields(self, spend: Spend) -> Fields:
        """The line that tells what was spent."""
        return {"t": "b", "k": to_text(spend.known), "u": to_text(spend.unsure)}

    def apply(self, fields: Fields) -> None:
        """Add one line."""
        kind = fields["t"]
        if kind == "c":
            self.beginning = False
            self._commit(fields)
        elif kind == "s":
            self._synced(fields)
        elif kind == "i":
            self._mark(fields)
        elif kind == "h":
            self._begin(fields)
        elif kind == "f":
            self.final = fields
        elif kind == "r":
            self.retrying = fields["n"]
        elif kind == "b":
            self.spend = Spend(from_text(fields["k"]), from_text(fields["u"]))
        self.clean = kind == "s" and fields.get("clean", False)

    def _begin(self, fields: Fields) -> None:
        self.header = fields
        self.beginning = True
        if self.final is None:
            return
        self.base, self.final = self.final, None
        self.retrying = []
        self.results_end = self.synced_results = self.base["z"]
        self.letters_end = self.synced_letters = self.base["y"]
        # The file of dead letters was rewritten without those that were tried again.
        kept = array("Q", (self.letters[number] for number in self.open_letters()))
        self.letters, self.settled_letters = kept, bytearray(len(kept))
        if self.base["rewritten"]:
            self.sorted_commits = self.commits
            for places in self.places.values():
                places.sort()
            self.ascending = True
            self._last = len(self.done.rstrip(bytes([OPEN]))) - 1

    def _mark(self, fields: Fields) -> None:
        mark = InputMark(fields["n"], fields["b"], fields["sha"], tuple(fields.get("w", ())))
        self.marks.append(mark)
        if mark.blank:
            self._reach(max(mark.blank))
            for ordinal in mark.blank:
                self.done[ordinal] = BLANK

    def _synced(self, fields: Fields) -> None:
        self.synced_results, self.synced_letters = fields["o"], fields["x"]
        self.synced_totals = Totals(*fields["n"])
        self.synced_at = fields["at"]
        self.peak_memory = fields.get("rss", 0)

    def _commit(self, fields: Fields) -> None:
        ordinals: list[int] = fields["k"]
        self.results_end, self.letters_end = fields["o"][1], fields["x"][1]
        self.commits += 1
        run = _run_of(ordinals)
        if ordinals:
            self._reach(run[-1] if run is not None else max(ordinals))
            if self.ascending:
                self.ascending = ordinals[0] > self._last and (run is not None or ordinals == sorted(ordinals))
                self._last = ordinals[-1]
        if len(fields) == _ORDINARY:
            self._written(ordinals, run)
        else:
            self._settle(ordinals, fields)

    def _written(self, ordinals: list[int], run: range | None) -> None:
        done = self.done
        if run is not None:
            done[run.start : run.stop] = _WRITTEN_BYTE * len(run)
        else:
            for ordinal in ordinals:
                done[ordinal] = WRITTEN
        self.totals.written += len(ordinals)

    def _settle(self, ordinals: list[int], fields: Fields) -> None:
        lines, letters = _by_ordinal(fields.get("m")), _by_ordinal(fields.get("d"))
        for number in fields.get("q", ()):
            self.settled_letters[number] = 1
        replaced = fields.get("u", ())
        for ordinal in replaced:
            self.replaced.setdefault(ordinal, []).append(self.commits - 1)
            self.places.pop(ordinal, None)
        for ordinal, places in (fields.get("y") or {}).items():
            self.places.setdefault(int(ordinal), []).extend(map(list, places))
        for ordinal in ordinals:
            before = self.done[ordinal]
            self._count(before, -1)
            died = letters.get(ordinal, 0)
            self.letters.extend([ordinal] * died)
            self.settled_letters.extend(bytes(died))
            written = lines.get(ordinal, 1) > 0 or (before == DEAD_IN_PART and ordinal not in replaced)
            now = (DEAD_IN_PART if written else DEAD) if died else WRITTEN if written else DROPPED
            self.done[ordinal] = now
            self._count(now, 1)

    def _count(self, kind: int, by: int) -> None:
        totals = self.totals
        if kind == WRITTEN:
            totals.written += by
        elif kind == DROPPED:
            totals.dropped += by
        elif kind in (DEAD, DEAD_IN_PART):
            totals.dead += by

    def _reach(self, ordinal: int) -> None:
        if ordinal >= len(self.done):
            # By an eighth more than asked for, so that growing costs a constant per line.
            self.done.extend(bytes(ordinal + 1 + ordinal // 8 + 1024 - len(self.done)))


_ORDINARY = len(("t", "o", "x", "k", "p"))
"""Fields of the line of a commit whose records were written as one line each."""


_OPEN_BYTE, _WRITTEN_BYTE = bytes([OPEN]), bytes([WRITTEN])
_LONG_RUN: Final = 16


def _run_of(ordinals: list[int]) -> range | None:
    """The ordinals as a range, where they are many and each follows the one before it.

    Then they are one piece of what is kept by line, and Python need not look at each.
    """
    count = len(ordinals)
    if count < _LONG_RUN or ordinals[-1] - ordinals[0] + 1 != count:
        return None
    run = range(ordinals[0], ordinals[0] + count)
    return run if list(run) == ordinals else None


def _by_ordinal(counts: Mapping[Any, int] | None) -> dict[int, int]:
    return {int(ordinal): count for ordinal, count in counts.items()} if counts else {}
