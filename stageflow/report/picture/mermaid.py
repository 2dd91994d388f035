"""The graph as a Mermaid flowchart."""

from __future__ import annotations

from stageflow.report.picture.graph import Edges, Picture, ids, label
from stageflow.report.text import printable

__all__ = ["draw"]

# Mermaid's own entities. A backtick right after the quote would start Markdown, and # an entity.
_ENTITIES = str.maketrans(
    {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\\": "#92;"}
)


def draw(graph: Picture, edges: Edges) -> str:
    """The lines of a flowchart from top to bottom."""
    names = ids(graph)
    lines = [f"%% {printable(graph.name)}", "flowchart TD", f"    {names[0]}([input])"]
    for name, node in zip(names[1:], graph.nodes, strict=False):
        text = "<br/>".join(line.translate(_ENTITIES) for line in label(node))
        lines.append(f'    {name}["{text}"]')
    lines.append(f"    {names[-1]}([output])")
    lines += [f"    {names[source]} --> {names[target]}" for source, target in edges]
    return "\n".join(lines)
