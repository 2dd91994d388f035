"""What is left of a run, however it ended: read, checked, and cut back to its last whole commit.

The rules:

1. The ledger counts up to its first line that is torn, damaged or out of the chain.
2. A sync marker is written after everything before it was made durable. So if one stands behind such a line, the line
   was whole once: that is damage, and nothing is touched.
3. What follows the last marker may be there or not, in any order, after a loss of power. The bytes of each such commit
   are read again; the first whose checksum is wrong ends the ledger, too.
4. A file that is shorter than a marker says was shortened by somebody else; so was one that is longer after the run
   ended in good order. Nothing is touched.
5. All three files are cut back to what counts, and synced. Doing that twice changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from stageflow.errors import RequestError, StateMismatch
from stageflow.ledger.disk import READ_BYTES, Disk, read_exactly, read_lines
from stageflow.ledger.format import SEAL_BYTES, VERSION, Fields, parse, seal_of, stands_alone
from stageflow.ledger.names import Names
from stageflow.ledger.state import State

__all__ = ["Lines", "Recovered", "read_state"]

_MARKERS = (b'{"t":"s",', b'{"t":"f",')
_MARKER_BYTES = 4096
"""No marker is longer, with what stands before it."""


class Lines:
    """Iterates over the lines of a ledger that count. Afterwards ``end`` and ``seal`` tell where and with which CRC."""

    def __init__(self, disk: Disk, ledger: int) -> None:
        self.end = 0
        self.seal = 0
        self._disk = disk
        self._ledger = ledger

    def __iter__(self) -> Iterator[Fields]:
        for line in read_lines(self._disk, self._ledger):
            fields = parse(line[:-1], self.seal) if line.endswith(b"\n") else None
            if fields is None:
                return
            self.end += len(line)
            self.seal = seal_of(line)
            yield fields


@dataclass(slots=True)
class Recovered:
    """A ledger's state, where it ends, and how many bytes of the files lie beyond."""

    state: State
    end: int
    seal: int
    results_cut: int = 0
    letters_cut: int = 0


def read_state(disk: Disk, names: Names, ledger: int, results: int | None, letters: int | None) -> Recovered:
    """Read a ledger and check the files against it, without changing anything.

    Args:
        ledger, results, letters: Descriptors; ``None`` for a file that does not exist.

    Raises:
        RequestError: The dead letters are kept in another file than they were.
        StateMismatch: The ledger is damaged in its durable part, of a newer format, or the files are not what it says.
    """
    state, lines, marked = State(), Lines(disk, ledger), _last_marker(disk, ledger)
    recovered = Recovered(state, 0, 0)
    for fields in lines:
        if fields["t"] == "h":
            _refuse_newer(names, fields)
            _refuse_other_letters(names, fields)
        # What a marker speaks of was there when it was written, and may have been put in order since.
        if lines.end > marked and not _holds(disk, state, fields, results, letters):
            break
        state.apply(fields)
        recovered.end, recovered.seal = lines.end, lines.seal
    _refuse_damage(names, recovered.end, marked)
    _compare_sizes(disk, names, recovered, results, letters)
    return recovered


def _refuse_newer(names: Names, header: Fields) -> None:
    if header["v"] > VERSION:
        raise StateMismatch(
            f"ledger format {header['v']} is newer than this stageflow ({VERSION})",
            hint=f"continue {names.shown} with the stageflow that wrote it",
        )


def _refuse_other_letters(names: Names, header: Fields) -> None:
    if header["dead"] != names.letters_noted:
        where = os.path.join(names.directory, header["dead"]) if header["dead"] else "no file"
        raise RequestError(f"the dead letters of this run are in {where}", hint="give the same --dead as before")


def _holds(disk: Disk, state: State, fields: Fields, results: int | None, letters: int | None) -> bool:
    """Whether the bytes that a line speaks of are there, and right."""
    if fields["t"] != "c":
        return True
    return all(
        start == before and _crc(disk, descriptor, start, end) == crc
        for (start, end, crc), before, descriptor in (
            (fields["o"], state.results_end, results),
            (fields["x"], state.letters_end, letters),
        )
    )


def _crc(disk: Disk, descriptor: int | None, start: int, end: int) -> int | None:
    """The checksum of a range of a file; ``None`` where the file ends before."""
    crc = 0
    while start < end:
        block = disk.read(descriptor, min(READ_BYTES, end - start), start) if descriptor is not None else b""
        if not block:
            return None
        crc = crc32(block, crc)
        start += len(block)
    return crc


def _last_marker(disk: Disk, ledger: int) -> int:
    """Where the last line ends that is a marker or a final line by its own CRC; 0 where there is none.

    Looked for from the end, by what such a line begins with: damage may have made one line of two.
    """
    end = disk.size(ledger)
    while end > 0:
        start = max(0, end - READ_BYTES)
        block = read_exactly(disk, ledger, start, end)
        at = len(block)
        while (at := max(block.rfind(begin, 0, at) for begin in _MARKERS)) >= SEAL_BYTES:
            line_end = block.find(b"\n", at)
            if line_end >= 0 and stands_alone(block[at - SEAL_BYTES : line_end]) is not None:
                return start + line_end + 1
        end = start + _MARKER_BYTES if start else 0
    return 0


def _refuse_damage(names: Names, end: int, marked: int) -> None:
    """Refuse a ledger with a marker behind the place where it stops to count."""
    if end < marked:
        raise StateMismatch(
            f"ledger damaged at byte {end} (before a durable marker)",
            hint=f"restore {names.shown}.ledger from a copy, or start anew with --fresh",
        )


def _compare_sizes(disk: Disk, names: Names, recovered: Recovered, results: int | None, letters: int | None) -> None:
    state = recovered.state
    if state.final is not None:
        return  # what is where, then, is the business of who finishes
    for descriptor, shown, synced, end in (
        (results, f"{names.shown}.partial", state.synced_results, state.results_end),
        (letters, names.shown_letters, state.synced_letters, state.letters_end),
    ):
        size = disk.size(descriptor) if descriptor is not None else 0
        if size < max(synced, end):
            raise StateMismatch(
                f"{shown} is shorter than its ledger says ({size:,} < {max(synced, end):,} bytes)",
                hint="restore it from a copy, or start anew with --fresh",
            )
        if size > end and state.clean:
            mend = f"cut it back to {end} bytes" if end else "move it away"
            raise StateMismatch(
                f"{shown} is longer than its ledger says ({size:,} > {end:,} bytes), and the last run ended in order",
                hint=f"something else wrote to it: {mend}, or start anew with --fresh",
            )
    recovered.results_cut = max(0, (disk.size(results) if results is not None else 0) - state.results_end)
    recovered.letters_cut = max(0, (disk.size(letters) if letters is not None else 0) - state.letters_end)
