"""Progress: which of them shows a run, and that neither the environment nor a broken stream ends one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from snapshots import BUSY, LATER, LETTER, States, Terminal, stage

from stageflow.events import RecordDead, RunEnded, RunStarted, StopRequested, Warned
from stageflow.report.progress import ProgressBar, ProgressLog, make_progress

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


# Broken streams


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
