"""Pictures: whatever the graph and the names, each format shows every stage and every edge, and nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stageflow.report import picture
from stageflow.report.picture import Picture, PictureNode, render

FORMATS = ("text", "mermaid", "dot", "svg")
HOSTILE = '<script>alert("x")</script>', 'quote"\\', "new\nline\x1b[31m", "a&b;#35;`", "end", "{brace}"


def node(name: str, **settings: object) -> PictureNode:
    return PictureNode(**{"name": name, "run": "async", "max_in_flight": 16, "queue_size": 64, **settings})  # type: ignore[arg-type]


def graph(names: str, edges: str = "") -> Picture:
    pairs = tuple((source, target) for source, target in (edge.split(">") for edge in edges.split()))
    return Picture("job", tuple(map(node, names.split())), pairs)


def all_edges(drawn: Picture) -> set[tuple[str, str]]:
    """The edges, and those from the input and to the output."""
    sources = {source for source, _ in drawn.edges}
    targets = {target for _, target in drawn.edges}
    names = [node.name for node in drawn.nodes]
    return {
        *drawn.edges,
        *(("input", name) for name in names if name not in targets),
        *((name, "output") for name in names if name not in sources),
    }


DIAMOND = graph("a b c d", "a>b a>c b>d c>d")
SKIPS = graph("a b c d e f", "a>b b>c c>d a>d b>e d>e a>f")


@st.composite
def graphs(draw: st.DrawFn, most: int = 9) -> Picture:
    names = [f"s{number}" for number in range(draw(st.integers(1, most)))]
    pairs = [(source, target) for place, target in enumerate(names) for source in names[:place]]
    chosen = draw(st.sets(st.sampled_from(pairs), max_size=2 * most)) if pairs else set()
    return Picture("job", tuple(map(node, names)), tuple(sorted(chosen)))


# Text: the lines are followed as an eye would follow them

ARMS = {
    "│": "ud",
    "─": "lr",
    "└": "ur",
    "┘": "ul",
    "┌": "dr",
    "┐": "dl",
    "┴": "ulr",
    "┬": "dlr",
    "├": "udr",
    "┤": "udl",
    "┼": "udlr",
}
STEP = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
BACK = {"u": "d", "d": "u", "l": "r", "r": "l"}


def followed(text: str) -> set[tuple[str, str]]:
    """The edges that one reads from a drawing in boxes."""
    rows = text.split("\n\n")[1].split("\n")
    rows = [row.ljust(max(map(len, rows))) for row in rows]
    at = {(r, c): char for r, row in enumerate(rows) for c, char in enumerate(row)}
    starts = {(1, rows[0].index("input") + 2): "input"}
    owners: dict[tuple[int, int], str] = {}
    for r, row in enumerate(rows):
        for found in re.finditer("╭─+╮", row):
            name = rows[r + 1][found.start() + 1 : found.end() - 1].strip()
            owners.update({(r, c): name for c in range(*found.span())})
            bottom = next(below for below in range(r, len(rows)) if rows[below][found.start()] == "╰")
            port = rows[bottom].index("┬", found.start())
            assert port < found.end()
            starts[bottom + 1, port] = name
    end = max(r for r, row in enumerate(rows) if "output" in row)
    owners.update({(end, c): "output" for c in range(len(rows[end]))})
    return {(name, target) for start, name in starts.items() for target in reached(at, owners, start)}


def reached(at: dict[tuple[int, int], str], owners: dict[tuple[int, int], str], start: tuple[int, int]) -> set[str]:
    found, pending, seen = set(), [(start, "d")], set()
    while pending:
        place, going = pending.pop()
        assert (place, going) not in seen, "the lines run in a circle"
        seen.add((place, going))
        char = at[place]
        if char == "▼":
            assert going == "d"
            found.add(owners[place[0] + 1, place[1]])
        elif char == "│" and going in "lr":  # drawn through another bundle's line
            pending.append((moved(place, going), going))
        else:
            assert BACK[going] in ARMS[char], f"a line ends at {place}"
            pending += [(moved(place, arm), arm) for arm in ARMS[char] if arm != BACK[going]]
    return found


def moved(place: tuple[int, int], going: str) -> tuple[int, int]:
    return place[0] + STEP[going][0], place[1] + STEP[going][1]


def listed(text: str) -> set[tuple[str, str]]:
    """The edges in a list of stages."""
    body = re.sub(r"\n {8,}", " ", text.split("\n\n")[-1])
    lines = [
        re.split(r" {2,}", line.replace("from ", " ", 1) if line.startswith("output") else line)
        for line in body.split("\n")
    ]
    return {(source, line[0]) for line in lines for source in line[-1].removeprefix("from ").split(", ")}


@pytest.mark.parametrize(
    "drawn",
    [
        graph("a"),
        graph("a b", "a>b"),
        graph("a b c"),
        DIAMOND,
        SKIPS,
        graph("a b c d", "a>c b>c a>d b>d"),
        graph("a b c d e", "a>b a>c a>d a>e b>e c>e d>e"),
    ],
)
def test_the_lines_of_a_drawing_lead_where_the_edges_do(drawn: Picture) -> None:
    assert followed(render(drawn, "text")) == all_edges(drawn)


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_any_drawing_can_be_followed(drawn: Picture) -> None:
    with mock.patch.object(picture.text, "_WIDTH", 10_000):
        text = render(drawn, "text")
    assert (followed if "╭" in text else listed)(text) == all_edges(drawn)


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_what_is_too_wide_becomes_a_list(drawn: Picture) -> None:
    with mock.patch.object(picture.text, "_WIDTH", 5):
        text = render(drawn, "text")
    assert "╭" not in text
    assert listed(text) == all_edges(drawn)


def test_a_wide_graph_keeps_within_the_width() -> None:
    four = graph("retrieve classify entities generate")
    text = render(four, "text")
    assert followed(text) == listed(text) == all_edges(four)
    assert "generate  16 in flight · queue 64  from input" in text
    many = Picture("job", tuple(node(f"a_long_stage_name_{number}") for number in range(30)), ())
    assert max(map(len, render(many, "text").split("\n"))) <= 100


def test_a_box_tells_settings_and_remarks() -> None:
    drawn = Picture("job", (node("a", run="process", max_in_flight=1000, note="batch of 32"),), ())
    assert render(drawn, "text").split("\n") == [
        "job: 1 stage",
        "",
        "                   input",
        "                     ▼",
        " ╭───────────────────────────────────────╮",
        " │                   a                   │",
        " │ 1,000 in flight · queue 64 · process  │",
        " │              batch of 32              │",
        " ╰───────────────────┬───────────────────╯",
        "                     ▼",
        "                  output",
    ]


def test_wide_characters_keep_the_frame_straight() -> None:
    text = render(Picture("job", (node("日本語" * 6), node("b")), ()), "text")
    lines = [line for line in text.split("\n") if line.lstrip()[:1] == "│"]
    assert all(line.count("│") == 4 for line in lines)
    assert "│    日本語" in lines[0] or "│ 日本語" in lines[0]


# The other formats


@pytest.mark.parametrize("drawn", [graph("a"), DIAMOND, SKIPS])
def test_mermaid_and_dot_have_every_stage_and_edge(drawn: Picture) -> None:
    ids = {"input": "input", "output": "output"} | {
        node.name: f"s{place}" for place, node in enumerate(drawn.nodes, start=1)
    }
    edges = {(ids[source], ids[target]) for source, target in all_edges(drawn)}
    mermaid, dot = render(drawn, "mermaid"), render(drawn, "dot")
    assert set(re.findall(r"^ +(\w+) --> (\w+)$", mermaid, re.M)) == edges
    assert set(re.findall(r"^ +(\w+) -> (\w+);$", dot, re.M)) == edges
    for stage in drawn.nodes:
        assert f'{ids[stage.name]}["{stage.name}<br/>16 in flight · queue 64"]' in mermaid
        assert f'{ids[stage.name]} [label="{stage.name}\\n16 in flight · queue 64"];' in dot


SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg: ET.Element) -> list[tuple[float, float, float, float]]:
    def corners(box: ET.Element) -> tuple[float, float, float, float]:
        x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        return x, y, x + width, y + height

    return [corners(box) for box in svg.iter(f"{SVG}rect")]


@given(graphs(most=14))
@settings(max_examples=100, deadline=None)
def test_svg_has_every_stage_and_edge_and_no_two_boxes_meet(drawn: Picture) -> None:
    svg = ET.fromstring(render(drawn, "svg"))
    titles = [path.findtext(f"{SVG}title") for path in svg.iter(f"{SVG}path") if len(path)]
    assert sorted(titles, key=str) == sorted(f"{source} → {target}" for source, target in all_edges(drawn))
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts.count("16 in flight · queue 64") == len(drawn.nodes)
    assert {stage.name for stage in drawn.nodes} | {"input", "output"} <= set(texts)
    shapes = boxes(svg)
    assert len(shapes) == len(drawn.nodes) + 2
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for place, (left, top, right, bottom) in enumerate(shapes):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert all(
            right < other[0] or other[2] < left or bottom < other[1] or other[3] < top for other in shapes[:place]
        )


def test_svg_stands_alone() -> None:
    text = render(SKIPS, "svg")
    tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(text).iter()}
    assert tags == {"svg", "title", "g", "path", "rect", "text"}
    assert re.findall(r'(?:href|src|url|on\w+)\s*[=(]|id="', text) == []


def test_hostile_names_stay_text() -> None:
    drawn = Picture(HOSTILE[0], tuple(map(node, HOSTILE)), tuple(pairwise(HOSTILE)))
    texts = {text.text for text in ET.fromstring(render(drawn, "svg")).iter(f"{SVG}text")}
    assert {HOSTILE[0], HOSTILE[1], "new line", HOSTILE[3]} <= texts
    mermaid = render(drawn, "mermaid")
    assert "#lt;script#gt;alert(#quot;x#quot;)#lt;/script#gt;" in mermaid
    assert "a#amp;b;#35;35;#96;" in mermaid
    dot = render(drawn, "dot")
    quoted = r'"(?:[^"\\]|\\.)*"'
    assert len(re.findall(rf"^    \w+ \[label={quoted}(?:, shape=plaintext)?\];$", dot, re.M)) == len(HOSTILE) + 2
    assert re.match(rf"digraph {quoted} {{\n", dot)
    assert r'label="quote\"\\\n16' in dot
    assert "a&amp;b;#35;" in dot


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
@settings(max_examples=200, deadline=None)
def test_no_name_breaks_a_format(names: list[str]) -> None:
    drawn = Picture(names[0], tuple(map(node, names)), tuple(pairwise(names)))
    ET.fromstring(render(drawn, "svg"))
    assert len(render(drawn, "dot").split("\n")) == 6 + len(names) + len(names) + 1
    assert len(render(drawn, "mermaid").split("\n")) == 4 + len(names) + len(names) + 1
    for form in FORMATS:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", render(drawn, form))


@pytest.mark.parametrize("form", FORMATS)
def test_no_stages_is_a_picture_too(form: str) -> None:
    assert "job" in render(Picture("job", (), ()), form)


@pytest.mark.parametrize("form", FORMATS)
def test_an_edge_given_twice_is_drawn_once(form: str) -> None:
    assert render(graph("a b", "a>b a>b"), form) == render(graph("a b", "a>b"), form)


@pytest.mark.parametrize(
    ("drawn", "form", "message"),
    [
        (graph("a"), "png", "no format 'png'"),
        (graph("a", "a>b"), "text", "not there"),
        (graph("a b", "b>a"), "svg", "goes back"),
        (graph("a a"), "dot", "same name"),
    ],
)
def test_what_can_not_be_drawn_is_refused(drawn: Picture, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(drawn, form)
