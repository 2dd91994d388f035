"""Order, cycles, ancestors and near names, as plain functions; and over random graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.graph import ancestors, children, find_cycle, nearest, topological_order

Graph = Mapping[str, Sequence[str]]

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool) -> dict[str, list[str]]:
    """Up to eight nodes in any order of definition; a dependency may be named twice."""
    names = draw(st.permutations("abcdefgh"))[: draw(st.integers(0, 8))]
    edges = {}
    for position, name in enumerate(names):
        allowed = names[:position] if acyclic else names
        edges[name] = draw(st.lists(st.sampled_from(allowed), max_size=5)) if allowed else []
    return {name: edges[name] for name in draw(st.permutations(names))}


def reachable(graph: Graph, start: str) -> set[str]:
    """By the plainest of ways: what can be reached from ``start`` by one edge or more."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph[node]
    return found


def is_cyclic(graph: Graph) -> bool:
    return any(node in reachable(graph, node) for node in graph)


# Children


def test_children_are_the_edges_turned_round_in_the_order_of_the_mapping() -> None:
    assert children(DIAMOND) == {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ()}


def test_a_dependency_named_twice_is_one_edge() -> None:
    assert children({"a": [], "b": ["a", "a"]}) == {"a": ("b",), "b": ()}
    assert topological_order({"b": ["a", "a"], "a": []}) == ("a", "b")


# Order


@pytest.mark.parametrize(
    ("graph", "order"),
    [
        ({}, ()),
        ({"a": []}, ("a",)),
        ({"b": [], "a": []}, ("b", "a")),
        ({"c": ["b"], "b": ["a"], "a": []}, ("a", "b", "c")),
        (DIAMOND, ("a", "b", "c", "d")),
        ({"a": [], "late": ["a"], "b": []}, ("a", "b", "late")),
    ],
)
def test_order(graph: Graph, order: tuple[str, ...]) -> None:
    assert topological_order(graph) == order


@given(graphs(acyclic=True))
def test_each_node_comes_once_and_after_what_it_depends_on(graph: Graph) -> None:
    order = topological_order(graph)
    assert order is not None
    assert sorted(order) == sorted(graph)
    assert all(order.index(need) < order.index(node) for node, needs in graph.items() for need in needs)
    assert find_cycle(graph) is None


@given(graphs(acyclic=False))
def test_there_is_an_order_or_a_cycle_and_never_both(graph: Graph) -> None:
    assert (topological_order(graph) is None) == (find_cycle(graph) is not None) == is_cyclic(graph)


# Cycles


@pytest.mark.parametrize(
    ("graph", "cycle"),
    [
        ({"a": ["a"]}, ("a", "a")),
        ({"a": ["b"], "b": ["a"]}, ("a", "b", "a")),
        # In the direction of execution: b takes a's result, c takes b's, a takes c's.
        ({"a": ["c"], "b": ["a"], "c": ["b"]}, ("a", "b", "c", "a")),
        # It begins with the node that was defined first, wherever the search came in.
        ({"start": ["y"], "x": ["y"], "y": ["x"]}, ("x", "y", "x")),
        ({"ok": [], "z": ["ok", "a"], "a": ["z"]}, ("z", "a", "z")),
    ],
)
def test_a_cycle_is_named_in_the_direction_of_execution(graph: Graph, cycle: tuple[str, ...]) -> None:
    assert find_cycle(graph) == cycle


@given(graphs(acyclic=False))
def test_what_is_called_a_cycle_is_one(graph: Graph) -> None:
    cycle = find_cycle(graph)
    if cycle is None:
        return
    assert cycle[0] == cycle[-1]
    assert len(set(cycle[1:])) == len(cycle) - 1
    assert all(before in graph[after] for before, after in pairwise(cycle))
    assert cycle[0] == next(node for node in graph if node in cycle)


def test_a_long_chain_is_no_recursion() -> None:
    chain: dict[str, list[str]] = {f"n{number}": [f"n{number - 1}"] for number in range(1, 5000)}
    assert find_cycle({**chain, "n0": []}) is None
    assert topological_order({**chain, "n0": []}) == tuple(f"n{number}" for number in range(5000))
    found = find_cycle({**chain, "n0": ["n4999"]})
    assert found is not None
    assert len(found) == 5001


# Ancestors


def test_ancestors_are_all_before_on_some_path() -> None:
    order = topological_order(DIAMOND)
    assert order is not None
    assert ancestors(DIAMOND, order) == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}}


@given(graphs(acyclic=True))
def test_ancestors_are_what_is_reachable(graph: Graph) -> None:
    order = topological_order(graph)
    assert order is not None
    assert ancestors(graph, order) == {node: reachable(graph, node) for node in graph}


# Near names


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("generat", ["retrieve", "generate"], "generate"),
        ("quary", ["query", "id"], "query"),
        ("x", ["retrieve", "generate"], None),
        ("generate", [], None),
    ],
)
def test_nearest(name: str, names: list[str], near: Any) -> None:
    assert nearest(name, names) == near
    assert nearest(name, iter(names)) == near
