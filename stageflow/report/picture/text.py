"""The graph for a terminal: boxes and lines with as much in the boxes as there is room for, else a list."""

from __future__ import annotations

import textwrap

from stageflow.report.layout import lay_out
from stageflow.report.picture.boxes import Boxes
from stageflow.report.picture.gaps import TooCrowded
from stageflow.report.picture.graph import Edges, Picture, label, settings
from stageflow.report.text import cells, clip, counted, pad, printable

__all__ = ["draw"]

_WIDTH = 100


def draw(graph: Picture, edges: Edges) -> str:
    """Boxes with all of the settings; where that is too wide, boxes with names above a list; else the list alone."""
    title = f"{printable(graph.name)}: {counted(len(graph.nodes), 'stage')}"
    layout = lay_out(len(graph.nodes) + 2, edges)
    full = [label(node) for node in graph.nodes]
    names = [lines[:1] for lines in full]
    for labels, below in ((full, []), (names, [_listing(graph, edges)])):
        try:
            return "\n\n".join([title, "\n".join(Boxes(layout, labels, _WIDTH).draw()), *below])
        except TooCrowded:
            continue
    return "\n\n".join([title, _listing(graph, edges)])


def _listing(graph: Picture, edges: Edges) -> str:
    """The stages in execution order, each with all it takes from: right for any graph, and never wide."""
    names = ["input", *(printable(node.name) for node in graph.nodes), "output"]
    column = min(32, max(map(cells, names)))
    told = [settings(node) + (f" · {printable(node.note)}" if node.note else "") for node in graph.nodes]
    middle = max(map(cells, told), default=0)
    lines = []
    for number, (name, setting) in enumerate(zip(names[1:], [*told, ""], strict=True), start=1):
        takes = ", ".join(names[source] for source, target in edges if target == number)
        start = f"{pad(clip(name, column), column)}  {pad(setting, middle)}  from "
        wrapped = textwrap.wrap(takes, max(24, _WIDTH - cells(start)), break_on_hyphens=False) or ["nothing"]
        lines.append(start + wrapped[0])
        lines += [" " * cells(start) + more for more in wrapped[1:]]
    return "\n".join(lines)
