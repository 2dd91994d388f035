"""The curve of a sweep: where its knee is, and that bars, sentence and picture all say the same."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.report.curve import Curve, Point, Series, bars, knee, knee_text, svg

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</text><script>alert("x")</script>&\x1b[31m'


def points(rates: dict[int, float], spread: float = 0.0, others: str = "") -> tuple[Point, ...]:
    """A median, and a repeat on each side of it."""
    return tuple(
        Point(value, (rate * (1 - spread), rate, rate * (1 + spread)), f"generate={value}{others}")
        for value, rate in rates.items()
    )


def curve(*series: dict[int, float], setting: str = "max_in_flight", spread: float = 0.0) -> Curve:
    if len(series) == 1:
        return Curve("rag", "generate", setting, (Series("", points(series[0], spread)),))
    names = [f"retrieve={number}" for number in range(1, len(series) + 1)]
    drawn = (Series(name, points(rates, spread, f" {name}")) for name, rates in zip(names, series, strict=True))
    return Curve("rag", "generate", setting, tuple(drawn))


BENT = {4: 200.0, 8: 400.0, 16: 780.0, 32: 1150.0, 64: 1180.0}
STRAIGHT = {4: 200.0, 8: 400.0, 16: 800.0}
FLAT = {4: 200.0, 8: 205.0, 16: 190.0}


# The knee


@given(st.integers(0, 8), st.integers(0, 8), st.floats(0.01, 1e6))
def test_the_knee_is_where_a_curve_in_proportion_becomes_flat(bend: int, more: int, each: float) -> None:
    values = [2**power for power in range(bend + more + 1)]
    found = knee(points({value: each * min(value, 2**bend) for value in values}))
    assert (found and found.value) == (2**bend if more else None)


@pytest.mark.parametrize(
    ("rates", "at"),
    [
        (BENT, 32),
        (STRAIGHT, None),
        (FLAT, 4),
        ({8: 100.0, 16: 141.0}, 8),  # twice as many pay as long as they bring more than 1.414 times as much
        ({8: 100.0, 16: 142.0}, None),
        ({10: 100.0, 11: 106.0, 12: 108.0}, 11),  # steps may be of any size
        ({8: 100.0}, None),
        ({8: 0.0, 16: 0.0}, None),
    ],
)
def test_the_knee_has_the_most_power(rates: dict[int, float], at: int | None) -> None:
    found = knee(points(rates))
    assert (found and found.value) == at


@pytest.mark.parametrize(
    ("rates", "spread", "told"),
    [
        (
            BENT,
            0.0,
            "The knee is at generate=32 (the most throughput squared per call in flight, Kleinrock 1979): "
            "64 in flight made 1.03x the throughput of 32.",
        ),
        (
            BENT,
            0.02,
            "The knee is at generate=32 (the most throughput squared per call in flight, Kleinrock 1979): "
            "64 in flight made 1.03x the throughput of 32, which is within the spread of the repeats.",
        ),
        (
            STRAIGHT,
            0.0,
            "No knee (the most throughput squared per call in flight, Kleinrock 1979) up to generate=16: 16 in flight "
            "made 2.00x the throughput of 8, so more may pay; try --sweep generate=16,32,64.",
        ),
        (
            FLAT,
            0.0,
            "The knee is at or below generate=4 (the most throughput squared per call in flight, Kleinrock 1979): "
            "8 in flight made 1.02x the throughput of 4.",
        ),
        ({8: 100.0}, 0.0, ""),
        ({8: 0.0, 16: 0.0}, 0.0, ""),
    ],
    ids=["bent", "bent, within the spread", "straight", "flat", "one point", "nothing ran"],
)
def test_one_sentence_tells_the_knee(rates: dict[int, float], spread: float, told: str) -> None:
    assert knee_text(curve(rates, spread=spread)) == told


def test_several_series_have_a_sentence_each_and_the_rule_once() -> None:
    first, second = knee_text(curve(BENT, STRAIGHT)).split("\n")
    assert first.startswith("retrieve=1: The knee is at generate=32 (the most throughput squared")
    assert second.startswith("retrieve=2: No knee up to generate=16: ")


def test_there_is_no_knee_over_the_size_of_a_queue() -> None:
    drawn = curve(BENT, setting="queue_size")
    assert knee_text(drawn) == ""
    assert "knee" not in bars(drawn)
    assert "knee" not in svg(drawn)


# Bars


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines()[1:] if line]


def test_bars_are_as_long_as_the_throughput() -> None:
    drawn = bars(curve(BENT), width=140)
    lengths = [line.count("█") for line in rows(drawn)]
    for length, rate in zip(lengths, BENT.values(), strict=True):
        assert length == pytest.approx(lengths[-1] * rate / 1180, abs=0.5)
    assert "▒" not in "".join(rows(drawn))
    assert [line.endswith(" ← knee") for line in rows(drawn)] == [False, False, False, True, False]


def test_bars_show_the_spread_of_the_repeats() -> None:
    (line,) = rows(bars(curve({8: 100.0}, spread=0.2), width=140))
    full, half = line.count("█"), line.count("▒")
    assert full / (full + half) == pytest.approx(80 / 120, abs=0.01)
    assert line.endswith("  100")  # the median


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no such encoding"])
def test_bars_are_ascii_where_there_are_no_blocks(encoding: str) -> None:
    drawn = bars(curve(BENT, spread=0.1), encoding=encoding)
    assert drawn.isascii()
    assert "#" in drawn
    assert "#-" in drawn
    assert drawn.count("<- knee") == 1


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_bars_start_in_one_column_and_keep_to_the_width(width: int) -> None:
    drawn = rows(bars(curve(BENT, FLAT, spread=0.05), width=width, names=30))
    assert len({line.index("█") for line in drawn}) == 1
    assert max(map(len, drawn)) <= max(width, 50)


def test_bars_align_with_a_table_above() -> None:
    (line,) = rows(bars(curve({8: 100.0}), names=30))
    assert line.index("█") == 32


# SVG


def parsed(drawn: Curve) -> ET.Element:
    return ET.fromstring(svg(drawn))


def texts(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_the_picture_has_a_circle_for_each_point_and_tells_its_spread() -> None:
    root = parsed(curve(BENT, FLAT, spread=0.1))
    told = [title.text for circle in root.iter(f"{SVG}circle") for title in circle]
    assert told[0] == "generate=4 retrieve=1: 200 records/s (180 to 220)"
    assert len(told) == len(BENT) + len(FLAT)
    assert {"retrieve=1", "retrieve=2", "4", "64", "1,000"} <= set(texts(root))
    assert (
        "Records per second: median of 3 runs, whiskers from the slowest to the fastest; a ring at the knee"
        in texts(root)
    )


def test_the_picture_rings_the_knee() -> None:
    root = parsed(curve(BENT))
    places = {circle.get("cx"): circle for circle in root.iter(f"{SVG}circle") if circle.get("r") != "9"}
    (ring,) = [circle for circle in root.iter(f"{SVG}circle") if circle.get("r") == "9"]
    assert places[ring.get("cx")][0].text == "generate=32: 1,150 records/s (1,150 to 1,150)"
    assert "knee: 32" in texts(root)


def test_a_higher_throughput_stands_higher() -> None:
    circles = [c for c in parsed(curve(STRAIGHT)).iter(f"{SVG}circle") if c.get("r") != "9"]
    bottom, top = float(circles[0].get("cy", "")), float(circles[-1].get("cy", ""))
    middle = float(circles[1].get("cy", ""))
    assert bottom > middle > top
    assert (middle - top) / (bottom - middle) == pytest.approx(2.0, abs=0.01)


@given(
    st.lists(st.dictionaries(st.integers(1, 5000), st.floats(0, 1e7), min_size=1, max_size=6), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_everything_is_inside_the_picture(series: list[dict[int, float]], spread: float) -> None:
    drawn = curve(*(dict(sorted(rates.items())) for rates in series), spread=spread)
    text = svg(drawn)
    root = ET.fromstring(text)
    assert "nan" not in text
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for name, limit in (("x", width), ("y", height), ("cx", width), ("cy", height)):
        for element in root.iter():
            assert 0 <= float(element.get(name, "0")) <= limit
    for path in re.findall(r'd="M([-0-9. L]+)"', text):  # the curves
        for place in path.split("L"):
            x, y = map(float, place.split())
            assert 0 <= x <= width
            assert 0 <= y <= height
    bars(drawn)
    knee_text(drawn)


@pytest.mark.parametrize("low", [0, 10, 20])
def test_the_names_of_many_series_stand_apart_and_beside_the_plot(low: int) -> None:
    series = [{1: 0.0, 2: 0.0}] * low + [{1: 9.0, 2: 10.0}] * (20 - low)
    root = parsed(curve(*series))
    places = sorted(float(t.get("y", "")) for t in root.iter(f"{SVG}text") if (t.text or "").startswith("retrieve="))
    (subtitle,) = (float(t.get("y", "")) for t in root.iter(f"{SVG}text") if (t.text or "").startswith("Records per"))
    axis = max(float(t.get("y", "")) for t in root.iter(f"{SVG}text") if t.text == "1")
    assert len(places) == 20
    assert min(later - earlier for earlier, later in pairwise(places)) >= 14.9
    assert subtitle + 15 < places[0]
    assert places[-1] < axis


def test_names_are_escaped_and_cleaned() -> None:
    bad = Point(1, (5.0,), f"{HOSTILE}=1"), Point(2, (6.0,), f"{HOSTILE}=2")
    series = (Series(HOSTILE, bad), Series("other", bad))
    drawn = Curve(HOSTILE, HOSTILE, "max_in_flight", series)
    assert ET.fromstring(svg(drawn)).find(f".//{SVG}script") is None
    for text in (svg(drawn), bars(drawn), knee_text(drawn)):
        assert "\x1b" not in text


def test_the_picture_is_its_own_card_in_light_and_dark() -> None:
    text = svg(curve(BENT))
    assert 'class="card"' in text
    assert "prefers-color-scheme:dark" in text
    assert "href" not in text  # nothing is loaded from elsewhere
