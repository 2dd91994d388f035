"""The graph in the language of Graphviz."""

from __future__ import annotations

from stageflow.report.picture.graph import Edges, Picture, ids, label
from stageflow.report.text import printable

__all__ = ["draw"]

# Graphviz reads HTML entities in labels, so an ampersand is one, too.
_ESCAPES = str.maketrans({"&": "&amp;", "\\": "\\\\", '"': '\\"'})


def draw(graph: Picture, edges: Edges) -> str:
    """The lines of a digraph."""
    names = ids(graph)
    lines = [
        f'digraph "{_escaped(printable(graph.name))}" {{',
        '    node [shape=box, style=rounded, fontname="Helvetica", fontsize=11];',
        '    edge [color="#748094", arrowsize=0.7];',
        f'    {names[0]} [label="input", shape=plaintext];',
    ]
    for name, node in zip(names[1:], graph.nodes, strict=False):
        text = "\\n".join(map(_escaped, label(node)))
        lines.append(f'    {name} [label="{text}"];')
    lines.append(f'    {names[-1]} [label="output", shape=plaintext];')
    lines += [f"    {names[source]} -> {names[target]};" for source, target in edges]
    return "\n".join([*lines, "}"])


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)
