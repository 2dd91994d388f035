"""Cleaning and measuring text, and numbers for people."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.report.text import cells, clip, duration, pad, percent, printable, rate, shows


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größer 日本", "größer 日本"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a new title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1b(Bcharset", "charset"),
        ("\x1b\x1b[31mtwice", "twice"),
        ("\x1b]0;it never ends", "0;it never ends"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("right\u202eto left", "rightto left"),
        ("half \ud800 a pair", "half  a pair"),
        ("bell\x07 null\x00 delete\x7f", "bell null delete"),
    ],
)
def test_printable_leaves_only_what_is_safe(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\x9d[]m;\x07\\\n\u202e")))
def test_printable_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    joiners = "\u200c\u200d"
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not [char for char in shown if char not in joiners and unicodedata.category(char) in bad]
    assert printable(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"])), st.integers(0, 30))
def test_clip_never_takes_more_columns_than_there_are(text: str, width: int) -> None:
    clipped = clip(text, width)
    assert cells(clipped) <= width
    assert clipped == text or cells(text) > width


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    assert [cells(text) for text in ("abc", "日本", "e\u0301")] == [3, 4, 1]
    assert pad("日", 4) == "日  "
    assert pad("日", 4, right=True) == "  日"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 µs"),
        (0.000012, "12 µs"),
        (0.0008, "0.8 ms"),
        (0.00994, "9.9 ms"),
        (0.00996, "10 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.24, "1.24 s"),
        (9.996, "10.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (187 * 60, "3 h 07 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_durations_never_show_the_next_unit(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("per_second", "shown"),
    [(1234.4, "1,234/s"), (9.96, "10/s"), (9.7, "9.7/s"), (0.2, "12/min"), (0.001, "3.6/h"), (0, "0/s")],
)
def test_rates(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown


def test_percent() -> None:
    assert percent(0.984) == "98 %"


@pytest.mark.parametrize(
    ("encoding", "blocks"),
    [("utf-8", True), (None, True), ("", True), ("cp437", True), ("ascii", False), ("latin-1", False), ("none", False)],
)
def test_what_a_stream_has_characters_for(encoding: str | None, blocks: bool) -> None:
    assert shows("█", encoding) is blocks
    assert shows("x", encoding) is (encoding != "none")
