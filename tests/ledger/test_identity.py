"""What may change between two runs: an input that grew, a job where that is accepted; and what failed, tried again."""

from __future__ import annotations

import os

import pytest
from model_job import JOB, at_once
from real_files import Place, commit, finish, numbers, refusal

from stageflow.commit import JobIdentity
from stageflow.errors import RequestError, StateMismatch

OTHER_JOB = JobIdentity("job.py", "rest", {"work": "2"}, {"work": ()})


@pytest.mark.parametrize("leave", ["stopped", "finished", "killed"])
def test_row_30_an_input_that_was_edited(place: Place, leave: str) -> None:
    getattr(place, leave)()
    place.write_input(9)
    match = r"input changed since the last run \(first difference in lines 40001-80000\)"
    error = refusal(place, StateMismatch, match, first_difference=lambda marks: (40001, 80000))
    assert error.exit_code == 7


def test_an_input_that_was_only_touched_goes_on(place: Place) -> None:
    place.stopped()
    os.utime(place.input, (1, 1))
    asked = []
    output, resumption = place.open(first_difference=lambda marks: asked.append(list(marks)))
    assert asked == [[place.mark(5)]]
    assert resumption.start == place.mark(5)
    at_once(output.close(complete=False))


@pytest.mark.parametrize("leave", ["stopped", "finished"])
def test_row_31_an_input_that_grew(place: Place, leave: str) -> None:
    getattr(place, leave)()
    place.write_input(12)
    output, resumption = place.open()
    assert not resumption.complete
    assert "input grew from 10 to 12 lines" in resumption.notes
    left = [n for n in range(12) if not (n < len(resumption.done) and resumption.done[n])]
    assert left == ([10, 11] if leave == "finished" else [6, 7, 8, 9, 10, 11])
    at_once(output.write(commit(*left)))
    at_once(output.close(complete=True))
    assert numbers(place.out) == [n for n in range(12) if n != 3]
    assert place.dead.read_bytes() == b'{"dead":3}\n'


def test_row_33_a_job_that_changed(place: Place) -> None:
    for leave in (place.stopped, lambda: finish(place, *range(6, 10))):
        leave()
        error = refusal(place, StateMismatch, r"job changed: stage work \(source\)", job=OTHER_JOB)
        assert "--accept-job-change" in str(error.hint)
        assert "--fresh" in str(error.hint)


def test_row_33_an_accepted_change_of_the_job_is_kept_in_the_ledger(place: Place) -> None:
    place.stopped()
    output, _ = place.open(job=OTHER_JOB, accept_job_change=True)
    at_once(output.close(complete=False))
    assert b'"t":"e","text":"accepted: job changed: stage work (source)"' in place.ledger.read_bytes()
    refusal(place, StateMismatch, "job changed", job=JOB)
    output, _ = place.open(job=OTHER_JOB)
    at_once(output.close(complete=False))


def test_an_input_that_cannot_be_read_again(place: Place) -> None:
    place.stopped()
    refusal(place, RequestError, "exists, and its input can't be read again to go on with it", input=None)


def test_dead_letters_in_another_file_than_before(place: Place) -> None:
    place.stopped()
    other = place.folder / "elsewhere.jsonl"
    refusal(place, RequestError, f"the dead letters of this run are in {place.dead}", dead=other)


# Trying again what failed


def test_letters_to_try_again_come_by_ordinal_and_can_be_read(place: Place) -> None:
    place.finished()
    output, resumption = place.open(retry_failed=True, job=OTHER_JOB)
    assert [(letter.number, letter.ordinal) for letter in resumption.letters] == [(0, 3)]
    assert output.read_letter(resumption.letters[0]) == b'{"dead":3}\n'
    assert place.partial.exists()
    assert not place.out.exists()
    at_once(output.write(commit(3, resolved=[0])))
    at_once(output.close(complete=True))
    assert numbers(place.out) == list(range(10))
    assert not place.dead.exists()
    assert place.open(retry_failed=True, job=OTHER_JOB)[1].complete


def test_with_nothing_dead_there_is_nothing_to_try_again(place: Place) -> None:
    output, _ = place.open()
    at_once(output.write(commit(*range(10), marks=[place.mark(10)])))
    at_once(output.close(complete=True))
    assert place.open(retry_failed=True)[1].complete
