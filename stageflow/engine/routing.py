"""Which stages an item is ready for next: joins, ways out, and the levels that fan-outs make.

Without fan-outs an item is a record. A fan-out makes children of an item; the stages below it run once per child, those
beside it once per parent, and a stage that depends on both runs once per child as soon as that child and its parent
have what it needs. Whether anything of an item is queued, running or waiting is one number, ``live``; a child that
lives counts as one in its parent, and the record settles when its own number comes to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stageflow.item import Item
from stageflow.plan import Plan

__all__ = ["Router"]


class Router:
    """Decides where items go. It moves none.

    Args:
        settled: Called with each record of which nothing lives any more.
        settled_many: The same for several at once.

    Attributes:
        levels: There are fan-outs, so that one item's step may make many ready.
    """

    def __init__(
        self,
        plan: Plan,
        settled: Callable[[Item], None],
        settled_many: Callable[[list[Item]], None] | None = None,
    ) -> None:
        self._plan = plan
        self._settled = settled
        self._settled_many = settled_many
        self.levels = any(plan.fan_outs.values()) or any(stage.fans_out for stage in plan.stages.values())
        self._onward = {name: list(self._may_follow(name)) for name in plan.order}
        self._descendants = {
            name: frozenset(below for below in plan.order if name in plan.ancestors[below]) for name in plan.order
        }

    def _may_follow(self, stage: str) -> Iterator[tuple[str, frozenset[str]]]:
        """Without fan-outs: the stages that an item may be ready for after ``stage``, and what that depends on.

        All that ``stage`` itself depends on has finished by then, and nothing that depends on it.
        """
        ancestors = self._plan.ancestors
        for child in self._plan.children[stage]:
            others = frozenset(self._plan.stages[child].dependencies) - ancestors[stage] - {stage}
            if not any(stage in ancestors[other] for other in others):
                yield child, others

    def cut(self, item: Item, stage: str) -> None:
        """``done``: nothing that depends on ``stage`` is run for the item."""
        item.cut = (item.cut or frozenset()) | self._descendants[stage]

    def next(self, item: Item, stage: str) -> list[tuple[Item, str]]:
        """After ``stage`` finished for ``item``: who is ready for which stage. Each of them lives one more."""
        children = self._plan.children[stage]
        if self.levels:
            ready = [
                (each, child)
                for child in children
                for each in self._at_level_of(item, child)
                if self._complete(each, child)
            ]
        else:
            ready = [(item, child) for child, others in self._onward[stage] if self._arrive(item, child, others)]
        for each, _ in ready:
            self._enter(each)
        return ready

    def resume(self, item: Item) -> list[tuple[Item, str]]:
        """The stages that an item is ready for with the results of an earlier run. It lives once for each of them.

        A generator leaves no result with the item. Where some are to go on, those that are not named had ended.
        """
        level, over, ready = item.level(), item.results.keys() | (item.cut or set()), list[tuple[Item, str]]()
        for name in self._plan.order:
            stage = self._plan.stages[name]
            if self._plan.fan_outs[name] != level or name in over:
                continue
            if stage.fans_out and item.resumed is not None and name not in item.resumed:
                continue
            if all(need in item.results for need in stage.dependencies):
                self._enter(item)
                ready.append((item, name))
        return ready

    def next_of_all(self, items: list[Item], stage: str) -> list[tuple[str, list[Item]]]:
        """As :meth:`next` for many items, and with the visits at ``stage`` ended; in a plan without fan-outs.

        Returns:
            By stage the items that are ready for it.
        """
        ready = [(child, self._arrived(items, child, others)) for child, others in self._onward[stage]]
        for _, entering in ready:
            for item in entering:
                item.live += 1
        self.leave_all(items)
        return ready

    def leave_all(self, items: list[Item]) -> None:
        """A visit of each of the items has ended."""
        if self.levels:
            for item in items:
                self.leave(item)
            return
        over: list[Item] = []
        for item in items:
            live = item.live = item.live - 1
            if live == 0:
                over.append(item)
        if self._settled_many is not None:
            self._settled_many(over)
        else:
            for item in over:
                self._settled(item)

    def leave(self, item: Item) -> None:
        """One visit of the item has ended."""
        item.live -= 1
        if item.live == 0:
            if item.parent is None:
                self._settled(item)
            else:
                self.leave(item.parent)

    def child(self, item: Item, stage: str, value: Any) -> Item:
        """The child that ``stage`` yielded from ``item``; it lives until it is left once."""
        siblings = item.children = [] if item.children is None else item.children
        child = Item(item.index, item.record, 1)
        child.parent = item
        child.maker = stage
        yielded = item.yielded = {} if item.yielded is None else item.yielded
        place = yielded.get(stage, 0)
        yielded[stage] = place + 1
        child.path = (*item.path, place)
        child.results = {**item.results, stage: value}
        child.closed = item.closed
        siblings.append(child)
        item.live += 1
        return child

    def _enter(self, item: Item) -> None:
        if item.live == 0 and item.parent is not None:
            self._enter(item.parent)
        item.live += 1

    def _arrive(self, item: Item, stage: str, others: frozenset[str]) -> bool:
        """Whether the last of what ``stage`` depends on has finished for the item, and the stage is wanted."""
        return (item.cut is None or stage not in item.cut) and item.results.keys() >= others

    def _arrived(self, items: list[Item], stage: str, others: frozenset[str]) -> list[Item]:
        """Those of the items that :meth:`_arrive`. Most joins are of one or two: those need no set for each item."""
        if not others:
            return [item for item in items if item.cut is None or stage not in item.cut]
        if len(others) > 1:
            return [item for item in items if self._arrive(item, stage, others)]
        (other,) = others
        return [item for item in items if other in item.results and (item.cut is None or stage not in item.cut)]

    def _at_level_of(self, item: Item, stage: str) -> Iterator[Item]:
        """The item itself, or those of its descendants for which ``stage`` runs."""
        below = self._plan.fan_outs[stage][len(item.level()) :]
        found = [item]
        for fan_out in below:
            found = [child for each in found for child in each.children or () if child.maker == fan_out]
        return iter(found)

    def _complete(self, item: Item, stage: str) -> bool:
        """Whether the item and those above it have every result that ``stage`` needs; they are then the item's own."""
        if item.closed:  # a child that was dropped as it was yielded
            return False
        lineage = list(item.lineage())
        if any(each.cut is not None and stage in each.cut for each in lineage):
            return False
        for need in self._plan.stages[stage].dependencies:
            if need not in item.results:
                holder = next((each for each in lineage if need in each.results), None)
                if holder is None:
                    return False
                item.results[need] = holder.results[need]
        return True
