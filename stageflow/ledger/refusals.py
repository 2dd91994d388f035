"""What a run does not go on with: a place it can't write to, files that are not a ledger's, another input, another job.

It is refused before anything was changed.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from stageflow.commit import OpenRequest, Resumption
from stageflow.errors import RequestError, StateMismatch
from stageflow.ledger.disk import Disk
from stageflow.ledger.format import HEADER_BYTES, begins_as_header
from stageflow.ledger.names import Names
from stageflow.ledger.state import State

__all__ = ["OR_FRESH", "accepted_changes", "refuse_foreign", "refuse_stray_output", "refuse_unwritable"]

OR_FRESH: Final = "or start anew with --fresh, which keeps the old files under other names"
"""What a hint ends with, where the old files are in the way."""


def refuse_unwritable(disk: Disk, names: Names) -> None:
    """Refuse an output that is a folder, and folders in which no file can be made."""
    for directory in names.directories:
        try:
            disk.try_directory(directory)
        except OSError as error:
            path = names.shown if directory == names.directory else names.shown_letters
            raise RequestError(
                f"cannot write to {os.path.dirname(path) or '.'}: {error.strerror}", hint="choose another folder"
            ) from error
    if os.path.isdir(names.output):
        raise RequestError(f"cannot write to {names.shown}: {os.strerror(errno.EISDIR)}", hint="give a file name")


def refuse_foreign(disk: Disk, names: Names, ledger: int, results: int | None, letters: int | None) -> None:
    """Refuse what is no ledger. One that has no header yet is of a run that ended as it began, with nothing written."""
    head = disk.read(ledger, HEADER_BYTES, 0)
    begun = begins_as_header(head) or _is_no_text(head)
    if disk.exists(names.output) or (letters is not None and disk.size(letters)) or not begun:
        raise StateMismatch(f"{names.shown}.ledger is not a ledger", hint=f"choose another output, {OR_FRESH}")
    if results is not None and disk.size(results):
        # Nothing is written before the header is durable: so it was there once.
        raise StateMismatch(
            "ledger damaged at byte 0 (before results were written)",
            hint=f"restore {names.shown}.ledger from a copy, {OR_FRESH}",
        )


def _is_no_text(head: bytes) -> bool:
    """Whether it may be what a loss of power leaves of a header: zeros, or anything."""
    try:
        return "\0" in head.decode()
    except UnicodeDecodeError:
        return True


def refuse_stray_output(disk: Disk, names: Names, state: State) -> None:
    """Refuse a finished file where, by the ledger, there can't be one yet."""
    taken_back_next = state.base is not None and state.beginning
    there = disk.exists(names.output) or (names.made is not None and disk.exists(names.made))
    if state.final is None and there and not taken_back_next:
        raise StateMismatch(
            f"{names.shown} exists, though its ledger says that the run is not complete",
            hint=f"move it away, {OR_FRESH}",
        )


def accepted_changes(names: Names, state: State, request: OpenRequest, resumption: Resumption) -> list[str]:
    """Refuse another input and another job. That the input grew is noted with the resumption.

    Returns:
        What changed about the job, where that was accepted.
    """
    before, given = state.input(), request.input
    if before is None or given is None:
        raise RequestError(
            f"{names.shown} exists, and its input can't be read again to go on with it",
            hint=f"choose another output, {OR_FRESH}",
        )
    if not given.same_file(before):
        if (lines := request.first_difference(state.marks)) is not None:
            raise StateMismatch(
                f"input changed since the last run (first difference in lines {lines[0]}-{lines[1]})",
                hint=f"restore it, choose another output, {OR_FRESH}",
            )
        if given.size > before.size and given.codec == before.codec == "plain" and not given.version:
            was, lines_now = _count_lines(given.path, before.size), _count_lines(given.path, given.size)
            if lines_now > was:  # not by the end of its last line alone
                resumption.notes.append(f"input grew from {was:,} to {lines_now:,} lines")
    changes = request.job_changes(state.job(), request.job)
    if changes and not (request.accept_job_change or request.retry_failed):
        raise StateMismatch(
            f"job changed: {', '.join(changes)}",
            hint="go on all the same with --accept-job-change, or start anew with --fresh",
        )
    return changes


def _count_lines(path: str, end: int) -> int:
    """Lines in the first ``end`` bytes of a file; the last one need not have an end."""
    lines, last = 0, b"\n"
    with open(path, "rb") as file:
        while end > 0 and (block := file.read(min(end, 1 << 20))):
            lines, last, end = lines + block.count(b"\n"), block[-1:], end - len(block)
    return lines + (last != b"\n")
