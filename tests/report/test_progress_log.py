"""What the lines of a run say: what it waits for, how far it is, and the messages shown whatever the progress."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from snapshots import BUSY, LETTER, States, stage, state

from stageflow.events import RecordDead, Resumed, RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.report.progress import ProgressLog, make_progress, waiting_for

# What a run waits for


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (BUSY, "generate (64/64 in flight, 64 queued)"),
        (state(stage("a", in_flight=64), stage("b", in_flight=2)), "a (64/64 in flight)"),
        (
            state(stage("a", in_flight=9, blocked=55, queued=64), stage("b", in_flight=3, queued=64)),
            "b (3/64 in flight, 64 queued)",
        ),
        (state(stage("a", in_flight=64, queued=9), stage("b", in_flight=2, queued=1)), "a (64/64 in flight, 9 queued)"),
        (state(stage("a", blocked=3), stage("b", blocked=4)), "the output (b: 4 blocked)"),
        (state(stage("a", in_flight=2), open=2), "the input"),
        (state(stage("a", in_flight=2), open=2, read=10_000), "a (2/64 in flight)"),
        (state(stage("a", in_flight=2), open=2, total=None), "the input or a (2/64 in flight)"),
        (state(stage("a"), open=0), "the input"),
        (state(stage("a"), open=0, read=10_000), "the end"),
        (state(stage("a", in_flight=64), stage("b", paused=7)), "b (paused for 7.00 s: its service asked for it)"),
        (state(stage("a", in_flight=2, waiting=9)), "a (9 items before their next attempt or permit)"),
        (state(stage("a", in_flight=64, waiting=9)), "a (64/64 in flight, 9 waiting)"),
        (state(), "the output (100 open records are in no stage)"),
        (state(stage("a", in_flight=2), open=70), "the output (68 open records are in no stage)"),
        (state(stage("x\x1b[2J\n", in_flight=64)), "x (64/64 in flight)"),
    ],
)
def test_waiting_for(snapshot: Snapshot, reason: str) -> None:
    assert " ".join(waiting_for(snapshot).split()) == reason


def test_after_a_request_to_stop_nothing_waits_for_input() -> None:
    assert waiting_for(state(stage("a", in_flight=2), open=2), reading=False) == "a (2/64 in flight)"


# The log


def test_the_log_says_how_far_how_fast_and_why() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    later = replace(BUSY, seconds=10.0, written=1_200, dropped=31, dead=3)
    log.on_event(RunStarted("rag", States(BUSY, later)))
    log.refresh()
    assert stream.getvalue() == (
        "stageflow: 1,234 of ~10,000 done (12 %), 123/s, 3 dead; waiting for generate (64/64 in flight, 64 queued)\n"
    )


def test_the_log_without_a_total_and_after_the_end() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    log.refresh()
    log.on_event(RunStarted("rag", States(replace(BUSY, total=None, written=7))))
    log.refresh()
    log.on_event(RunEnded())
    log.refresh()
    assert stream.getvalue() == "stageflow: 7 done, 0/s; waiting for generate (64/64 in flight, 64 queued)\n"


def test_100_percent_is_not_said_before_it_is() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    for snapshot in (replace(BUSY, written=9_999), replace(BUSY, written=10_000, read=10_000), replace(BUSY, total=0)):
        log.on_event(RunStarted("rag", States(snapshot)))
        log.refresh()
    assert [line.split(" done")[1][:7] for line in stream.getvalue().splitlines()] == [" (99 %)", " (100 %", " (0 %),"]


def test_an_estimate_that_was_too_low_is_raised_to_what_was_read() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    log.on_event(RunStarted("rag", States(replace(BUSY, read=12_000, written=11_000))))
    log.refresh()
    assert stream.getvalue().startswith("stageflow: 11,000 of ~12,000 done (91 %), ")


def test_the_rate_is_that_of_the_last_seconds() -> None:
    stream = io.StringIO()
    log = ProgressLog(stream)
    # A thousand a second at first, then ten: what counts is how it goes now.
    states = [replace(BUSY, seconds=5.0 * step, written=5_000 * min(step, 2) + 50 * step) for step in range(12)]
    log.on_event(RunStarted("rag", States(*states)))
    for _ in range(11):
        log.refresh()
    assert "10/s" in stream.getvalue().splitlines()[-1]


# Messages


@pytest.mark.parametrize("kind", ["off", "log", "bar"])
def test_messages_are_told_whatever_the_progress(kind: str) -> None:
    stream = io.StringIO()
    listener = make_progress(kind, stream, dead="out.jsonl.dead.jsonl")  # type: ignore[arg-type]
    for event in (
        Warned("a field\x1b[2J is overwritten"),
        RecordDead(LETTER),
        RecordDead(LETTER),
        StopRequested("stopped by SIGINT", open=64, grace=20.0),
        StopRequested("stopped by SIGINT", open=1, grace=0.0, cancelled=True),
        StopRequested("abort", open=0, grace=20.0),
    ):
        listener.on_event(event)
    assert stream.getvalue().splitlines() == [
        "stageflow: warning: a field is overwritten",
        "stageflow: record 17 (line 18) failed at generate: ValueError: no room here; see out.jsonl.dead.jsonl",
        "stageflow: stopping: finishing 64 records in flight (20 s), press Ctrl-C again to cancel them",
        "stageflow: stopping: 1 record in flight cancelled",
        "stageflow: stopping: nothing is in flight",
    ]


@pytest.mark.parametrize(
    ("letter", "line"),
    [
        ({**LETTER, "line": None}, "record 17 failed at generate: ValueError: no room here"),
        ({**LETTER, "stage": None}, "record 17 (line 18) could not be read: ValueError: no room here"),
        ({"index": 3}, "record 3 could not be read: an unknown error"),
    ],
)
def test_a_letter_may_lack_something(letter: dict[str, object], line: str) -> None:
    stream = io.StringIO()
    make_progress("off", stream).on_event(RecordDead(letter))
    assert stream.getvalue() == f"stageflow: {line}\n"


def test_a_long_message_is_cut() -> None:
    stream = io.StringIO()
    error = {"type": "ValueError", "message": "x" * 100_000}
    make_progress("off", stream).on_event(RecordDead({**LETTER, "error": error}))
    assert len(stream.getvalue()) < 500


def test_off_shows_nothing_else() -> None:
    stream = io.StringIO()
    off = make_progress("off", stream)
    off.on_event(RunStarted("rag", States(BUSY)))
    off.refresh()
    off.on_event(RunEnded())
    assert stream.getvalue() == ""
    assert 0 < off.interval < float("inf")


def test_what_is_taken_up_is_told_with_what_there_is_to_know() -> None:
    stream = io.StringIO()
    listener = make_progress("log", stream)
    listener.on_event(Resumed(1, 0, ("stdin cannot be resumed",)))
    listener.on_event(Resumed(3, 1200, ("input grew from 3 to 5 lines",)))
    listener.on_event(Resumed(2, 1, ()))
    assert stream.getvalue().splitlines() == [
        "stageflow: note: stdin cannot be resumed",
        "stageflow: resuming: 1,200 records done before",
        "stageflow: note: input grew from 3 to 5 lines",
        "stageflow: resuming: 1 record done before",
    ]
