"""The layout: boxes stand apart, lines run straight where they can, and none crosses another without need."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stageflow.report.layout import lay_out, spread


def crossings(layout_layers: tuple[tuple[int, ...], ...], links: tuple[tuple[int, int], ...]) -> int:
    position = {vertex: place for layer in layout_layers for place, vertex in enumerate(layer)}
    layer_of = {vertex: place for place, layer in enumerate(layout_layers) for vertex in layer}
    return sum(
        1
        for upper, lower in links
        for other, end in links
        if layer_of[upper] == layer_of[other] and position[upper] < position[other] and position[lower] > position[end]
    )


def test_crossings_that_need_not_be_are_undone() -> None:
    layout = lay_out(7, [(0, 1), (0, 2), (0, 3), (1, 6), (2, 5), (3, 4)])
    assert crossings(layout.layers, layout.links) == 0


def test_a_long_edge_runs_straight_down() -> None:
    layout = lay_out(6, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)])
    wide = {1: 9.0, 2: 41.0, 3: 5.0, 4: 25.0}
    x = layout.place([1.0 if vertex.bend else wide.get(vertex.node, 9.0) for vertex in layout.vertices], 3)
    assert len({x[vertex] for vertex in layout.routes[0, 5][1:-1]}) == 1


def test_edges_of_one_vertex_share_their_bends() -> None:
    layout = lay_out(5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (0, 4)])
    assert layout.routes[0, 3][:3] == layout.routes[0, 4][:3]
    assert sum(vertex.bend for vertex in layout.vertices) == 3


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10), st.floats(0, 20)), min_size=1, max_size=8),
)
def test_spreading_keeps_the_spaces_and_can_not_be_bettered(places: list[tuple[float, float, float]]) -> None:
    wanted, weights, spaces = ([place[column] for place in places] for column in range(3))
    found = spread(wanted, weights, spaces[1:])
    steps = [right - left for left, right in pairwise(found)]
    assert all(step >= space - 1e-6 for step, space in zip(steps, spaces[1:], strict=True))

    def cost(at: list[float]) -> float:
        return sum(weight * (place - want) ** 2 for place, want, weight in zip(at, wanted, weights, strict=True))

    # The problem is convex, so no better neighbour means none at all. Moving a tail or a head keeps the spaces.
    for place in range(len(found)):
        for step in (0.01, -0.01):
            moved_tail = found[:place] + [at + abs(step) for at in found[place:]]
            moved_head = [at - abs(step) for at in found[: place + 1]] + found[place + 1 :]
            assert min(cost(moved_tail), cost(moved_head)) >= cost(found) - 1e-9
