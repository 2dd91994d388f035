"""The graph of a job as text, Mermaid, Graphviz dot or SVG.

Names reach terminals, browsers and other programs from here, so each format cleans and escapes them in its own way.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from stageflow.report.layout import Layout, lay_out, spread
from stageflow.report.text import cells, clip, count, counted, pad, printable

__all__ = ["Picture", "PictureNode", "render"]

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class PictureNode:
    """One stage: its name, the settings that shape the flow, and a remark to show with them.

    Args:
        run: Where its function runs; shown unless it is ``"async"``.
        max_in_flight: Calls in progress at once.
        queue_size: Items its channel holds.
        note: Anything else worth a line, as ``batch of 32``.
    """

    name: str
    run: str
    max_in_flight: int
    queue_size: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A graph as plain data.

    Args:
        nodes: In execution order: no edge goes back. Names are unique.
        edges: Names, from the stage that is depended on to the one that depends on it. Twice is the same as once.
    """

    name: str
    nodes: tuple[PictureNode, ...]
    edges: tuple[tuple[str, str], ...]


def render(graph: Picture, format: str) -> str:  # noqa: A002 - it is what the command line calls it
    """Draw the graph, from its input at the top to its output at the bottom.

    Args:
        graph: What to draw.
        format: ``"text"`` (boxes for a terminal of 100 columns, or a list where they would be wider), ``"mermaid"``,
            ``"dot"`` or ``"svg"`` (self-contained, readable on light and dark).

    Returns:
        Lines, the last without a newline.

    Raises:
        ValueError: An unknown format, an edge to or from an unknown stage, or one that goes back.
    """
    draw = {"text": _text, "mermaid": _mermaid, "dot": _dot, "svg": _svg}.get(format)
    if draw is None:
        raise ValueError(f"no format {format!r}: text, mermaid, dot or svg")
    return draw(graph, _numbered(graph))


_Edges = Sequence[tuple[int, int]]


def _numbered(graph: Picture) -> _Edges:
    """The edges as numbers: 0 is the input, then come the stages, and last the output; these two are joined on."""
    number = {node.name: place for place, node in enumerate(graph.nodes, start=1)}
    if len(number) < len(graph.nodes):
        raise ValueError("two stages have the same name")
    edges = []
    for source, target in dict.fromkeys(graph.edges):
        if source not in number or target not in number:
            raise ValueError(f"the edge {source!r} -> {target!r} joins a stage that is not there")
        if number[source] >= number[target]:
            raise ValueError(f"the edge {source!r} -> {target!r} goes back")
        edges.append((number[source], number[target]))
    sources, targets = {source for source, _ in edges}, {target for _, target in edges}
    first = [(0, stage) for stage in number.values() if stage not in targets]
    last = [(stage, len(number) + 1) for stage in number.values() if stage not in sources]
    return [*first, *edges, *last]


def _settings(node: PictureNode) -> str:
    run = "" if node.run == "async" else f" · {printable(node.run)}"
    return f"{count(node.max_in_flight)} in flight · queue {count(node.queue_size)}{run}"


def _label(node: PictureNode) -> list[str]:
    lines = [printable(node.name), _settings(node)]
    return [*lines, printable(node.note)] if node.note else lines


# Mermaid and dot


def _mermaid(graph: Picture, edges: _Edges) -> str:
    names = _ids(graph)
    lines = [f"%% {printable(graph.name)}", "flowchart TD", f"    {names[0]}([input])"]
    for name, node in zip(names[1:], graph.nodes, strict=False):
        label = "<br/>".join(map(_mermaid_text, _label(node)))
        lines.append(f'    {name}["{label}"]')
    lines.append(f"    {names[-1]}([output])")
    lines += [f"    {names[source]} --> {names[target]}" for source, target in edges]
    return "\n".join(lines)


def _mermaid_text(text: str) -> str:
    # Mermaid's own entities. A backtick right after the quote would start Markdown, and # an entity.
    codes = {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\\": "#92;"}
    return "".join(codes.get(char, char) for char in text)


def _dot(graph: Picture, edges: _Edges) -> str:
    names = _ids(graph)
    lines = [
        f"digraph {_dot_text(printable(graph.name))} {{",
        '    node [shape=box, style=rounded, fontname="Helvetica", fontsize=11];',
        '    edge [color="#748094", arrowsize=0.7];',
        f'    {names[0]} [label="input", shape=plaintext];',
    ]
    for name, node in zip(names[1:], graph.nodes, strict=False):
        label = '"' + "\\n".join(_dot_text(line)[1:-1] for line in _label(node)) + '"'
        lines.append(f"    {name} [label={label}];")
    lines.append(f'    {names[-1]} [label="output", shape=plaintext];')
    lines += [f"    {names[source]} -> {names[target]};" for source, target in edges]
    return "\n".join([*lines, "}"])


def _dot_text(text: str) -> str:
    # Graphviz reads HTML entities in labels, so an ampersand is one, too.
    return '"' + text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ids(graph: Picture) -> list[str]:
    # Numbers, because a stage may be called `end`, `graph` or something with spaces.
    return ["input", *(f"s{number}" for number in range(1, len(graph.nodes) + 1)), "output"]


# Text
#
# Each vertex hands on through one port in the middle of its bottom; what enters a box has a port of its own for each
# edge. Between two layers every bundle of edges (one vertex's) that is not straight has a row to itself or shares it
# with others beside it, so a corner or a branch always belongs to one bundle, and where two bundles cross, the upright
# one is drawn through: `─│─`. A cross `┼` is a branch. That makes the drawing unambiguous for every graph.


class _TooCrowded(Exception):
    """There is no drawing by these rules within the width."""


def _text(graph: Picture, edges: _Edges) -> str:
    title = f"{printable(graph.name)}: {counted(len(graph.nodes), 'stage')}"
    layout = lay_out(len(graph.nodes) + 2, edges)
    full = [_label(node) for node in graph.nodes]
    names = [label[:1] for label in full]
    for labels, below in ((full, []), (names, _listing(graph, edges))):
        try:
            return "\n\n".join([title, "\n".join(_Boxes(layout, labels).draw()), *below])
        except _TooCrowded:
            continue
    return "\n\n".join([title, *_listing(graph, edges)])


def _listing(graph: Picture, edges: _Edges) -> list[str]:
    """The stages in execution order, each with all it takes from: right for any graph, and never wide."""
    names = ["input", *(printable(node.name) for node in graph.nodes), "output"]
    column = min(32, max(map(cells, names)))
    settings = [_settings(node) + (f" · {printable(node.note)}" if node.note else "") for node in graph.nodes]
    middle = max(map(cells, settings), default=0)
    lines = []
    for number, (name, setting) in enumerate(zip(names[1:], [*settings, ""], strict=True), start=1):
        takes = ", ".join(names[source] for source, target in edges if target == number)
        start = f"{pad(clip(name, column), column)}  {pad(setting, middle)}  from "
        wrapped = textwrap.wrap(takes, max(24, _WIDTH - cells(start)), break_on_hyphens=False) or ["nothing"]
        lines.append(start + wrapped[0])
        lines += [" " * cells(start) + more for more in wrapped[1:]]
    return ["\n".join(lines)]


_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = {
    _UP | _DOWN: "│",
    _LEFT | _RIGHT: "─",
    _UP | _RIGHT: "└",
    _UP | _LEFT: "┘",
    _DOWN | _RIGHT: "┌",
    _DOWN | _LEFT: "┐",
    _UP | _LEFT | _RIGHT: "┴",
    _DOWN | _LEFT | _RIGHT: "┬",
    _UP | _DOWN | _RIGHT: "├",
    _UP | _DOWN | _LEFT: "┤",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}


@dataclass(frozen=True, slots=True)
class _Bundle:
    """The edges of one vertex across one gap between layers: the column they leave in, and those they arrive in."""

    start: int
    ends: tuple[int, ...]

    @property
    def straight(self) -> bool:
        return self.ends == (self.start,)

    @property
    def span(self) -> tuple[int, int]:
        return min(self.start, *self.ends), max(self.start, *self.ends)


class _Boxes:
    """A drawing in boxes and lines; ``cells_at`` maps (row, column) to what is there."""

    def __init__(self, layout: Layout, labels: Sequence[Sequence[str]]) -> None:
        self.layout = layout
        self.labels = [["input"], *labels, ["output"]]
        self.marks = {0, len(self.labels) - 1}
        entries = Counter(target for _, target in layout.links)
        self.widths = [self._width(vertex, entries[vertex]) for vertex in range(len(layout.vertices))]
        # Odd widths and a whole gap keep the distances whole, so rounding the places can't make two boxes overlap.
        self.x = [int(place + 0.5) for place in layout.place(self.widths, 3)]
        self.cells_at: dict[tuple[int, int], str] = {}
        if max((x + width // 2 for x, width in zip(self.x, self.widths, strict=True)), default=0) >= _WIDTH:
            raise _TooCrowded

    def _width(self, place: int, entries: int) -> int:
        vertex = self.layout.vertices[place]
        if vertex.bend:
            return 1
        frame = 0 if vertex.node in self.marks else 4
        return max(max(map(cells, self.labels[vertex.node])) + frame, 2 * entries + 3) | 1

    def draw(self) -> list[str]:
        """The lines from top to bottom.

        Raises:
            _TooCrowded: The drawing is wider than a terminal, or two bundles would have to swap in one column.
        """
        top = 0
        for place, layer in enumerate(self.layout.layers):
            if place:
                top = self._draw_gap(top, self._bundles(self.layout.layers[place - 1]), set(layer))
            top = self._draw_layer(top, layer)
        return self._rows(top)

    def _rows(self, bottom: int) -> list[str]:
        right = max((column for _, column in self.cells_at), default=0) + 1
        return [
            "".join(self.cells_at.get((row, column), " ") for column in range(right)).rstrip() for row in range(bottom)
        ]

    def _draw_layer(self, top: int, layer: Sequence[int]) -> int:
        vertices = self.layout.vertices
        labels = [self.labels[vertices[place].node] for place in layer if not vertices[place].bend]
        mark = any(vertices[place].node in self.marks and not vertices[place].bend for place in layer)
        height = 1 if mark else max(map(len, labels)) + 2
        for place in layer:
            if vertices[place].bend:
                for row in range(height):
                    self.cells_at[top + row, self.x[place]] = "│"
            else:
                self._draw_box(top, height, place, mark=mark)
        return top + height

    def _draw_box(self, top: int, height: int, place: int, *, mark: bool) -> None:
        label = self.labels[self.layout.vertices[place].node]
        inner = self.widths[place] - 2
        left = self.x[place] - self.widths[place] // 2
        if mark:
            self._write(top, self.x[place] - cells(label[0]) // 2, label[0])
            return
        half = "─" * (inner // 2)
        self._write(top, left, f"╭{'─' * inner}╮")
        for row in range(height - 2):
            line = label[row] if row < len(label) else ""
            start = " " * ((inner - cells(line)) // 2)
            self._write(top + 1 + row, left, f"│{pad(start + line, inner)}│")
        self._write(top + height - 1, left, f"╰{half}┬{half}╯")

    def _write(self, row: int, column: int, text: str) -> None:
        for char in text:
            wide = cells(char)
            if not wide:  # a combining mark belongs to the cell before it
                self.cells_at[row, column - 1] = self.cells_at.get((row, column - 1), "") + char
                continue
            self.cells_at[row, column] = char
            if wide == 2:
                self.cells_at[row, column + 1] = ""
            column += wide

    def _bundles(self, upper: Sequence[int]) -> list[_Bundle]:
        ports = self._ports(upper)
        below: dict[int, list[int]] = {}
        for link in self.layout.links:
            if link in ports:
                below.setdefault(link[0], []).append(ports[link])
        return [_Bundle(self.x[place], tuple(sorted(below[place]))) for place in upper if place in below]

    def _ports(self, upper: Sequence[int]) -> dict[tuple[int, int], int]:
        """The column in which each link enters its lower end: straight down where that can be."""
        entering: dict[int, list[int]] = {}
        for source, target in self.layout.links:
            if source in upper:
                entering.setdefault(target, []).append(source)
        ports = {}
        for target, sources in entering.items():
            sources.sort(key=lambda source: self.x[source])
            starts = [self.x[source] for source in sources]
            others = {self.x[place] for place in upper if place not in sources}
            columns = _entries(starts, self.x[target], self.widths[target], others)
            ports.update({(source, target): column for source, column in zip(sources, columns, strict=True)})
        return ports

    def _draw_gap(self, top: int, bundles: Sequence[_Bundle], lower: set[int]) -> int:
        rows = _rows_for(bundles)
        height = max(rows.values(), default=-1) + 1
        bends = {self.x[place] for place in lower if self.layout.vertices[place].bend}
        for bundle, row in rows.items():
            for column in range(bundle.span[0], bundle.span[1] + 1):
                self.cells_at[top + row, column] = "─"
        for bundle in bundles:
            row = rows.get(bundle, 0)
            self._draw_upright(bundle.start, top, top + row)
            for end in bundle.ends:
                self._draw_upright(end, top + row, top + height)
                self.cells_at[top + height, end] = "│" if end in bends else "▼"
        for bundle, row in rows.items():
            for column in {bundle.start, *bundle.ends}:
                self.cells_at[top + row, column] = _corner(bundle, column)
        return top + height + 1

    def _draw_upright(self, column: int, start: int, stop: int) -> None:
        for row in range(start, stop):
            self.cells_at[row, column] = "│"


def _entries(starts: Sequence[int], middle: int, width: int, others: set[int]) -> list[int]:
    """The columns in which edges from the columns ``starts``, ascending, enter a vertex.

    Straight down where that can be, and two apart. Columns in which other bundles leave are left to them if there is
    room, so that fewer bundles depend on each other's rows.
    """
    more = len(starts) - 1
    reach = max(width // 2 - 3, min(width // 2, len(starts)))
    if not more and abs(starts[0] - middle) > reach:
        starts = [middle]
    first, last = middle - reach, middle + reach
    # Each is kept within bounds that leave the others their columns, so stepping two to the right never passes `last`.
    wanted = [min(max(start, first + 2 * place), last - 2 * (more - place)) for place, start in enumerate(starts)]
    columns = _apart(wanted, starts, others.union(starts))
    if columns[-1] > last:
        columns = _apart(wanted, starts, others)
    return columns if columns[-1] <= last else _apart(wanted, starts, set())


def _apart(wanted: Sequence[int], starts: Sequence[int], taken: set[int]) -> list[int]:
    """Columns at those wanted or to their right, two apart, none of those ``taken`` but the one it comes from."""
    columns: list[int] = []
    for want, start in zip(wanted, starts, strict=True):
        column = max(want, columns[-1] + 2) if columns else want
        while column in taken and column != start:
            column += 1
        columns.append(column)
    return columns


def _corner(bundle: _Bundle, column: int) -> str:
    arms = _UP * (column == bundle.start) | _DOWN * (column in bundle.ends)
    arms |= _LEFT * (column > bundle.span[0]) | _RIGHT * (column < bundle.span[1])
    return _LINES[arms]


def _rows_for(bundles: Sequence[_Bundle]) -> dict[_Bundle, int]:
    """A row for each bundle that is not straight. Where one leaves in the column in which another arrives, it is above.

    Raises:
        _TooCrowded: Some bundles would each have to be above the other.
    """
    waiting = [bundle for bundle in bundles if not bundle.straight]
    rows: dict[_Bundle, int] = {}
    while waiting:
        ready = [
            bundle
            for bundle in waiting
            if not any(other.start in bundle.ends for other in waiting if other is not bundle)
        ]
        if not ready:
            raise _TooCrowded
        bundle = min(ready, key=lambda bundle: bundle.span)
        waiting.remove(bundle)
        floor = max((row + 1 for other, row in rows.items() if other.start in bundle.ends), default=0)
        taken = {row for other, row in rows.items() if _overlap(bundle.span, other.span)}
        rows[bundle] = next(row for row in range(floor, floor + len(bundles)) if row not in taken)
    return rows


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] + 1 and other[0] <= one[1] + 1


# SVG

_NAME_PX, _SMALL_PX = 8.2, 6.3  # a generous mean width of a character at 14 px semi-bold and 11 px
_MARGIN, _GAP_X, _GAP_Y = 20.0, 30.0, 46.0
_LINE = "#7b879b"  # grey that shows on white and on black, so nothing depends on the page around
_FILLS = {"async": ("#eef4ff", "#4c78c8"), "thread": ("#eefaf1", "#3f9b5f"), "process": ("#fff6e6", "#c98a1b")}
_OTHER_FILL = ("#fdeef2", "#c2557a")


def _svg(graph: Picture, edges: _Edges) -> str:
    layout = lay_out(len(graph.nodes) + 2, edges)
    return _Drawing(graph, layout).draw()


class _Drawing:
    """Boxes with curves between them, from top to bottom. All places are pixels."""

    def __init__(self, graph: Picture, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.labels = [["input"], *([clip(line, 44) for line in _label(node)] for node in graph.nodes), ["output"]]
        entries = Counter(target for _, target in layout.links)
        self.widths = [
            10.0 if vertex.bend else max(self._width(vertex.node), 30.0 + 14 * entries[place])
            for place, vertex in enumerate(layout.vertices)
        ]
        self.x = [_MARGIN + place for place in layout.place(self.widths, _GAP_X)]
        self.heights = [
            max(self._height(layout.vertices[place].node) for place in layer if not layout.vertices[place].bend)
            for layer in layout.layers
        ]
        self.tops = self._tops()

    def _width(self, node: int) -> float:
        name, *small = self.labels[node]
        if not small:
            return 74.0
        return max(cells(name) * _NAME_PX, *(cells(line) * _SMALL_PX for line in small)) + 32

    def _height(self, node: int) -> float:
        return {1: 26.0, 2: 48.0, 3: 64.0}[len(self.labels[node])]

    def _tops(self) -> list[float]:
        """Where each layer begins: the farther its edges have to go sideways, the more room is above it."""
        tops, bottom = [], _MARGIN
        for place, height in enumerate(self.heights):
            sideways = [
                abs(self.x[upper] - self.x[lower])
                for upper, lower in self.layout.links
                if self.layout.vertices[lower].layer == place
            ]
            top = bottom + (min(110.0, _GAP_Y + max(sideways, default=0.0) * 0.09) if place else 0.0)
            tops.append(top)
            bottom = top + height
        return tops

    def draw(self) -> str:
        width = max(x + size / 2 for x, size in zip(self.x, self.widths, strict=True)) + _MARGIN
        height = self.tops[-1] + self.heights[-1] + _MARGIN
        name = escape(printable(self.graph.name))
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{name}" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" text-anchor="middle">',
            f"<title>{name}</title>",
            f'<g fill="none" stroke="{_LINE}" stroke-width="1.5">',
            *(self._edge(edge, route) for edge, route in self.layout.routes.items()),
            "</g>",
            f'<g fill="{_LINE}">',
            *(f'<path d="{arrow}"/>' for arrow in self._arrows()),
            "</g>",
            *(self._box(node) for node in range(len(self.labels))),
            "</svg>",
        ]
        return "\n".join(lines)

    def _name(self, node: int) -> str:
        stages = self.graph.nodes
        return escape(printable(stages[node - 1].name) if 0 < node <= len(stages) else self.labels[node][0])

    def _edge(self, edge: tuple[int, int], route: Sequence[int]) -> str:
        start = route[0]
        layer = self.layout.vertices[start].layer
        y = self.tops[layer] + self.heights[layer]
        path = [f"M{self.x[start]:.1f} {y:.1f}"]
        for place, (upper, lower) in enumerate(pairwise(route), start=2):
            layer += 1
            last = place == len(route)
            x, end = self._entry(upper, lower), self.tops[layer] - (6 if last else 0)
            bend = (end - y) * 0.5
            path.append(f"C{self.x[upper]:.1f} {y + bend:.1f} {x:.1f} {end - bend:.1f} {x:.1f} {end:.1f}")
            if not last:
                y = self.tops[layer] + self.heights[layer]
                path.append(f"V{y:.1f}")
        # The title is what a browser shows over the line, and makes each edge findable in the file.
        return f'<path d="{"".join(path)}"><title>{self._name(edge[0])} → {self._name(edge[1])}</title></path>'

    def _entry(self, upper: int, lower: int) -> float:
        """Where a link enters its lower end: straight down where that can be, and apart from the other arrowheads."""
        if self.layout.vertices[lower].bend:
            return self.x[lower]
        sources = sorted((source for source, target in self.layout.links if target == lower), key=self.x.__getitem__)
        more = len(sources) - 1
        step = min(16.0, (self.widths[lower] - 30) / max(1, more))
        reach = min(self.widths[lower] / 2 - 15, 28 + step * more / 2) if more else 0.0
        # In steps from the left, all have the same bounds, so spreading them out can't push one over the box's edge.
        wanted = [
            min(max(self.x[source] - self.x[lower] - step * place, -reach), reach - step * more) + step * place
            for place, source in enumerate(sources)
        ]
        return self.x[lower] + spread(wanted, [1.0] * len(sources), [step] * more)[sources.index(upper)]

    def _arrows(self) -> list[str]:
        arrows = []
        for upper, lower in self.layout.links:
            vertex = self.layout.vertices[lower]
            if not vertex.bend:
                x, y = self._entry(upper, lower), self.tops[vertex.layer]
                arrows.append(f"M{x:.1f} {y:.1f}l-4.5 -9h9z")
        return arrows

    def _box(self, node: int) -> str:
        label = [escape(line) for line in self.labels[node]]
        layer = self.layout.vertices[node].layer  # a node's vertex has its number
        height, width = self.heights[layer], self.widths[node]
        x, y = self.x[node], self.tops[layer]
        frame = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        if len(label) == 1:
            return (
                f'<rect {frame} rx="13" fill="{_LINE}"/>'
                f'<text x="{x:.1f}" y="{y + 17:.1f}" font-size="12" fill="#ffffff">{label[0]}</text>'
            )
        fill, stroke = _FILLS.get(self.graph.nodes[node - 1].run, _OTHER_FILL)
        y += (height - self._height(node)) / 2
        small = "".join(
            f'<text x="{x:.1f}" y="{y + 37 + 15 * row:.1f}" font-size="11" fill="#4a5568">{line}</text>'
            for row, line in enumerate(label[1:])
        )
        return (
            f"<g><title>{self._name(node)}</title>"
            f'<rect {frame} rx="9" fill="{fill}" stroke="{stroke}" stroke-width="1.4"/>'
            f'<text x="{x:.1f}" y="{y + 20:.1f}" font-size="14" font-weight="600" fill="#1a2233">{label[0]}</text>'
            f"{small}</g>"
        )
