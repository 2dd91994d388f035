"""Where to put the boxes of a graph so that its edges can be followed. Pure, and for any acyclic graph.

1. *Layers.* A vertex stands one layer below the lowest of those it depends on (the longest path), so every edge goes
   down. An edge that skips layers is led through a *bend* in each layer between; all edges of one vertex share their
   bends, so that what goes far travels as one line and branches off where it is wanted.
2. *Order.* Sweeping down and up, each layer is sorted by the mean position of its neighbours in the layer before (the
   barycentre). The order with the fewest crossings is kept.
3. *Places.* Sweeping again, each vertex is drawn towards its neighbours; where that would overlap, least squares
   decide. Bends pull harder. At last, what is nearly upright is made so.

Source: K. Sugiyama, S. Tagawa, M. Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981.
The least squares: M. Ayer et al., "An Empirical Distribution Function for Sampling with Incomplete Information", 1955.
The weights: E. Gansner et al., "A Technique for Drawing Directed Graphs", 1993, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Layout", "Vertex", "lay_out", "spread"]

_SWEEPS = 8
_PLACE_SWEEPS = 60


@dataclass(frozen=True, slots=True)
class Vertex:
    """A node of the graph, or a bend of the edges that leave it (``bend``) in a layer further down."""

    node: int
    layer: int
    bend: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A layered graph. Vertices are called by their place in ``vertices``.

    Args:
        layers: The vertices of each layer, from left to right.
        links: From a vertex to one in the next layer; every edge is a chain of them.
        routes: For each edge the vertices it runs through, both ends included.
    """

    vertices: tuple[Vertex, ...]
    layers: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, int], ...]
    routes: dict[tuple[int, int], tuple[int, ...]]

    def place(self, widths: Sequence[float], gap: float) -> list[float]:
        """The x of each vertex's middle, the leftmost edge at 0, ``gap`` or more between neighbours in a layer."""
        return _place(self, widths, gap)


def lay_out(nodes: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Lay out nodes ``0..nodes-1``; each edge goes from a smaller to a larger number, and none is given twice."""
    depth = [0] * nodes
    for source, target in sorted(edges):
        depth[target] = max(depth[target], depth[source] + 1)
    vertices = [Vertex(node, depth[node], bend=False) for node in range(nodes)]
    bends: dict[tuple[int, int], int] = {}
    links: dict[tuple[int, int], None] = {}
    routes = {}
    for source, target in sorted(edges):
        route = [source]
        for layer in range(depth[source] + 1, depth[target]):
            if (source, layer) not in bends:
                bends[source, layer] = len(vertices)
                vertices.append(Vertex(source, layer, bend=True))
            route.append(bends[source, layer])
        route.append(target)
        routes[source, target] = tuple(route)
        links.update(dict.fromkeys(pairwise(route)))
    layers = [
        [place for place, vertex in enumerate(vertices) if vertex.layer == layer]
        for layer in range(max(depth, default=-1) + 1)
    ]
    return Layout(tuple(vertices), _uncross(layers, list(links)), tuple(links), routes)


# Order


def _uncross(layers: list[list[int]], links: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    above, below = _neighbours(links)
    best = [list(layer) for layer in layers]
    fewest = _crossings(best, below)
    for _ in range(_SWEEPS):
        for down in (True, False):
            for layer in layers[1:] if down else layers[-2::-1]:
                _sort_by_barycentre(layers, layer, above if down else below)
            crossings = _crossings(layers, below)
            if crossings < fewest:
                best, fewest = [list(layer) for layer in layers], crossings
    return tuple(map(tuple, best))


def _neighbours(links: Sequence[tuple[int, int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for upper, lower in links:
        below.setdefault(upper, []).append(lower)
        above.setdefault(lower, []).append(upper)
    return above, below


def _sort_by_barycentre(layers: list[list[int]], layer: list[int], neighbours: dict[int, list[int]]) -> None:
    position = {vertex: place for other in layers for place, vertex in enumerate(other)}

    def barycentre(vertex: int) -> float:
        near = neighbours.get(vertex)
        return sum(position[other] for other in near) / len(near) if near else position[vertex]

    layer.sort(key=barycentre)


def _crossings(layers: Sequence[Sequence[int]], below: dict[int, list[int]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        position = {vertex: place for place, vertex in enumerate(lower)}
        seen: list[int] = []
        for vertex in upper:
            ends = [position[other] for other in below.get(vertex, ())]
            total += sum(1 for end in ends for other in seen if other > end)
            seen += ends
    return total


# Places


def _place(layout: Layout, widths: Sequence[float], gap: float) -> list[float]:
    above, below = _neighbours(layout.links)
    x = [0.0] * len(layout.vertices)
    for layer in layout.layers:
        _settle(x, layer, [0.0] * len(layer), [1.0] * len(layer), widths, gap)
    for sweep in range(_PLACE_SWEEPS):
        # All but the first look both ways, or each layer would end where only one of its neighbours wants it.
        both = sweep >= _SWEEPS
        for layer in layout.layers if sweep % 2 == 0 else layout.layers[::-1]:
            wanted, weights = [], []
            for vertex in layer:
                near = above.get(vertex, []) if both or sweep % 2 == 0 else []
                near = near + (below.get(vertex, []) if both or sweep % 2 else [])
                where, weight = _pull(layout.vertices, x, vertex, near)
                wanted.append(where)
                weights.append(weight)
            _settle(x, layer, wanted, weights, widths, gap)
    _straighten(layout, x, widths, gap)
    left = min((x[vertex] - widths[vertex] / 2 for vertex in range(len(x))), default=0.0)
    return [place - left for place in x]


def _straighten(layout: Layout, x: list[float], widths: Sequence[float], gap: float) -> None:
    """Make upright what is nearly so: links shorter sideways than ``gap``, and the bends of each vertex.

    A run of vertices takes one x in the room that all of them have, which is most often all the way down.
    """
    runs = _runs(layout, x, gap)
    for _ in range(2):
        for run in runs:
            _align(layout, x, widths, gap, run)


def _runs(layout: Layout, x: Sequence[float], gap: float) -> list[list[int]]:
    """Paths of such links, the bends first and then the shortest; no two share a vertex."""
    vertices = layout.vertices
    links = sorted(
        (not (vertices[upper].bend and vertices[lower].bend), abs(x[upper] - x[lower]), upper, lower)
        for upper, lower in layout.links
    )
    after: dict[int, int] = {}
    before: dict[int, int] = {}
    for joins, distance, upper, lower in links:
        if (not joins or distance < gap) and upper not in after and lower not in before:
            after[upper], before[lower] = lower, upper
    runs = []
    for first in after.keys() - before.keys():
        run = [first]
        while run[-1] in after:
            run.append(after[run[-1]])
        runs.append(run)
    return sorted(runs)


def _align(layout: Layout, x: list[float], widths: Sequence[float], gap: float, run: Sequence[int]) -> None:
    pending = list(run)
    while pending:
        low, high, straight = float("-inf"), float("inf"), 0
        for vertex in pending:
            least, most = _room(layout, x, widths, gap, vertex)
            if max(low, least) > min(high, most):
                break
            low, high, straight = max(low, least), min(high, most), straight + 1
        part, pending = pending[: max(1, straight)], pending[max(1, straight) :]
        if straight > 1:
            mean = sum(x[vertex] for vertex in part) / straight
            for vertex in part:
                x[vertex] = min(max(mean, low), high)


def _room(layout: Layout, x: Sequence[float], widths: Sequence[float], gap: float, vertex: int) -> tuple[float, float]:
    """How far to the left and to the right a vertex can go before it comes too near to the next."""
    layer = layout.layers[layout.vertices[vertex].layer]
    place = layer.index(vertex)
    least, most = float("-inf"), float("inf")
    if place > 0:
        other = layer[place - 1]
        least = x[other] + (widths[other] + widths[vertex]) / 2 + gap
    if place + 1 < len(layer):
        other = layer[place + 1]
        most = x[other] - (widths[other] + widths[vertex]) / 2 - gap
    return least, most


def _pull(vertices: Sequence[Vertex], x: Sequence[float], vertex: int, near: Sequence[int]) -> tuple[float, float]:
    """Where its neighbours want a vertex, and how much: 1 for each edge, 2 at a bend, 8 between bends."""
    if not near:
        return x[vertex], 0.1
    pulls = [(1.0, 2.0, 8.0)[vertices[vertex].bend + vertices[other].bend] for other in near]
    return sum(pull * x[other] for pull, other in zip(pulls, near, strict=True)) / sum(pulls), sum(pulls)


def _settle(
    x: list[float],
    layer: Sequence[int],
    wanted: Sequence[float],
    weights: Sequence[float],
    widths: Sequence[float],
    gap: float,
) -> None:
    """Move a layer's vertices to where they are wanted, as nearly as their widths allow."""
    spaces = [(widths[left] + widths[right]) / 2 + gap for left, right in pairwise(layer)]
    for vertex, place in zip(layer, spread(wanted, weights, spaces), strict=True):
        x[vertex] = place


def spread(wanted: Sequence[float], weights: Sequence[float], spaces: Sequence[float]) -> list[float]:
    """The places nearest to those wanted, by weighted least squares, with at least ``spaces[i]`` from i to i + 1.

    Without the spaces it is the problem of isotonic regression, which pooling adjacent violators solves exactly.
    """
    offsets = [0.0]
    for space in spaces:
        offsets.append(offsets[-1] + space)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets, strict=False):
        mean, total, members = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, others = pools.pop()
            mean = (mean * total + other * other_weight) / (total + other_weight)
            total, members = total + other_weight, members + others
        pools.append((mean, total, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]
