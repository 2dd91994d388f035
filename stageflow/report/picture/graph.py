"""A graph as plain data, and what every form of picture takes from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stageflow.report.text import count, printable

__all__ = ["Edges", "Picture", "PictureNode", "ids", "label", "numbered", "settings"]

Edges = Sequence[tuple[int, int]]
"""Pairs of numbers: 0 is the input, then come the stages in their order, and last the output."""


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


def numbered(graph: Picture) -> Edges:
    """The edges as numbers, joined to the input and the output.

    Raises:
        ValueError: Two stages of one name, an edge to or from an unknown stage, or one that goes back.
    """
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


def settings(node: PictureNode) -> str:
    """The settings on one line, as ``16 in flight · queue 64``."""
    run = "" if node.run == "async" else f" · {printable(node.run)}"
    return f"{count(node.max_in_flight)} in flight · queue {count(node.queue_size)}{run}"


def label(node: PictureNode) -> list[str]:
    """The lines in a stage's box, cleaned but not escaped: the name, the settings, and the remark if there is one."""
    lines = [printable(node.name), settings(node)]
    return [*lines, printable(node.note)] if node.note else lines


def ids(graph: Picture) -> list[str]:
    """The names of input, stages and output in a language: a stage may be called ``end`` or something with spaces."""
    return ["input", *(f"s{number}" for number in range(1, len(graph.nodes) + 1)), "output"]
