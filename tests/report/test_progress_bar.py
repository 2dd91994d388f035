"""The bar, on a terminal that understands what tqdm writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from snapshots import BUSY, LATER, States, Terminal, stage, state

from stageflow.events import RunEnded, RunStarted, Snapshot, StopRequested, Warned
from stageflow.report.progress import ProgressBar
from stageflow.report.progress import bar as drawing


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
    monkeypatch.setattr(drawing, "_terminal_size", lambda _: tuple(found))
    return found


def started(*states: Snapshot, pipeline: str = "rag") -> tuple[Terminal, ProgressBar]:
    stream = Terminal()
    bar = ProgressBar(stream)
    bar.on_event(RunStarted(pipeline, States(*states)))
    return stream, bar


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


@pytest.mark.usefixtures("size")
def test_the_bar_is_not_full_before_the_end_of_an_input_that_is_longer_than_estimated() -> None:
    stream, bar = started(replace(BUSY, read=12_000, written=11_000))
    first = screen(stream.getvalue())[0]
    assert first.startswith("rag  91 % |█")
    assert " | 11,000/~12,000  0/s" in first
    bar.close()


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
