"""The graph as SVG: boxes with curves between them, from top to bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from stageflow.report.layout import Layout, lay_out, spread
from stageflow.report.picture.graph import Edges, Picture, label
from stageflow.report.svg import AMBER, BLUE, GREEN, INK, ROSE, opening, text_width, words
from stageflow.report.text import clip, printable

__all__ = ["draw"]

_MARGIN, _GAP_X, _GAP_Y = 20.0, 30.0, 46.0
_LINE = "#7b879b"  # grey that shows on white and on black, so nothing depends on the page around
_SMALL = "#4a5568"  # the settings, on any of the fills
_FILLS = {"async": ("#eef4ff", BLUE), "thread": ("#eefaf1", GREEN), "process": ("#fff6e6", AMBER)}
_OTHER_FILL = ("#fdeef2", ROSE)


def draw(graph: Picture, edges: Edges) -> str:
    """The lines of a self-contained file."""
    layout = lay_out(len(graph.nodes) + 2, edges)
    return _Drawing(graph, layout).draw()


class _Drawing:
    """The places of all boxes, in pixels, and then what is drawn there."""

    def __init__(self, graph: Picture, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.labels = [["input"], *([clip(line, 44) for line in label(node)] for node in graph.nodes), ["output"]]
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
        return max(text_width(name, 14), *(text_width(line, 11) for line in small)) + 32

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
        lines = [
            *opening(width, height, printable(self.graph.name), 'text-anchor="middle"'),
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
        name, *small = self.labels[node]
        layer = self.layout.vertices[node].layer  # a node's vertex has its number
        height, width = self.heights[layer], self.widths[node]
        x, y = self.x[node], self.tops[layer]
        frame = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        if not small:
            return f'<rect {frame} rx="13" fill="{_LINE}"/>' + words(x, y + 17, name, 'font-size="12" fill="#ffffff"')
        fill, stroke = _FILLS.get(self.graph.nodes[node - 1].run, _OTHER_FILL)
        y += (height - self._height(node)) / 2
        lines = [
            f"<g><title>{self._name(node)}</title>",
            f'<rect {frame} rx="9" fill="{fill}" stroke="{stroke}" stroke-width="1.4"/>',
            words(x, y + 20, name, f'font-size="14" font-weight="600" fill="{INK}"'),
            *(words(x, y + 37 + 15 * row, line, f'font-size="11" fill="{_SMALL}"') for row, line in enumerate(small)),
            "</g>",
        ]
        return "".join(lines)

    def _name(self, node: int) -> str:
        stages = self.graph.nodes
        return escape(printable(stages[node - 1].name) if 0 < node <= len(stages) else self.labels[node][0])
