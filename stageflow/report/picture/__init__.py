"""The graph of a job as text, Mermaid, Graphviz dot or SVG: a module for each, over the same numbered edges.

Names reach terminals, browsers and other programs from here, so each form cleans and escapes them in its own way.
"""

from __future__ import annotations

from stageflow.report.picture import dot, mermaid, svg, text
from stageflow.report.picture.graph import Picture, PictureNode, numbered

__all__ = ["Picture", "PictureNode", "render"]

_FORMS = {"text": text.draw, "mermaid": mermaid.draw, "dot": dot.draw, "svg": svg.draw}


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
    draw = _FORMS.get(format)
    if draw is None:
        raise ValueError(f"no format {format!r}: text, mermaid, dot or svg")
    return draw(graph, numbered(graph))
