"""Progress: what the lines say, what the terminal looks like, and that no broken stream ends a run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stageflow.events import RecordDead, Resumed, RunEnded, RunStarted, Snapshot, StageSnapshot, StopRequested, Warned
from stageflow.report import progress
from stageflow.report.progress import ProgressBar, ProgressLog, make_progress, waiting_for

IDLE = StageSnapshot(name="idle", max_in_flight=64, queue_size=64, in_flight=0, queued=0, blocked=0, passed=0, dead=0)
LETTER = {"index": 17, "line": 18, "path": "in.jsonl", "stage": "generate"}
LETTER["error"] = {"type": "ValueError", "message": "no \x1b[31mroom\nhere"}


def stage(name: str, **changes: int) -> StageSnapshot:
    return replace(IDLE, name=name, **changes)


def state(*stages: StageSnapshot, **changes: float | None) -> Snapshot:
    made = Snapshot(seconds=0.0, read=500, written=0, dropped=0, dead=0, open=100, total=10_000, stages=stages)
    return replace(made, **changes)  # type: ignore[arg-type]


BUSY = state(stage("retrieve", blocked=32), stage("generate", in_flight=64, queued=64), stage("validate", in_flight=1))


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return not super().isatty()  # which raises when it is closed


class States:
    """The snapshot function of a run, one state after the other; the last one stays."""

    def __init__(self, *states: Snapshot) -> None:
        self.states = list(states)

    def __call__(self) -> Snapshot:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


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


# The choice


@pytest.fixture
def _color_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("_color_terminal")
def test_auto_is_a_bar_on_a_terminal_and_a_log_elsewhere() -> None:
    closed = Terminal()
    closed.close()
    assert isinstance(make_progress("auto", Terminal()), ProgressBar)
    assert isinstance(make_progress("bar", io.StringIO()), ProgressBar)
    for stream in (io.StringIO(), closed, None):
        assert isinstance(make_progress("auto", stream), ProgressLog)
    assert make_progress("auto", Terminal()).interval < make_progress("log", None).interval


def test_a_dumb_terminal_gets_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress("auto", Terminal()), ProgressLog)


ROOT = Path(__file__).parents[2]


def run_python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_tqdm_is_loaded_when_a_bar_is_made() -> None:
    code = (
        "import io, sys; from stageflow.report.progress import *; make_progress('log', io.StringIO())\n"
        "before = 'tqdm' in sys.modules; make_progress('bar', io.StringIO()); print(before, 'tqdm' in sys.modules)"
    )
    assert run_python(code).split() == ["False", "True"]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("TQDM_MININTERVAL", "often", "ProgressLog"),
        ("TQDM_KWARGS", "1", "ProgressLog"),
        ("TQDM_DISABLE", "1", "ProgressBar"),
        ("TQDM_NCOLS", "3", "ProgressBar"),
        ("TQDM_BAR_FORMAT", "{nonsense}", "ProgressBar"),
    ],
)
def test_the_environment_can_not_break_a_run(name: str, value: str, kind: str) -> None:
    code = (
        "import io; from stageflow.events import *; from stageflow.report.progress import *\n"
        "stream = io.StringIO(); bar = make_progress('bar', stream)\n"
        "state = Snapshot(seconds=1.0, read=9, written=7, dropped=0, dead=0, open=2, total=9, stages=())\n"
        "bar.on_event(RunStarted('rag', lambda: state)); bar.refresh(); bar.on_event(RunEnded())\n"
        "print(type(bar).__name__, '7' in stream.getvalue())"
    )
    assert run_python(code, **{name: value}).split() == [kind, "True"]


# The bar, on a terminal that understands what tqdm writes


def screen(written: str) -> list[str]:
    """The lines of a terminal after this was written to it, without empty ones at the end."""
    lines: list[str] = [""]
    row = column = 0
    for char in written.replace("\x1b[A", "\x00"):
        if char == "\x00":
            row = max(0, row - 1)
        elif char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif char == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    shown = [line.rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Columns and lines of the terminal, to be changed."""
    found = [79, 24]
    monkeypatch.setattr(progress, "_terminal_size", lambda _: tuple(found))
    return found


def started(*states: Snapshot, pipeline: str = "rag") -> tuple[Terminal, ProgressBar]:
    stream = Terminal()
    bar = ProgressBar(stream)
    bar.on_event(RunStarted(pipeline, States(*states)))
    return stream, bar


LATER = replace(BUSY, seconds=10.0, written=1_231, dead=3)


@pytest.mark.usefixtures("size")
def test_the_bar_and_a_line_for_each_stage() -> None:
    stream, bar = started(BUSY, LATER)
    bar.refresh()
    assert screen(stream.getvalue()) == [
        "rag  12 % |███▎                       | 1,234/~10,000  123/s  71 s left  3 dead",
        "  retrieve   0/64 in flight   0 queued  32 blocked  0 failed  0/s",
        "  generate  64/64 in flight  64 queued   0 blocked  0 failed  0/s",
        "  validate   1/64 in flight   0 queued   0 blocked  0 failed  0/s",
    ]
    bar.on_event(RunEnded())
    assert screen(stream.getvalue()) == []


def test_a_narrow_terminal(size: list[int]) -> None:
    size[0] = 39
    stream, bar = started(BUSY, LATER)
    bar.refresh()
    assert screen(stream.getvalue()) == [
        "12 % 1,234/~10,000  123/s  3 dead",
        "  retrieve   0/64   0q  32b  0f  0/s",
        "  generate  64/64  64q   0b  0f  0/s",
        "  validate   1/64   0q   0b  0f  0/s",
    ]
    bar.close()


@pytest.mark.parametrize("columns", [1, 5, 12, 25, 60, 200])
@pytest.mark.parametrize("total", [None, 0, 10_000])
def test_no_line_is_wider_than_the_terminal(size: list[int], columns: int, total: int | None) -> None:
    size[0] = columns
    stream, bar = started(replace(LATER, total=total), pipeline="{a} long {name}")
    bar.refresh()
    assert max(map(len, screen(stream.getvalue()))) <= columns
    bar.close()
    assert screen(stream.getvalue()) == []


def test_only_the_busiest_of_many_stages(size: list[int]) -> None:
    many = state(*(stage(f"s{number}", in_flight=number) for number in range(20)))
    stream, bar = started(many)
    assert [line.split()[0] for line in screen(stream.getvalue())[1:]] == [f"s{number}" for number in range(12, 20)]
    size[1] = 6  # the window became lower
    bar.refresh()
    assert [line.split()[0] for line in screen(stream.getvalue())[1:]] == ["s16", "s17", "s18", "s19"]
    bar.close()
    assert screen(stream.getvalue()) == []


def test_messages_stand_above_the_bar(size: list[int]) -> None:
    size[0] = len("  validate   1/64 in flight   0 queued  32 blocked  0 failed  0/s")  # no room for ^C after it
    stream, bar = started(BUSY)
    bar.on_event(Warned("one"))
    stream.write("^C")  # what the terminal itself shows
    bar.on_event(StopRequested("stopped by SIGINT", open=64, grace=20.0))
    bar.refresh()
    stream.write("^C")
    bar.refresh()
    shown = screen(stream.getvalue())
    assert shown[0] == "stageflow: warning: one"
    assert shown[1].startswith("stageflow: stopping: finishing 64 records")
    assert shown[2].startswith("rag   0 % |")
    assert len(shown) == 6
    assert max(map(len, shown[2:])) <= size[0]
    bar.on_event(RunEnded())
    bar.on_event(Warned("after the end"))
    bar.refresh()
    assert screen(stream.getvalue())[2:] == ["stageflow: warning: after the end"]


class Failing(Terminal):
    """A terminal that goes away after so many writes."""

    def __init__(self, writes: int, error: Exception) -> None:
        super().__init__()
        self.left = writes
        self.error = error

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(), ValueError("closed file")])
@pytest.mark.parametrize("writes", [0, 1, 3, 10, 25])
@pytest.mark.parametrize("make", [ProgressBar, ProgressLog])
def test_a_terminal_that_goes_away_does_not_end_the_run(
    make: type[ProgressBar] | type[ProgressLog], writes: int, error: Exception
) -> None:
    listener = make(Failing(writes, error))
    listener.on_event(RunStarted("rag", States(BUSY, LATER)))
    for event in (Warned("one"), RecordDead(LETTER), StopRequested("stopped by SIGINT", open=1, grace=1.0)):
        listener.refresh()
        listener.on_event(event)
    listener.on_event(RunEnded())
    listener.close()


@pytest.mark.parametrize("make", [ProgressBar, ProgressLog])
def test_no_stream_at_all(make: type[ProgressBar] | type[ProgressLog]) -> None:
    listener = make(None)
    listener.on_event(RunStarted("rag", States(BUSY)))
    listener.refresh()
    listener.on_event(Warned("one"))
    listener.on_event(RunEnded())


@pytest.mark.parametrize("make", [ProgressBar, ProgressLog])
def test_a_stream_that_lacks_characters(make: type[ProgressBar] | type[ProgressLog]) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)
    listener = make(stream)
    listener.on_event(RunStarted("größe", States(replace(LATER, stages=(stage("größe", in_flight=64),)))))
    listener.refresh()
    listener.on_event(Warned("日本"))
    listener.on_event(RunEnded())
    assert b"gr??e" in raw.getvalue()
    assert b"stageflow: warning: ??" in raw.getvalue()


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
