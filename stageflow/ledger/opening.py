"""How a run begins: the lock, what is left of earlier runs, and the next epoch.

Whatever is refused is refused before anything was changed, and every file that was opened is closed again: a
descriptor that leaked would keep the lock.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace

from stageflow.commit import BLANK, LetterPlace, OpenRequest, Resumption
from stageflow.errors import OutputLocked, RequestError, StateMismatch, StorageError
from stageflow.ledger.disk import Disk, read_exactly, read_lines
from stageflow.ledger.finish import Files, finish, take_back
from stageflow.ledger.form import give_lines_back
from stageflow.ledger.format import HEADER_BYTES, VERSION, Fields, stands_alone
from stageflow.ledger.mounts import weak_mount
from stageflow.ledger.names import Names, as_text
from stageflow.ledger.recovery import Recovered, read_state
from stageflow.ledger.refusals import (
    OR_FRESH,
    accepted_changes,
    refuse_foreign,
    refuse_stray_output,
    refuse_unwritable,
)
from stageflow.ledger.state import OPEN, State
from stageflow.ledger.store import Store, now
from stageflow.protocols import Form

__all__ = ["open_store", "read_letter"]


def open_store(
    disk: Disk, names: Names, request: OpenRequest, form: Form | None = None
) -> tuple[Store | None, Resumption]:
    """Begin a run, or go on with one.

    Args:
        form: What is made of the results in the end.

    Returns:
        The store to write to, and what earlier runs have done. No store where there is nothing to do.

    Raises:
        RequestError: Something stands in the way, or can't be written to.
        OutputLocked: Another run writes to it.
        StateMismatch: What is there is damaged, or belongs to another input or job.
        StorageError: It can't be read or written.
    """
    refuse_unwritable(disk, names)
    store: Store | None
    with ExitStack() as opened:
        try:
            ledger = _open_ledger(disk, names, opened, request)
            if ledger is None:
                store, resumption = _begin(disk, names, opened, request)
            else:
                give_lines_back(disk, names, form)
                store, resumption = _resume(disk, names, ledger, opened, request, form)
        except OSError as error:
            raise StorageError(f"cannot open {names.shown}: {error.strerror}") from error
        if store is not None:
            opened.pop_all()  # from here on they are the store's to close
    if weak := weak_mount(names.directory):
        resumption.notes.append(f"{names.shown} is on {weak}, where locks and safety against loss of power are weaker")
    return store, resumption


def _open_ledger(disk: Disk, names: Names, opened: ExitStack, request: OpenRequest) -> int | None:
    """The ledger that is there, locked; ``None`` where a run begins."""
    present = names.present(disk)  # before the ledger is looked for: a run that begins just now makes that one first
    if not disk.exists(names.ledger):
        if present and not request.fresh:
            _, shown = present[0]
            raise RequestError(
                f"{shown} exists and was not written by stageflow, or its ledger is gone",
                hint=f"choose another name, restore {names.shown}.ledger, {OR_FRESH}",
            )
        return None
    with ExitStack() as looking:
        ledger = disk.open(names.ledger)
        looking.callback(disk.close, ledger)
        if not disk.lock(ledger):
            header = _header(disk, ledger) or {}
            who = f"pid {header.get('pid', '?')} on {header.get('host', '?')} since {header.get('at', '?')}"
            raise OutputLocked(f"{names.shown} is being written by {who}", hint="wait for it, or choose another output")
        if not disk.is_at(ledger, names.ledger):
            raise OutputLocked(f"{names.shown} was being written until just now", hint="run the same command again")
        if request.fresh:
            names.set_aside(disk, names.ledger)
            return None
        opened.push(looking.pop_all())
    return ledger


def _header(disk: Disk, ledger: int) -> Fields | None:
    """The newest header of a ledger, as far as it can be told without checking anything else."""
    found = None
    for line in read_lines(disk, ledger):
        if b'"t":"h"' in line[:HEADER_BYTES] and (fields := stands_alone(line.rstrip(b"\n"))) is not None:
            found = fields
    return found


# A run that begins


def _begin(disk: Disk, names: Names, opened: ExitStack, request: OpenRequest) -> tuple[Store, Resumption]:
    try:
        ledger = disk.create(names.ledger)
    except FileExistsError:
        raise OutputLocked(
            f"{names.shown} is being written by a run that began just now", hint="choose another output"
        ) from None
    opened.callback(disk.close, ledger)
    if not disk.lock(ledger):
        raise OutputLocked(f"{names.shown} is being written by a run that began just now", hint="choose another output")
    if request.fresh:
        names.set_aside(disk)  # only now: without the lock they could be those of a run that began just now
    return _first_epoch(disk, names, ledger, opened, request)


def _first_epoch(
    disk: Disk, names: Names, ledger: int, opened: ExitStack, request: OpenRequest
) -> tuple[Store, Resumption]:
    for directory in names.directories:
        disk.sync_directory(directory)  # the ledger has its name before any data has one
    results = disk.create(names.partial, 0o666)
    opened.callback(disk.close, results)
    letters = _claim_letters(disk, names)
    if letters is not None:
        opened.callback(disk.close, letters)
    found = Recovered(State(), 0, 0)
    store = Store(disk, names, ledger=ledger, results=results, letters=letters, found=found)
    run = uuid.uuid4().hex[:12]
    store.begin(_header_fields(names, request, run, 1))
    store.sync()
    return store, Resumption(run=run)


def _claim_letters(disk: Disk, names: Names) -> int | None:
    """Make the file of dead letters before there are any, where another run could come to make one of that name."""
    if not names.letters_named:
        return None
    assert names.letters is not None, "a name without a file"
    return disk.create(names.letters)


def _header_fields(names: Names, request: OpenRequest, run: str, epoch: int) -> Fields:
    return {
        "t": "h",
        "v": VERSION,
        "run": run,
        "epoch": epoch,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "at": now(),
        "dead": names.letters_noted,
        "opts": {"order": request.order},
        "input": asdict(request.input) | {"path": as_text(request.input.path)} if request.input is not None else None,
        "job": asdict(request.job) | {"file": as_text(request.job.file)},
    }


# A run that goes on


def _resume(
    disk: Disk, names: Names, ledger: int, opened: ExitStack, request: OpenRequest, form: Form | None
) -> tuple[Store | None, Resumption]:
    data = opened.enter_context(ExitStack())
    results, letters = _open_data(disk, names, data)
    found = read_state(disk, names, ledger, results, letters)
    state = found.state
    if state.header is None:
        refuse_foreign(disk, names, ledger, results, letters)
        disk.truncate(ledger, 0)
        data.close()
        disk.remove(names.partial)
        if letters is not None and names.letters is not None:
            disk.remove(names.letters)
        return _first_epoch(disk, names, ledger, opened, request)
    refuse_stray_output(disk, names, state)
    resumption = Resumption(
        run=state.run,
        epoch=state.epoch,
        done=state.done,
        totals=state.totals,
        marks=tuple(state.marks),
        spend=state.spend,
    )
    changes = accepted_changes(names, state, request, resumption)
    retries = _letters_to_retry(names, state) if request.retry_failed else []
    if state.final is not None:
        disk.sync(ledger)  # the run that wrote the final line may have been killed before it did
        finish(replace(_files(disk, names, ledger, results, letters), form=form), state)
        if not retries and _nothing_left(state, request):
            resumption.complete = True
            return None, resumption
        data.close()  # they may be other files now
        give_lines_back(disk, names, form)
        results, letters = _open_data(disk, names, data)
    resumption.notes += _what_was_left(state, found)
    store = _next_epoch(disk, names, ledger, results, letters, found, request)
    if results is None:
        opened.callback(disk.close, store.results)
    if letters is None and store.letters is not None:
        opened.callback(disk.close, store.letters)
    if changes:
        store.write_line({"t": "e", "text": "accepted: job changed: " + ", ".join(changes)})
    if retries:
        pending = list(store.state.pending_retries())
        numbers = pending or list(store.state.open_letters())
        if not pending:
            store.retry(numbers)
        resumption.letters = _places(disk, store, numbers)
    store.sync()
    resumption.epoch, resumption.start = store.state.epoch, store.state.start()
    return store, resumption


def _open_data(disk: Disk, names: Names, opened: ExitStack) -> tuple[int | None, int | None]:
    descriptors: list[int | None] = []
    results = names.partial if disk.exists(names.partial) else names.output
    for path in (results, names.letters):
        descriptor = disk.open(path) if path is not None and disk.exists(path) else None
        if descriptor is not None:
            opened.callback(disk.close, descriptor)
        descriptors.append(descriptor)
    return descriptors[0], descriptors[1]


def _files(disk: Disk, names: Names, ledger: int, results: int | None, letters: int | None) -> Files:
    if results is None:
        raise StateMismatch(
            f"{names.shown} is gone, though its ledger says that the run is complete",
            hint=f"restore it from a copy, {OR_FRESH}",
        )
    return Files(disk, names, ledger, results, letters)


def _nothing_left(state: State, request: OpenRequest) -> bool:
    assert state.final is not None, "asked of a run that is not complete"
    if request.limit is not None and _settled_first(state) >= request.limit:
        return True
    read = state.marks[-1].bytes if state.marks else 0
    before, given = state.input(), request.input
    assert before is not None, "asked without an input"
    assert given is not None, "asked without an input"
    # How long a compressed text is by now, only reading it tells.
    return bool(state.final["ended"]) and (given.same_file(before) or (given.codec == "plain" and given.size == read))


def _settled_first(state: State) -> int:
    """Records before the first that has not settled. Behind that one, too, some may have."""
    end = (state.done + bytes([OPEN])).find(OPEN)
    return end - state.done.count(BLANK, 0, end)


def _letters_to_retry(names: Names, state: State) -> list[int]:
    found = list(state.pending_retries()) or list(state.open_letters())
    if found and names.letters is None:
        raise RequestError(
            f"the dead letters of {names.shown} were kept in no file, so they can't be tried again",
            hint="start anew with --fresh, and name a file with --dead",
        )
    return found


def _what_was_left(state: State, found: Recovered) -> list[str]:
    """What to tell of a run that did not end in good order."""
    if state.clean or state.final is not None:
        return []
    notes = [
        f"the previous run ended without shutdown at {state.totals.settled:,} records; "
        f"its peak memory was {state.peak_memory >> 20:,} MiB"
    ]
    if cut := found.results_cut + found.letters_cut:
        notes.append(f"{cut:,} bytes that it had half written are cut off")
    return notes


def _next_epoch(
    disk: Disk,
    names: Names,
    ledger: int,
    results: int | None,
    letters: int | None,
    found: Recovered,
    request: OpenRequest,
) -> Store:
    """Cut the files back to what counts, and begin."""
    state = found.state
    results_end = state.final["z"] if state.final is not None else state.results_end
    letters_end = state.final["y"] if state.final is not None else state.letters_end
    if results is not None and disk.size(results) > results_end:
        disk.truncate(results, results_end)
        disk.sync(results)
    disk.reached("results cut")
    if letters is not None and disk.size(letters) > letters_end:
        disk.truncate(letters, letters_end)
        disk.sync(letters)
    if disk.size(ledger) > found.end:
        disk.truncate(ledger, found.end)
    disk.sync(ledger)
    disk.reached("ledger cut")
    if results is None:
        results = disk.create(names.partial, 0o666)
    if letters is None:
        letters = _claim_letters(disk, names)
    store = Store(disk, names, ledger=ledger, results=results, letters=letters, found=found)
    store.begin(_header_fields(names, request, state.run, state.epoch + 1))
    disk.reached("epoch begun")
    take_back(disk, names)
    return store


# Dead letters to try again


def _places(disk: Disk, store: Store, numbers: Sequence[int]) -> list[LetterPlace]:
    """Where the letters stand, by ordinal."""
    assert store.letters is not None, "letters without a file"
    wanted, places, offset = set(numbers), [], 0
    for number, line in enumerate(read_lines(disk, store.letters, 0, store.state.letters_end)):
        if number in wanted:
            places.append(LetterPlace(number, store.state.letters[number], offset, len(line)))
        offset += len(line)
    return sorted(places, key=lambda place: (place.ordinal, place.number))


def read_letter(store: Store, place: LetterPlace) -> bytes:
    """The line of a dead letter."""
    assert store.letters is not None, "letters without a file"
    return read_exactly(store.disk, store.letters, place.offset, place.offset + place.length)
