"""From a whole run to finished files, in steps that can be done again after a kill at any moment.

::

    final line written      the ledger says that the run is complete, and what the files will be; synced
    letters compacted       OUT.dead.jsonl holds only the records that are still dead (a copy, renamed over it)
    output renamed          OUT.partial gets its name; or, out of order, a sorted copy does, and
    partial removed         OUT.partial is removed
    form made               where OUT is no JSON lines, it is made of them, which are OUT.jsonl then; see form.py

At no moment does OUT hold less than everything. Which steps are done can be told from what is there: the size of the
dead letters, and whether OUT and OUT.partial exist. A later epoch takes OUT back under its partial name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Final

from stageflow.errors import StateMismatch, StorageError
from stageflow.ledger.disk import READ_BYTES, Disk, ScatteredReads, line_lengths, read_lines
from stageflow.ledger.form import Copy, Stopped, make_form
from stageflow.ledger.format import Fields
from stageflow.ledger.names import Names
from stageflow.ledger.order import OrderIndex, Place
from stageflow.ledger.recovery import Lines
from stageflow.ledger.state import State
from stageflow.protocols import Form

__all__ = ["Files", "Stopped", "final_line", "finish", "needs_rewriting", "take_back"]

_REPLACED: Final = 2**63
"""The ordinal, above all others, of lines that later ones took the place of."""


@dataclass(frozen=True, slots=True)
class Files:
    """What finishing works on: descriptors, and ``stopped``, which is asked now and then whether to end early.

    Args:
        form: What is made of the finished results.
        notes: What the user should know of that, when it is done.
    """

    disk: Disk
    names: Names
    ledger: int
    results: int
    letters: int | None
    stopped: Callable[[], bool] = lambda: False
    form: Form | None = None
    notes: list[str] = field(default_factory=list)


def needs_rewriting(state: State, order: str) -> bool:
    """Whether the file of results must be copied: it is out of order, or holds lines that others took the place of."""
    return state.holds_replaced or (order == "input" and not state.ascending)


def final_line(files: Files, state: State, *, order: str, ended: bool) -> Fields:
    """The line that says a run is complete. It takes one reading of each file that will be copied."""
    rewritten = needs_rewriting(state, order)
    size = state.results_end
    if state.holds_replaced:
        index = _index(files, state)
        size = sum(length for ordinal, _, length in index.in_order() if ordinal != _REPLACED)
        index.close()
    return {
        "t": "f",
        "o": state.results_end,
        "x": state.letters_end,
        "z": size,
        "y": sum(map(len, _open_letters(files, state))) if any(state.settled_letters) else state.letters_end,
        "rewritten": rewritten,
        "ended": ended,
        "n": [state.totals.written, state.totals.dropped, state.totals.dead],
    }


def finish(files: Files, state: State) -> None:
    """Do what is not yet done of the steps after the final line.

    Raises:
        Stopped: It was asked to end.
        StateMismatch: The files are not what they were when the run was complete.
        StorageError: They can't be written.
    """
    assert state.final is not None, "finished before it was complete"
    _refuse_changed(files, _final(state))
    try:
        _compact(files, state)
        _publish(files, state)
        files.notes.extend(make_form(files.disk, files.names, files.form, lambda: _refuse_stopped(files)))
        for directory in files.names.directories:
            files.disk.sync_directory(directory)
    except OSError as error:
        raise StorageError(f"cannot write {files.names.shown}: {error.strerror}; nothing is lost") from error


def _refuse_changed(files: Files, final: Fields) -> None:
    """Refuse, before anything is done, files of another size than the ones that the final line speaks of."""
    names, disk = files.names, files.disk
    letters = disk.size(files.letters) if files.letters is not None else 0
    if letters not in (final["x"], final["y"]):
        raise _changed(names.shown_letters, letters, final["y"])
    # Where the copy has its name already, the descriptor is the file it was made from.
    named, copied = disk.exists(names.output), disk.exists(names.partial)
    shown, expected = (names.shown, final["z"]) if named and not copied else (f"{names.shown}.partial", final["o"])
    if (size := disk.size(files.results)) != expected:
        raise _changed(shown, size, expected)


def take_back(disk: Disk, names: Names) -> None:
    """Let a new epoch go on with a finished file: it gets its partial name again."""
    if names.made is not None:
        disk.remove(names.made)
    if disk.exists(names.output) and not disk.exists(names.partial):
        disk.rename(names.output, names.partial)
        disk.sync_directory(names.directory)
        disk.reached("output taken back")


# Dead letters


def _compact(files: Files, state: State) -> None:
    final, names, disk = _final(state), files.names, files.disk
    if files.letters is None or names.letters is None or disk.size(files.letters) == final["y"] != 0:
        return
    if final["y"]:
        with Copy(disk, names.letters, 0o600) as copy:
            for line in _open_letters(files, state):
                copy.write(line)
    else:
        disk.remove(names.letters)
    disk.reached("letters compacted")


def _open_letters(files: Files, state: State) -> Iterator[bytes]:
    """The lines of the dead letters that were not tried again since."""
    assert files.letters is not None, "letters without a file"
    for settled, line in zip(
        state.settled_letters, read_lines(files.disk, files.letters, 0, state.letters_end), strict=True
    ):
        if not settled:
            yield line


# Results


def _publish(files: Files, state: State) -> None:
    final, names, disk = _final(state), files.names, files.disk
    if disk.exists(names.output):
        _remove_partial(files, final)
        return
    if not final["rewritten"]:
        disk.rename(names.partial, names.output)
        disk.reached("output renamed")
        return
    index = _index(files, state)
    try:
        with Copy(disk, names.output, disk.mode(files.results)) as copy:
            results = ScatteredReads(disk, files.results, state.results_end)
            for start, end in _pieces(index, state):
                _refuse_stopped(files)
                copy.write(results.read(start, end))
            disk.reached("output sorted")
    finally:
        index.close()
    disk.reached("output renamed")
    _remove_partial(files, final)


def _refuse_stopped(files: Files) -> None:
    if files.stopped():
        raise Stopped


def _remove_partial(files: Files, final: Fields) -> None:
    """Remove what a copy in the right order was made of, once the copy is there for good."""
    names, disk = files.names, files.disk
    if not disk.exists(names.partial):
        return
    copy = disk.open(names.output, write=False)
    try:
        size = disk.size(copy)
    finally:
        disk.close(copy)
    if size != final["z"]:
        raise _changed(names.shown, size, final["z"])
    disk.sync_directory(names.directory)
    disk.remove(names.partial)
    disk.reached("partial removed")


def _final(state: State) -> Fields:
    assert state.final is not None, "finished before it was complete"
    return state.final


def _changed(shown: str, size: int, expected: int) -> StateMismatch:
    return StateMismatch(
        f"{shown} is not what it was when the run was complete ({size:,} bytes, its ledger says {expected:,})",
        hint="restore it from a copy, or start anew with --fresh",
    )


# Where the lines of each record stand


def _index(files: Files, state: State) -> OrderIndex:
    """The pieces of the file of results, in the order in which they stand there.

    The file begins with what an earlier epoch left in the order of the input, if one did; then come the commits since.
    """
    disk, sorted_commits = files.disk, state.sorted_commits
    lengths = line_lengths(disk, files.results, state.results_end)
    index = OrderIndex(disk.scratch(files.names.directory))
    if sorted_commits:
        for ordinal, count in _sorted_before(files, state):
            gone = any(later >= sorted_commits for later in state.replaced.get(ordinal, ()))
            _add(index, state, _REPLACED if gone else ordinal, islice(lengths, count))
    for commit, ordinals, counts in _commits(files, sorted_commits, state.commits):
        if _are_ordinary(ordinals, state):
            index.add_all(*_sizes(ordinals, counts, lengths))
            continue
        for ordinal in ordinals:
            if count := counts.get(ordinal, 1):
                gone = any(later > commit for later in state.replaced.get(ordinal, ()))
                _add(index, state, _REPLACED if gone else ordinal, islice(lengths, count))
    assert index.size == state.results_end, "the lines of all records are the whole file"
    return index


def _sorted_before(files: Files, state: State) -> Iterator[tuple[int, int]]:
    """Each ordinal of which an earlier epoch left lines in the order of the input, and how many, in that order."""
    before = OrderIndex(files.disk.scratch(files.names.directory))
    for commit, ordinals, counts in _commits(files, 0, state.sorted_commits):
        for ordinal in ordinals:
            replaced = any(commit < later < state.sorted_commits for later in state.replaced.get(ordinal, ()))
            if not replaced and (count := counts.get(ordinal, 1)):
                before.add(ordinal, count)
    for ordinal, _, count in before.in_order():
        yield ordinal, count
    before.close()


def _commits(files: Files, first: int, end: int) -> Iterator[tuple[int, list[int], dict[int, int]]]:
    """The commits from ``first`` to before ``end``: number, ordinals, and by ordinal how many lines, if not one."""
    commit = 0
    for fields in Lines(files.disk, files.ledger):
        if fields["t"] == "c":
            if first <= commit < end:
                yield commit, fields["k"], {int(ordinal): count for ordinal, count in (fields.get("m") or {}).items()}
            commit += 1


def _sizes(ordinals: list[int], counts: Mapping[int, int], lengths: Iterator[int]) -> tuple[list[int], list[int]]:
    """The ordinals of a commit that wrote anything, and how many bytes that was."""
    if not counts:
        return ordinals, list(islice(lengths, len(ordinals)))
    wrote = [ordinal for ordinal in ordinals if counts.get(ordinal, 1)]
    return wrote, [sum(islice(lengths, counts.get(ordinal, 1))) for ordinal in wrote]


def _are_ordinary(ordinals: Iterable[int], state: State) -> bool:
    """Whether none of these records has lines in another commit, too."""
    return state.places.keys().isdisjoint(ordinals) and state.replaced.keys().isdisjoint(ordinals)


def _add(index: OrderIndex, state: State, ordinal: int, lengths: Iterable[int]) -> None:
    """Note the lines of a record: as one piece, or one by one where others will stand between them."""
    for length in lengths if ordinal in state.places else (sum(lengths),):
        index.add(ordinal, length)


def _in_order(index: OrderIndex, state: State) -> Iterator[Place]:
    """What is kept, by ordinal, and within a record in the order in which its children were yielded."""
    if not state.places and not state.replaced:
        return index.in_order()
    return _placed(index, state)


def _placed(index: OrderIndex, state: State) -> Iterator[Place]:
    for ordinal, pieces in groupby(index.in_order(), key=itemgetter(0)):
        if ordinal == _REPLACED:
            break
        if ordinal in state.places:
            placed = zip(state.places[ordinal], pieces, strict=True)
            yield from (piece for _, piece in sorted(placed, key=itemgetter(0)))
        else:
            yield from pieces


def _pieces(index: OrderIndex, state: State) -> Iterator[tuple[int, int]]:
    """Start and end of what is to be copied, one after another: joined where they touch, cut where they are long."""
    start = end = 0
    for _, offset, length in _in_order(index, state):
        if offset != end or end - start >= READ_BYTES:
            if end - start > READ_BYTES:
                yield from _cut(start, end)
            elif end > start:
                yield start, end
            start = offset
        end = offset + length
    yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterable[tuple[int, int]]:
    return ((at, min(at + READ_BYTES, end)) for at in range(start, end, READ_BYTES))
