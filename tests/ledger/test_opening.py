"""What a run finds when it starts: where it goes on, and what it refuses, without a byte changed or a lock kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_job import DirectOutput, at_once
from real_files import Place, commit, finish, numbers, refusal

from stageflow.errors import OutputLocked, RequestError, StateMismatch, StorageError
from stageflow.ledger.disk import Disk
from stageflow.ledger.format import parse, seal, seal_of

# Where it can't begin


def test_row_19_an_output_folder_that_is_not_there(place: Place) -> None:
    missing = place.folder / "no" / "out.jsonl"
    refusal(place, RequestError, f"cannot write to {missing.parent}: No such file or directory", out=missing)
    dead = place.folder / "none" / "dead.jsonl"
    refusal(place, RequestError, f"cannot write to {dead.parent}: No such file", dead=dead)


def test_row_19_an_output_folder_that_is_read_only(place: Place) -> None:
    class ReadOnly(Disk):
        def try_directory(self, path: str) -> None:
            raise OSError(30, os.strerror(30))

    refusal(place, RequestError, f"cannot write to {place.folder}: Read-only file system", disk=ReadOnly())


def test_an_output_that_is_a_folder(place: Place) -> None:
    place.out.mkdir()
    refusal(place, RequestError, "cannot write to .*out.jsonl: Is a directory")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial", "out.jsonl.dead.jsonl"])
def test_row_20_a_file_that_stageflow_did_not_write(place: Place, name: str) -> None:
    (place.folder / name).write_text("precious\n")
    error = refusal(place, RequestError, f"{name} exists and was not written by stageflow, or its ledger is gone")
    assert error.exit_code == 2
    assert "--fresh" in str(error.hint)


def test_row_27_the_ledger_was_deleted(place: Place) -> None:
    place.stopped()
    place.ledger.unlink()
    error = refusal(place, RequestError, "out.jsonl.partial exists and was not written by stageflow, or its ledger is")
    assert f"restore {place.ledger}" in str(error.hint)


def test_fresh_renames_what_is_there(place: Place) -> None:
    place.finished()
    old = place.files()
    output, resumption = place.open(fresh=True)
    assert (resumption.epoch, bytes(resumption.done)) == (1, b"")
    at_once(output.close(complete=False))
    assert place.files() == {name if name == "in.jsonl" else f"{name}.1": data for name, data in old.items()}
    place.out.write_text("precious\n")
    output, _ = place.open(fresh=True)
    at_once(output.close(complete=False))
    assert (place.folder / "out.jsonl.2").read_text() == "precious\n"


# Complete


def test_row_21_the_same_command_after_completion_changes_nothing(place: Place) -> None:
    place.finished()
    before, times = place.files(), {path: path.stat().st_mtime_ns for path in place.folder.iterdir()}
    descriptors = place.descriptors()
    _, resumption = place.open()
    assert resumption.complete
    assert (resumption.totals.written, resumption.totals.dead) == (9, 1)
    assert place.files() == before
    assert {path: path.stat().st_mtime_ns for path in place.folder.iterdir()} == times
    assert place.descriptors() == descriptors
    assert not place.is_locked()


def test_a_limit_is_complete_until_a_run_without_it(place: Place) -> None:
    output, _ = place.open(limit=3)
    at_once(output.write(commit(0, 1, 2, marks=[place.mark(10)])))
    at_once(output.close(complete=True, ended=False))
    assert place.open(limit=3)[1].complete
    finish(place, *range(3, 10))
    assert numbers(place.out) == list(range(10))


def test_a_limit_is_not_reached_by_records_behind_it(place: Place) -> None:
    output, _ = place.open(limit=2)
    at_once(output.write(commit(0, 1, marks=[place.mark(10)])))
    at_once(output.close(complete=True, ended=False))
    output, _ = place.open()
    at_once(output.write(commit(2, 4, 5, 6, 7)))
    at_once(output.close(complete=False))
    output, _ = place.open(limit=3)
    at_once(output.close(complete=True, ended=False))
    assert place.open(limit=3)[1].complete
    output, resumption = place.open(limit=4)
    assert not resumption.complete, "record 3 was never done"
    at_once(output.close(complete=False))


def test_a_long_run_without_a_marker_goes_on_after_its_file_was_put_in_order(place: Place) -> None:
    count = 12_000
    place.write_input(count)
    output, _ = place.open()
    for first in range(0, count, 2):
        at_once(output.write(commit(first + 1)))
        at_once(output.write(commit(first)))
    at_once(output.write(commit(marks=[place.mark(count)])))
    at_once(output.close(complete=True))
    assert numbers(place.out) == list(range(count))
    assert place.open()[1].complete
    place.write_input(count + 1)
    finish(place, count)
    assert numbers(place.out) == list(range(count + 1))


@pytest.mark.parametrize("edit", ["removed", "cut", "extended"])
def test_row_29_a_finished_output_that_somebody_changed(place: Place, edit: str) -> None:
    place.finished()
    data = place.out.read_bytes()
    if edit == "removed":
        place.out.unlink()
        refusal(place, StateMismatch, "out.jsonl is gone, though its ledger says that the run is complete")
    else:
        place.out.write_bytes(data[:-1] if edit == "cut" else data + b"x")
        refusal(place, StateMismatch, r"out.jsonl is not what it was when the run was complete \(\d+ bytes, its ledger")


def test_row_29_finished_dead_letters_that_somebody_changed(place: Place) -> None:
    place.finished()
    place.dead.write_bytes(place.dead.read_bytes() + b"x")
    refusal(place, StateMismatch, "out.jsonl.dead.jsonl is not what it was when the run was complete")


def test_dead_letters_that_were_kept_in_no_file_are_not_tried_again(place: Place) -> None:
    output = DirectOutput(str(place.out), dead=None, fsync="off")
    output.open(place.request())
    at_once(output.write(commit(0, 1, line_counts={1: 0}, letter_counts={1: 1}, marks=[place.mark(10)])))
    at_once(output.close(complete=True))
    before = place.files()
    with pytest.raises(RequestError, match=r"the dead letters of .*out.jsonl were kept in no file") as caught:
        DirectOutput(str(place.out), dead=None, fsync="off").open(place.request(retry_failed=True))
    assert caught.value.hint == "start anew with --fresh, and name a file with --dead"
    assert (place.files(), place.is_locked()) == (before, False)


# Locked


def test_row_22_a_second_run_leaves_the_first_undisturbed(place: Place) -> None:
    first, _ = place.open()
    at_once(first.write(commit(0, marks=[place.mark(10)])))
    before, descriptors = place.files(), place.descriptors()
    for fresh in (False, True):
        with pytest.raises(OutputLocked, match=rf"out.jsonl is being written by pid {os.getpid()} on .* since 20\d\d-"):
            place.output().open(place.request(fresh=fresh))
    assert place.files() == before
    assert place.descriptors() == descriptors
    assert place.is_locked()
    at_once(first.write(commit(*range(1, 10))))
    at_once(first.close(complete=True))
    assert numbers(place.out) == list(range(10))
    assert not place.is_locked()


def test_a_run_that_waited_for_the_lock_of_a_ledger_that_is_gone_leaves_it(place: Place) -> None:
    class Slow(Disk):
        def lock(self, descriptor: int) -> bool:
            place.ledger.unlink()  # the run that had it wrote nothing, and left nothing
            return super().lock(descriptor)

    place.stopped()
    place.partial.unlink()
    with pytest.raises(OutputLocked, match="was being written until just now"):
        place.output(disk=Slow()).open(place.request())
    assert not place.partial.exists()


def test_a_run_that_begins_just_now_is_never_set_aside(place: Place) -> None:
    began: list[str] = []

    class Second(Disk):
        """Begins a run of its own in the middle of the beginning of another."""

        def exists(self, path: str) -> bool:
            found = super().exists(path)
            if path == str(place.ledger) and not began:
                began.append(path)
                place.open()
            return found

    with pytest.raises(OutputLocked, match="is being written by a run that began just now"):
        place.output(disk=Second()).open(place.request(fresh=True))
    assert sorted(place.files()) == ["in.jsonl", "out.jsonl.ledger", "out.jsonl.partial"]


def test_what_is_there_is_renamed_by_one_of_two_that_start_anew(place: Place) -> None:
    began: list[str] = []

    class Second(Disk):
        def exists(self, path: str) -> bool:
            found = super().exists(path)
            if path == str(place.ledger) and not began:
                began.append(path)
                place.open(fresh=True)
            return found

    place.out.write_text("precious\n")
    with pytest.raises(OutputLocked, match="is being written by a run that began just now"):
        place.output(disk=Second()).open(place.request(fresh=True))
    assert sorted(place.files()) == ["in.jsonl", "out.jsonl.1", "out.jsonl.ledger", "out.jsonl.partial"]


def test_a_run_that_began_just_now_is_not_taken_for_a_foreign_file(place: Place) -> None:
    class Second(Disk):
        def exists(self, path: str) -> bool:
            found = super().exists(path)
            if path == str(place.partial) and not found and not place.ledger.exists():
                place.open()
            return found

    with pytest.raises(OutputLocked, match="is being written by pid"):
        place.output(disk=Second()).open(place.request())


# Names


def test_names_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    place = Place(folder)
    place.stopped()
    assert rb"caf\\udce9/in.jsonl" in place.ledger.read_bytes()
    finish(place, *range(6, 10))
    assert place.open()[1].complete


# Links


def test_files_that_were_moved_together_go_on(place: Place, tmp_path: Path) -> None:
    place.stopped()
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    place.folder.rename(moved)
    place.folder.mkdir()
    there = Place(moved)
    _, resumption = there.open()
    assert resumption.totals.settled == 6


def test_row_24_a_symbolic_link_is_followed_once_and_stays_one(place: Place) -> None:
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    place.out.symlink_to(elsewhere / "real.jsonl")
    output, _ = place.open()
    at_once(output.write(commit(1, 0, *range(2, 10), marks=[place.mark(10)])))
    assert {path.name for path in elsewhere.iterdir()} == {"real.jsonl.partial", "real.jsonl.ledger"}
    at_once(output.close(complete=True))
    assert place.out.is_symlink()
    assert not (elsewhere / "real.jsonl").is_symlink()
    assert numbers(place.out) == list(range(10))
    assert place.open()[1].complete


def test_a_ledger_that_is_a_link_is_not_followed(place: Place) -> None:
    place.stopped()
    place.ledger.rename(place.folder / "moved")
    place.ledger.symlink_to(place.folder / "moved")
    refusal(place, StorageError, "cannot open .*out.jsonl")


# Damaged


def test_row_28_damage_before_a_marker(place: Place) -> None:
    place.stopped()
    data = bytearray(place.ledger.read_bytes())
    start = data.index(b'{"t":"c"') - 9
    data[start + 20] ^= 1
    place.ledger.write_bytes(data)
    error = refusal(place, StateMismatch, rf"ledger damaged at byte {start} \(before a durable marker\)")
    assert error.exit_code == 7
    assert "--fresh" in str(error.hint)


@pytest.mark.parametrize("left", [b"", bytes(500), bytes(range(256))], ids=["emptied", "zeroed", "garbled"])
def test_results_are_never_removed_because_the_ledger_lost_its_beginning(place: Place, left: bytes) -> None:
    place.stopped()
    place.dead.unlink()
    place.ledger.write_bytes(left)
    refusal(place, StateMismatch, "ledger damaged at byte 0")


@pytest.mark.parametrize("left", [b"", b"0123", b'89abcdef {"t":"h","v":1,"run', bytes(700), bytes(512) + b'"x"}\n'])
def test_a_run_that_was_killed_as_it_began_begins_again(place: Place, left: bytes) -> None:
    place.ledger.write_bytes(left)
    place.partial.touch()
    finish(place, *range(10))
    assert numbers(place.out) == list(range(10))


@pytest.mark.parametrize("content", ["notes of mine\n", "{}\n", "0123456789\n" * 9])
def test_a_file_of_that_name_that_is_no_ledger(place: Place, content: str) -> None:
    place.ledger.write_text(content)
    refusal(place, StateMismatch, "out.jsonl.ledger is not a ledger")


def test_row_29_results_cut_by_somebody(place: Place) -> None:
    place.stopped()
    size = place.partial.stat().st_size
    os.truncate(place.partial, size - 3)
    match = rf"out.jsonl.partial is shorter than its ledger says \({size - 3} < {size} bytes\)"
    refusal(place, StateMismatch, match)
    place.partial.unlink()
    refusal(place, StateMismatch, rf"shorter than its ledger says \(0 < {size} bytes\)")


def test_row_29_results_extended_by_somebody_after_a_clean_end(place: Place) -> None:
    place.stopped()
    with place.partial.open("ab") as file:
        file.write(b"more\n")
    refusal(place, StateMismatch, "out.jsonl.partial is longer than its ledger says .*and the last run ended in order")


def test_row_29_dead_letters_cut_or_extended_by_somebody(place: Place) -> None:
    place.stopped()
    data = place.dead.read_bytes()
    place.dead.write_bytes(data[:-1])
    refusal(place, StateMismatch, "out.jsonl.dead.jsonl is shorter than its ledger says")
    place.dead.write_bytes(data + b"x")
    refusal(place, StateMismatch, "out.jsonl.dead.jsonl is longer than its ledger says")


def test_row_29_a_tail_that_a_kill_left_is_cut_and_told(place: Place) -> None:
    place.killed()
    with place.partial.open("ab") as file:
        file.write(b'{"half":')
    output, resumption = place.open()
    assert "8 bytes that it had half written are cut off" in resumption.notes
    assert any("the previous run ended without shutdown at 6 records" in note for note in resumption.notes)
    assert place.partial.read_bytes().endswith(b"}\n")
    at_once(output.close(complete=False))


def test_dead_letters_that_appear_before_the_first_one_are_left_alone(place: Place) -> None:
    output, _ = place.open()
    at_once(output.write(commit(0, marks=[place.mark(10)])))
    place.dead.write_bytes(b"of another run\n")
    with pytest.raises(
        StorageError, match=r"out.jsonl.dead.jsonl appeared during the run; 1 records are safe"
    ) as caught:
        at_once(output.write(commit(1, line_counts={1: 0}, letters=[b"{}\n"], letter_counts={1: 1})))
    assert caught.value.hint == "move it away"
    at_once(output.close(complete=False))
    error = refusal(place, StateMismatch, r"dead.jsonl is longer than its ledger says \(15 > 0 bytes\)")
    assert error.hint == "something else wrote to it: move it away, or start anew with --fresh"
    place.dead.unlink()
    finish(place, *range(1, 10))
    assert numbers(place.out) == list(range(10))


def test_a_finished_name_that_appears_while_the_run_is_not_complete(place: Place) -> None:
    place.stopped()
    place.out.write_text("precious\n")
    refusal(place, StateMismatch, "out.jsonl exists, though its ledger says that the run is not complete")


def test_a_finished_name_that_appears_during_the_run_is_left_alone(place: Place) -> None:
    output, _ = place.open()
    at_once(output.write(commit(0)))
    place.out.write_text("precious\n")
    with pytest.raises(StorageError, match=r"out.jsonl appeared during the run; the results are in .*\.partial"):
        at_once(output.close(complete=True))
    assert place.out.read_text() == "precious\n"
    place.out.unlink()
    assert place.open()[1].totals.written == 1


def test_row_34_a_ledger_of_a_newer_format(place: Place) -> None:
    place.stopped()
    previous, sealed, lines = 0, 0, []
    for line in place.ledger.read_bytes().splitlines():
        fields = parse(line, previous)
        assert fields is not None
        previous = seal_of(line)
        if fields["t"] == "h":
            fields["v"] = 3
        made, sealed = seal(fields, sealed)
        lines.append(made)
    place.ledger.write_bytes(b"".join(lines))
    refusal(place, StateMismatch, r"ledger format 3 is newer than this stageflow \(1\)")
