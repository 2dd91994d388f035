"""A record that comes in again because of its dead letters: its items as they stood, and the stages they are ready for.

Only what failed is made anew. Of the items above it there is no more than their places: no stage runs for them, they
make no output, and what they had come to is in the results of those below. Siblings that were written long ago are not
there at all. So the record lives, settles and is written by the same rules as any other.
"""

from __future__ import annotations

from stageflow.engine.routing import Router
from stageflow.item import Item, Part, Reentry
from stageflow.plan import Plan

__all__ = ["reenter"]


def reenter(index: int, reentry: Reentry, plan: Plan, router: Router) -> list[tuple[Item, str]]:
    """Make the items of a record's parts.

    Returns:
        Who is ready for which stage. The items live as often as they are named, before any of them is sent.
    """
    root = Item(index, reentry.record, 0)
    root.reentry = reentry
    family: dict[tuple[tuple[str, int], ...], Item] = {(): root}
    ready: list[tuple[Item, str]] = []
    # In the order of their places: parents first, and children in the order in which they were yielded.
    for part in sorted(reentry.parts, key=lambda part: part.path):
        place = tuple(zip(plan.fan_outs[part.stage], part.path, strict=True))
        for depth in range(1, len(place) + 1):
            if place[:depth] not in family:
                family[place[:depth]] = _child(family[place[: depth - 1]], *place[depth - 1])
        item = family[place]
        _restore(item, part, router)
        entered = router.resume(item)
        assert entered, f"record {index} can't go on at stage {part.stage}"
        ready += entered
    return ready


def _child(parent: Item, maker: str, place: int) -> Item:
    child = Item(parent.index, parent.record, 0)
    child.parent, child.maker = parent, maker
    child.path = (*parent.path, place)
    if parent.children is None:
        parent.children = []
    parent.children.append(child)
    return child


def _restore(item: Item, part: Part, router: Router) -> None:
    item.results = dict(part.results)
    if part.yielded:
        item.resumed, item.yielded = part.yielded, dict(part.yielded)
    if part.notes:
        item.notes = dict(part.notes)
    for stage, note in part.notes.items():
        if note.outcome == "done":
            router.cut(item, stage)
