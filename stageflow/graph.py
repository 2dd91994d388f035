"""Pure algorithms on a graph given as ``{node: the nodes it depends on}``: order, cycles, reachability, near names."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ancestors", "children", "find_cycle", "nearest", "topological_order"]

Dependencies = Mapping[str, Sequence[str]]


def children(dependencies: Dependencies) -> dict[str, tuple[str, ...]]:
    """The edges turned round: for each node those that depend on it, in the order of the mapping."""
    result: dict[str, list[str]] = {node: [] for node in dependencies}
    for node, needs in dependencies.items():
        for need in dict.fromkeys(needs):
            result[need].append(node)
    return {node: tuple(below) for node, below in result.items()}


def topological_order(dependencies: Dependencies) -> tuple[str, ...] | None:
    """Every node after those it depends on, otherwise as near to the order of the mapping as can be.

    Returns:
        The order, or ``None`` where a cycle leaves none.

    Source: A. B. Kahn, "Topological sorting of large networks", 1962.
    """
    below = children(dependencies)
    waiting = {node: len(set(needs)) for node, needs in dependencies.items()}
    ready = deque(node for node, count in waiting.items() if count == 0)
    order: list[str] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for child in below[node]:
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    return tuple(order) if len(order) == len(dependencies) else None


def find_cycle(dependencies: Dependencies) -> tuple[str, ...] | None:
    """One cycle in the direction of execution, its first node repeated at the end; ``None`` if there is none."""
    done: set[str] = set()
    for start in dependencies:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, iter(dependencies[start]))] if start not in done else []
        if stack:
            path.append(start)
            on_path.add(start)
        while stack:
            node, needs = stack[-1]
            need = next((n for n in needs if n not in done), None)
            if need is None:
                stack.pop()
                done.add(node)
                on_path.discard(path.pop())
            elif need in on_path:
                cycle = path[path.index(need) :]
                return _from_first(tuple(reversed(cycle)), dependencies)
            else:
                path.append(need)
                on_path.add(need)
                stack.append((need, iter(dependencies[need])))
    return None


def _from_first(cycle: tuple[str, ...], dependencies: Dependencies) -> tuple[str, ...]:
    """Turn a cycle so that it begins with the node that the user defined first."""
    first = next(node for node in dependencies if node in cycle)
    at = cycle.index(first)
    return (*cycle[at:], *cycle[:at], first)


def ancestors(dependencies: Dependencies, order: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each node all those that come before it on some path; ``order`` is topological."""
    above: dict[str, frozenset[str]] = {}
    for node in order:
        above[node] = frozenset(dependencies[node]).union(*(above[need] for need in dependencies[node]))
    return above


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that a misspelt one most likely meant, or ``None`` where none is near."""
    import difflib  # here, for what is right needs it not

    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None
