"""Random jobs with everything a stage can do: children, batches, retries, timeouts, stand-ins, ways out, rate limits.

A :class:`Flow` is drawn from a seed, as a :class:`strategies.Shape` is, and says what befalls each call: a
:class:`Fate`, which depends on the flow's seed, the stage and the item alone. So a stage or a record can be left out
without changing the rest, and the right answer can be computed without any engine.

What the contract leaves to timing, and how :func:`expected` says so:

* Where a stage fails for an item, nothing more of it is started: of several that would fail, any may be the one that is
  named, and those of its children may have failed before or not.
* Where a failure and a drop meet in branches beside each other, the drop may come first and the failure not be started.
* The lines of a record never depend on timing, since an item of which something fails or drops makes none, nor do its
  children. A generator that fails after its first yield is the exception: what it yielded is kept.
* Children of two generators side by side come in any order; those of each in their own.
* How often the members of a batch were tried depends on who was in it with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal

from stageflow import graph

__all__ = [
    "FOREVER",
    "Expected",
    "Fate",
    "Flow",
    "FlowStage",
    "Key",
    "Node",
    "Place",
    "expected",
    "random_flow",
    "smallest",
]

Way = Literal["value", "done", "drop"]

Place = tuple[int, ...]
"""The ``id`` of a record, then for each fan-out above an item which child it is."""

Key = tuple[Place, tuple[str, ...]]
"""An item: its place and the fan-outs that are counted there. Children of two generators may have one place."""

FOREVER = 99
"""More attempts than any stage has."""

DELAYS = (0.0, 0.0, 0.001, 1.0, 1.0, 3.0)
"""Seconds of a call. Repeated values make calls end at one moment, which is where schedules differ."""

TIMEOUT = 30.0
"""Seconds; longer than any call that does not hang, its waits for room downstream not counted."""

TROUBLES = ("fails", "hangs", "breaks", "drop", "done", "unwanted")


@dataclass(frozen=True)
class FlowStage:
    """One stage; ``depends_on`` may name stages that are defined after it.

    Args:
        fans_out: It is a generator.
        plain: It is no coroutine function but an ordinary one, run on the loop.
        batch: Size and ``within``.
        attempts: Of its retry policy; 1 is none.
        backoff: Seconds before each further attempt.
        limit: Which of the flow's rate limits it takes permits of.
        troubles: What may befall its calls.
    """

    name: str
    depends_on: tuple[str, ...] = ()
    max_in_flight: int = 1
    queue_size: int = 1
    fans_out: bool = False
    plain: bool = False
    batch: tuple[int, float] | None = None
    attempts: int = 1
    backoff: float = 0.0
    on_error: Literal["dead_letter", "skip", "degrade", "abort"] = "dead_letter"
    limit: int | None = None
    troubles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fate:
    """What befalls a stage's calls for one item.

    Args:
        wanted: What ``when`` says.
        seconds: Of a call; for a generator before each of its yields, and before its end.
        bad: So many attempts fail, from the first.
        hangs: They do so by never ending; otherwise they raise.
        way: How the attempt after those ends.
        children: For a generator: the ways of what it yields.
        breaks: Behind them it fails.
    """

    wanted: bool = True
    seconds: float = 0.0
    bad: int = 0
    hangs: bool = False
    way: Way = "value"
    children: tuple[Way, ...] = ()
    breaks: bool = False


@dataclass(frozen=True)
class Flow:
    """A job and its input.

    Args:
        stages: In the order of definition, which need not be one of execution.
        records: The ``id`` of each; its index is its place here.
        rates: The rate limits that stages may share, in calls per second.
        on_partial: The pipeline's.
        max_open_records: The bound on records in flight; ``None`` is the default.
        unhurried: The source is asynchronous and takes its time, too.
        seed: Of the fates.
    """

    stages: tuple[FlowStage, ...]
    records: tuple[int, ...]
    rates: tuple[float, ...] = ()
    on_partial: Literal["keep", "drop"] = "keep"
    max_open_records: int | None = None
    unhurried: bool = False
    seed: int = 0

    @cached_property
    def by_name(self) -> dict[str, FlowStage]:
        return {stage.name: stage for stage in self.stages}

    @cached_property
    def order(self) -> tuple[str, ...]:
        order = graph.topological_order({stage.name: stage.depends_on for stage in self.stages})
        assert order is not None, "a flow has no cycle"
        return order

    @cached_property
    def above(self) -> dict[str, frozenset[str]]:
        return graph.ancestors({stage.name: stage.depends_on for stage in self.stages}, self.order)

    @cached_property
    def level(self) -> dict[str, tuple[str, ...]]:
        """For each stage the fan-outs above it, outermost first: it runs once per child of the innermost."""
        return {
            name: tuple(one for one in self.order if one in self.above[name] and self.by_name[one].fans_out)
            for name in self.order
        }

    def delay(self, what: str, place: Place) -> float:
        return _delay(self.seed, what, place)

    def fate(self, name: str, place: Place) -> Fate:
        """What befalls the item at the stage."""
        stage = self.by_name[name]
        return _fate(self.seed, name, place, stage.attempts, stage.batch is not None, stage.fans_out, stage.troubles)


# Both are asked for many times and by many tests, and to seed a generator takes longer than a stage takes for an item.


@cache
def _delay(seed: int, what: str, place: Place) -> float:
    return random.Random(f"{seed} {what} {place} takes").choice(DELAYS)


@cache
def _fate(
    seed: int, name: str, place: Place, attempts: int, batch: bool, fans_out: bool, troubles: frozenset[str]
) -> Fate:
    """Each trouble is drawn by itself, so that one can be taken away."""

    def strikes(trouble: str, share: float) -> bool:
        return trouble in troubles and random.Random(f"{seed} {name} {place} {trouble}").random() < share

    draw = random.Random(f"{seed} {name} {place}")
    # Who is in a batch with whom is up to timing, and so is how many attempts that costs: there, what does not
    # fail for ever recovers before the attempts are used up.
    bad = draw.choice([*range(1, attempts), FOREVER] if batch else [*range(1, attempts + 1), FOREVER])
    mostly: tuple[Way, ...] = ("value", "value", "value", "done", "drop")
    ways = [draw.choice(mostly) for _ in range(draw.choice((0, 1, 2, 2, 3)))]
    fails, hangs = strikes("fails", 0.4 if batch else 0.3), strikes("hangs", 0.1)
    breaks = strikes("breaks", 0.3) and fans_out and bool(ways)
    way: Way = "value"
    if not fans_out:
        way = "drop" if strikes("drop", 0.25) else "done" if strikes("done", 0.2) else "value"
    allowed = {"value"} | ({"done", "drop"} & troubles)
    return Fate(
        wanted=not strikes("unwanted", 0.3),
        seconds=_delay(seed, name, place),
        bad=bad if fails or hangs else 0,
        hangs=hangs,
        way=way,
        children=tuple(each if each in allowed else "value" for each in ways) if fans_out else (),
        breaks=breaks,
    )


def random_flow(seed: int) -> Flow:
    """The job of this seed: 1 to 8 stages, 0 to 12 records, limits mostly small, since full channels are the point."""
    draw = random.Random(f"flow {seed}")
    names = draw.sample("abcdefghijkl", draw.randint(1, 8))
    density = draw.choice((0.2, 0.5, 0.8))
    batches, fan_outs = draw.choice((0, 0, 2, 3)), draw.choice((0, 1, 1, 2))
    sorts = ["call"] * 3 + ["batch"] * batches + ["fan_out"] * fan_outs
    share = draw.choice((0.0, 0.2, 0.4, 0.6))
    rates = tuple(draw.choice((0.5, 2.0, 10.0)) for _ in range(draw.choice((0, 0, 1, 2))))
    stages: list[FlowStage] = []
    for name in names:
        sort = draw.choice(sorts)
        stage = FlowStage(
            name=name,
            max_in_flight=draw.randint(1, 4),
            queue_size=draw.randint(1, 4),
            fans_out=sort == "fan_out",
            plain=draw.random() < 0.3,
            batch=(draw.randint(1, 4), draw.choice((0.0, 0.05, 2.0))) if sort == "batch" else None,
            attempts=draw.choice((1, 2, 2, 3)),
            backoff=draw.choice((0.0, 0.5, 1.0, 20.0)),
            on_error=draw.choice(("dead_letter", "dead_letter", "skip", "degrade")),
            limit=draw.choice((None, *range(len(rates)))),
            troubles=frozenset(trouble for trouble in TROUBLES if draw.random() < share),
        )
        if stage.batch:  # a batch that can't fill is refused
            stage = replace(stage, queue_size=max(stage.queue_size, stage.batch[0] - 1))
        if stage.plain:  # what does not wait can't hang
            stage = replace(stage, troubles=stage.troubles - {"hangs"})
        for earlier in names[: len(stages)]:
            if draw.random() < density:
                wider = replace(stage, depends_on=(*stage.depends_on, earlier))
                if _can_be_joined(Flow((*stages, wider), ()), name):
                    stage = wider
        stages.append(stage)
    draw.shuffle(stages)
    records = draw.choice((0, 1, draw.randint(2, 12), draw.randint(2, 12), draw.randint(2, 12)))
    return Flow(
        stages=tuple(stages),
        records=tuple(draw.sample(range(100), records)),
        rates=rates,
        on_partial=draw.choice(("keep", "keep", "keep", "drop")),
        max_open_records=draw.choice((None, 1, draw.randint(2, 12))),
        unhurried=draw.random() < 0.5,
        seed=seed,
    )


def _can_be_joined(flow: Flow, name: str) -> bool:
    """Whether of the fan-outs above the stage each is above the next."""
    level = flow.level[name]
    return all(outer in flow.above[inner] for outer, inner in pairwise(level))


# The right answer


@dataclass
class Node:
    """What becomes of an item and of its children, were it alone in the world and its branches in no hurry.

    Args:
        level: The fan-outs above it.
        results: What the stages returned that succeed if they are started, those of its parents included.
        notes: What was out of the ordinary, likewise: the outcome, the error and the attempts (``None``: open).
        dead: The stages that fail for it if they are started.
        drops: The stages that drop it if they are started.
        broken: The generators that fail after their first yield.
        cut: Stages that ``done`` left out.
        ran: Stages that are received unless a failure or a drop beside them comes first; ``fans``: those of them that
            are generators and made children.
    """

    place: Place
    level: tuple[str, ...] = ()
    results: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, tuple[str, str | None, int | None]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    drops: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    cut: frozenset[str] = frozenset()
    ran: set[str] = field(default_factory=set)
    fans: set[str] = field(default_factory=set)
    children: list[Node] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.place, self.level

    @property
    def stops(self) -> bool:
        """Whether a failure or a drop ends the item, whichever comes first."""
        return bool(self.dead or self.drops)

    def family(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.family()

    def leaves(self) -> Iterator[Node]:
        """The items that make a line."""
        if not self.stops:
            if not self.fans:
                yield self
            for child in self.children:
                yield from child.leaves()


@dataclass
class Expected:
    """What becomes of one record.

    Args:
        lines: Its output lines, by the items that make them.
        letters: For each item that may become a dead letter: the stages that may be named.
        certain: Those of these items that do become one, whatever the timing.
    """

    tree: Node
    lines: dict[Key, dict[str, Any]]
    letters: dict[Key, set[str]]
    certain: set[Key]


def expected(flow: Flow) -> dict[int, Expected]:
    """The right answer, computed directly: record by record, stage by stage, without any concurrency."""
    return {number: _outcome(flow, number) for number in flow.records}


def _outcome(flow: Flow, number: int) -> Expected:
    tree = Node((number,))
    _grow(flow, tree)
    letters: dict[Key, set[str]] = {}
    certain: set[Key] = set()

    def visit(node: Node, certainly: bool) -> None:
        """``certainly``: nothing above the item stops it from being run to its end."""
        if node.dead or node.broken:
            letters[node.key] = node.dead | node.broken
            if certainly and not node.drops:
                certain.add(node.key)
        for child in node.children:
            visit(child, certainly and not node.stops)

    visit(tree, True)
    return Expected(tree, {leaf.key: _line(flow, leaf) for leaf in tree.leaves()}, letters, certain)


def _grow(flow: Flow, node: Node) -> None:
    """Run the stages of the item's level, then those of its children."""
    spread: list[tuple[str, list[tuple[str, Any]]]] = []
    for name in flow.order:
        stage = flow.by_name[name]
        ready = all(need in node.results for need in stage.depends_on)
        if flow.level[name] != node.level or name in node.cut or not ready:
            continue
        node.ran.add(name)
        fate = flow.fate(name, node.place)
        given = {need: node.results[need] for need in stage.depends_on}
        gives_up = fate.bad >= stage.attempts
        attempts = None if stage.batch else min(fate.bad, stage.attempts - 1) + 1
        if not fate.wanted:
            node.notes[name] = ("skipped", None, 0)
            ways: list[tuple[str, Any]] = [("value", None)]
        elif gives_up and stage.on_error == "skip":
            node.notes[name] = ("skipped", error_of(name, node.place, fate), attempts)
            ways = [("value", None)]
        elif gives_up and stage.on_error == "degrade":
            node.notes[name] = ("degraded", error_of(name, node.place, fate), attempts)
            ways = [("value", stand_in_of(name, node.place, fate))]
        elif gives_up:
            node.dead.add(name)
            continue
        elif stage.fans_out:
            children = range(len(fate.children))
            ways = [(fate.children[n], result_of(name, (*node.place, n), given)) for n in children]
            if fate.breaks:
                node.broken.add(name)
        else:
            ways = [(fate.way, result_of(name, node.place, given))]
        if stage.fans_out:
            node.fans.add(name)
            spread.append((name, ways))
            continue
        ((way, value),) = ways
        if way == "drop":
            node.drops.add(name)
            continue
        node.results[name] = value
        if way == "done":
            node.notes[name] = ("done", None, attempts)
            node.cut |= _below(flow, name)
    for maker, ways in spread:
        for number, (way, value) in enumerate(ways):
            child = Node((*node.place, number), (*node.level, maker))
            child.results = {**node.results, maker: value}
            child.notes = dict(node.notes)
            child.cut = node.cut
            node.children.append(child)
            if way == "done":
                child.notes[maker] = ("done", None, None)
                child.cut |= _below(flow, maker)
            if way == "drop":
                child.drops.add(maker)
            else:
                _grow(flow, child)


def _below(flow: Flow, name: str) -> frozenset[str]:
    return frozenset(below for below in flow.order if name in flow.above[below])


def _line(flow: Flow, leaf: Node) -> dict[str, Any]:
    line: dict[str, Any] = {"id": leaf.place[0]}
    line |= {stage.name: leaf.results[stage.name] for stage in flow.stages if stage.name in leaf.results}
    if leaf.notes:
        line["_stageflow"] = {
            name: {"outcome": outcome, "error": error, "attempts": attempts}
            for name, (outcome, error, attempts) in leaf.notes.items()
        }
    return line


def result_of(name: str, place: Place, results: dict[str, Any]) -> list[Any]:
    """What a stage makes of an item: its whole ancestry, so that whatever was joined wrongly shows in the output."""
    return [name, list(place), [results[need] for need in sorted(results)]]


def stand_in_of(name: str, place: Place, fate: Fate) -> list[Any]:
    """What ``degrade`` gives: a function of the error and the record."""
    return ["degraded", name, place[0], "AttemptTimeout" if fate.hangs else "Planned"]


def message_of(name: str, place: Place) -> str:
    return f"{name} {list(place)}"


def error_of(name: str, place: Place, fate: Fate) -> str:
    return f"AttemptTimeout: Timeout after {TIMEOUT:g} s" if fate.hangs else f"Planned: {message_of(name, place)}"


# Cutting down


def smallest(flow: Flow, fails: Callable[[Flow], bool]) -> Flow:
    """Cut ``flow`` down as long as it still fails; greedy, so a local minimum."""
    while True:
        for candidate in _smaller(flow):
            if fails(candidate):
                flow = candidate
                break
        else:
            return flow


def _smaller(flow: Flow) -> Iterator[Flow]:
    for stage in flow.stages if len(flow.stages) > 1 else ():
        yield _without(flow, stage.name)
    half = len(flow.records) // 2
    if half:
        yield replace(flow, records=flow.records[:half])
        yield replace(flow, records=flow.records[half:])
    for number in flow.records:
        yield replace(flow, records=tuple(other for other in flow.records if other != number))
    if flow.unhurried:
        yield replace(flow, unhurried=False)
    if flow.max_open_records is not None:
        yield replace(flow, max_open_records=None)
    if flow.on_partial != "keep":
        yield replace(flow, on_partial="keep")
    for place, stage in enumerate(flow.stages):
        for plainer in _plainer(stage):
            yield replace(flow, stages=(*flow.stages[:place], plainer, *flow.stages[place + 1 :]))


def _plainer(stage: FlowStage) -> Iterator[FlowStage]:
    for trouble in sorted(stage.troubles):
        yield replace(stage, troubles=stage.troubles - {trouble})
    for above in stage.depends_on:
        yield replace(stage, depends_on=tuple(name for name in stage.depends_on if name != above))
    plain = FlowStage(stage.name, fans_out=stage.fans_out, batch=stage.batch)
    for setting in ("limit", "on_error", "attempts", "backoff", "plain"):
        if getattr(stage, setting) != getattr(plain, setting):
            yield replace(stage, **{setting: getattr(plain, setting)})
    if stage.fans_out:
        yield replace(stage, fans_out=False)
    if stage.batch:
        yield replace(stage, batch=None)
    if stage.batch and stage.batch[0] > 1:
        yield replace(stage, batch=(stage.batch[0] - 1, stage.batch[1]))
    for setting in ("max_in_flight", "queue_size"):
        if getattr(stage, setting) > 1:
            yield replace(stage, **{setting: getattr(stage, setting) - 1})


def _without(flow: Flow, name: str) -> Flow:
    return replace(
        flow,
        stages=tuple(
            replace(stage, depends_on=tuple(above for above in stage.depends_on if above != name))
            for stage in flow.stages
            if stage.name != name
        ),
    )
