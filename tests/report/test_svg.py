"""What all SVGs share: words that stay words, and enough room for them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from stageflow.report.svg import opening, text_width, words

HOSTILE = '</text><script>alert("x")</script>&'


@pytest.mark.parametrize("size", [11, 12, 14])
def test_there_is_room_for_letters_half_as_wide_as_high(size: int) -> None:
    assert size * 0.5 <= text_width("a", size) <= size * 0.7
    assert text_width("日本", size) == 4 * text_width("a", size)
    assert text_width("", size) == 0


def test_words_and_title_stay_words() -> None:
    lines = [*opening(120.4, 80.6, HOSTILE, 'font-size="12"'), words(10, 20.06, HOSTILE, 'class="ink"'), "</svg>"]
    root = ET.fromstring("".join(lines))
    title, text = root
    assert (root.get("aria-label"), title.text, text.text) == (HOSTILE, HOSTILE, HOSTILE)
    assert (root.get("width"), root.get("viewBox"), root.get("font-size")) == ("120", "0 0 120 81", "12")
    assert text.attrib == {"x": "10.0", "y": "20.1", "class": "ink"}
