"""The tests of the tests: planted mistakes are found, flows are various, and what is expected of them is right."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import test_flow_properties as properties
from flow_runs import SEEDS, Run, run
from strategies_flow import (
    FOREVER,
    Fate,
    Flow,
    FlowStage,
    Node,
    Place,
    expected,
    random_flow,
    smallest,
)

from stageflow import Retry, RunFailed, output
from stageflow.channel import Channel
from stageflow.engine.batches import BatchWorker
from stageflow.engine.binding import Call
from stageflow.engine.failing import Failing
from stageflow.engine.gate import Gate
from stageflow.engine.pool import Pool
from stageflow.engine.routing import Router
from stageflow.engine.worker import Worker
from stageflow.item import Item


def child_in_its_parents_results(self: Router, item: Item, stage: str, value: Any) -> Item:
    """The results are not copied: siblings overwrite each other's."""
    child = ROUTER_CHILD(self, item, stage, value)
    item.results[stage] = value
    child.results = item.results
    return child


def child_that_does_not_count(self: Router, item: Item, stage: str, value: Any) -> Item:
    """The parent settles without its children."""
    child = ROUTER_CHILD(self, item, stage, value)
    item.live -= 1
    return child


def child_on_its_parents_path(self: Router, item: Item, stage: str, value: Any) -> Item:
    child = ROUTER_CHILD(self, item, stage, value)
    child.path = item.path
    return child


def cut_nothing(self: Router, item: Item, stage: str) -> None:
    """``done`` is an ordinary result."""


def requeue_and_count(self: Channel, item: Item) -> None:
    """An item that comes back is received once more."""
    self.sent += 1
    CHANNEL_REQUEUE(self, item)


def reversed_leaves(item: Item, plan: Any) -> Iterator[Item]:
    return reversed(list(LEAVES(item, plan)))


async def reversed_batch(self: BatchWorker, items: list[Item], *, alone: bool) -> list[Any] | None:
    values = await BATCH_CALL(self, items, alone=alone)
    return values and values[::-1]


async def gather_slowly(self: BatchWorker, first: Item) -> list[Item]:
    """What is gathered waits for longer than it may."""
    items = await GATHER(self, first)
    await asyncio.sleep(1.0)
    return items


async def gather_one_more(self: BatchWorker, first: Item) -> list[Item]:
    items = await GATHER(self, first)
    more = self.pool.channel.try_receive()
    if isinstance(more, Item):
        items.append(more)
    elif more is not None:
        self.pool.channel.leave()
    return items


async def wait_as_worker(self: Failing, item: Item, error: BaseException, *, worker: Any) -> Any:
    """The worker waits with the item for its next attempt."""
    ruling = await OUTCOME(self, item, error, worker=worker)
    if getattr(ruling, "kind", None) == "wait" and self.stage.retry is not None:
        await asyncio.sleep(self.stage.retry.base)
    return ruling


def never_yielded(self: Failing, item: Item) -> bool:
    """A generator is run again behind its first yield, or all of its children are lost."""
    return False


def attempt_counted_twice(self: Pool, item: Item) -> None:
    COUNT_ATTEMPT(self, item)
    COUNT_ATTEMPT(self, item)


def close_alone(self: Item) -> None:
    """The children of an item go on without it."""
    self.closed = True


async def open_gate(self: Gate) -> float:
    """Permits for everybody."""
    return 0.0


def key_of_attempt(self: Call) -> str:
    place = "-".join(map(str, (self._item.index, *self._item.path)))
    return f"{self.attempt}-{place}-{self._binder.stage.name}"


def forget_who_waits(self: Pool) -> None:
    """Timers ring, and items are unaccounted for, after the run."""


async def time_goes_on(self: Pool, item: Item, value: Any, worker: Worker) -> None:
    """The time in which a generator waits for room counts as its own."""
    await self._send_child(item, value)


def retry_once_more(self: Retry, error: BaseException, attempt: int) -> bool:
    return attempt <= self.attempts


ROUTER_CHILD = Router.child
CHANNEL_REQUEUE = Channel.requeue
LEAVES = output._leaves
BATCH_CALL = BatchWorker._call
GATHER = BatchWorker._gather
OUTCOME = Failing.outcome
COUNT_ATTEMPT = Pool.count_attempt


@pytest.mark.parametrize(
    ("broken", "mistake", "test"),
    [
        ("engine.routing.Router.child", child_in_its_parents_results, properties.test_every_run),
        ("engine.routing.Router.child", child_that_does_not_count, properties.test_every_run),
        ("engine.routing.Router.child", child_on_its_parents_path, properties.test_every_run),
        ("engine.routing.Router.cut", cut_nothing, properties.test_every_run),
        ("channel.Channel.requeue", requeue_and_count, properties.test_every_run),
        ("output._leaves", reversed_leaves, properties.test_every_run),
        ("engine.batches.BatchWorker._call", reversed_batch, properties.test_every_run),
        ("engine.batches.BatchWorker._gather", gather_slowly, properties.test_no_batch_waits_longer_than_it_may),
        ("engine.batches.BatchWorker._gather", gather_one_more, properties.test_every_run),
        (
            "engine.failing.Failing.outcome",
            wait_as_worker,
            properties.test_who_waits_for_the_next_attempt_holds_nobody_up,
        ),
        ("engine.failing.Failing._has_yielded", never_yielded, properties.test_every_run),
        ("engine.pool.Pool.count_attempt", attempt_counted_twice, properties.test_every_run),
        ("engine.pool.Pool.close", forget_who_waits, partial(properties.stop_accounts, 2.5)),
        ("item.Item.close", close_alone, properties.test_every_run),
        ("engine.gate.Gate.wait", open_gate, properties.test_every_run),
        ("engine.binding.Call.idempotency_key", property(key_of_attempt), properties.test_every_run),
        ("engine.pool.Pool.spread", time_goes_on, properties.test_every_run),
        ("policies.retry.Retry.wants_another", retry_once_more, properties.test_every_run),
    ],
)
def test_planted_mistakes_are_found(
    broken: str, mistake: Any, test: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"stageflow.{broken}", mistake)
    monkeypatch.setattr("flow_runs.tell_smallest", lambda *_: None)
    monkeypatch.setattr("flow_runs.run_of", lambda seed: run(random_flow(seed), seed))

    def check_all(done: Run) -> None:
        for check in properties.CHECKS:
            check(done)

    with pytest.raises((AssertionError, RunFailed)):
        test(check_all) if test is properties.test_every_run else test()


@cache
def flows() -> tuple[Flow, ...]:
    return tuple(random_flow(seed) for seed in SEEDS)


def features(flow: Flow) -> Iterator[tuple[str, bool]]:
    """What a property quantifies over, and whether it is there."""
    rights = expected(flow).values()
    nodes: list[Node] = [node for right in rights for node in right.tree.family()]
    fates = [(flow.by_name[name], flow.fate(name, node.place)) for node in nodes for name in node.ran]
    notes = {outcome for node in nodes for outcome, _, _ in node.notes.values()}
    ways = {way for _, fate in fates for way in (fate.way, *fate.children)}
    # From how many levels a stage takes results.
    levels = [
        len(
            {
                (*flow.level[need], need) if flow.by_name[need].fans_out else flow.level[need]
                for need in stage.depends_on
            }
        )
        for stage in flow.stages
    ]
    shared = Counter(stage.limit for stage in flow.stages if stage.limit is not None)
    yield "no records", not flow.records
    yield "no failure", bool(flow.records) and not any(right.letters for right in rights)
    yield "dead and written", any(right.certain and right.lines for right in rights)
    yield "up to timing", any(right.letters.keys() - right.certain for right in rights)
    yield "a failure beside a drop", any(node.dead and node.drops for node in nodes)
    yield "children", any(len(node.children) > 1 for node in nodes)
    yield "children of children", any(len(node.place) > 2 for node in nodes)
    yield "two generators side by side", any(len(node.fans) > 1 for node in nodes)
    yield "a generator beside another stage", any(node.fans and node.ran - node.fans for node in nodes)
    yield "a stage below a generator and one beside it", max(levels) > 1
    yield "a generator that breaks", any(node.broken for node in nodes)
    yield "a plain generator", any(stage.fans_out and stage.plain for stage, _ in fates)
    yield "a plain batch", any(stage.batch and stage.plain for stage, _ in fates)
    yield "a batch that is poisoned", any(stage.batch and fate.bad == FOREVER for stage, fate in fates)
    yield "a batch that recovers", any(stage.batch and 0 < fate.bad < FOREVER for stage, fate in fates)
    yield "an attempt that succeeds", any(0 < fate.bad < stage.attempts for stage, fate in fates)
    yield "a timeout", any(fate.hangs and fate.bad for _, fate in fates)
    yield "all or nothing", flow.on_partial == "drop" and any(right.certain for right in rights)
    yield "permits", any(stage.limit is not None for stage, _ in fates)
    yield "permits for two stages", max(shared.values(), default=0) > 1
    yield "unwanted", any(not fate.wanted for _, fate in fates)
    yield from ((outcome, outcome in notes) for outcome in ("skipped", "degraded"))
    yield from ((way, way in ways) for way in ("done", "drop"))


def test_flows_are_as_various_as_they_should_be() -> None:
    seen: Counter[str] = Counter()
    for flow in flows():
        for feature, there in features(flow):
            seen[feature] += there
    assert min(seen.values()) >= 8, {feature: count for feature, count in seen.items() if count < 8}
    assert all(random_flow(seed) == flow for seed, flow in enumerate(flows()))


def flow_of(*stages: FlowStage, **fates: Any) -> Flow:
    """A flow of one record, whose fates are given: by stage, and by stage and number for the children of ``f``."""

    class Given(Flow):
        def fate(self, name: str, place: Place) -> Fate:
            given: Fate = fates.get(f"{name}{place[-1]}" if len(place) > 1 else name, Fate())
            return given

    return Given(stages, (7,))


CHAIN = (
    FlowStage("f", fans_out=True),
    FlowStage("beside"),
    FlowStage("child", ("f",)),
    FlowStage("both", ("child", "beside")),
)


def test_the_expected_outcome_of_children() -> None:
    """A child that is dropped and one that is ``done``; the third goes all the way and sees what is beside it."""
    right = expected(flow_of(*CHAIN, f=Fate(children=("drop", "done", "value"))))[7]
    assert list(right.lines) == [((7, 1), ("f",)), ((7, 2), ("f",))]
    one, other = right.lines.values()
    beside = ["beside", [7], []]
    assert one == {
        "id": 7,
        "f": ["f", [7, 1], []],
        "beside": beside,
        "_stageflow": {"f": {"outcome": "done", "error": None, "attempts": None}},
    }
    child = ["child", [7, 2], [["f", [7, 2], []]]]
    assert other["both"] == ["both", [7, 2], [beside, child]]
    assert (right.letters, right.certain) == ({}, set())


def test_the_expected_outcome_where_something_fails() -> None:
    two = Fate(children=("value", "value"))
    # A dead child leaves its sibling alone.
    right = expected(flow_of(*CHAIN, f=two, child0=Fate(bad=FOREVER)))[7]
    assert list(right.lines) == [((7, 1), ("f",))]
    assert right.certain == {((7, 0), ("f",))} == right.letters.keys()
    # A generator that breaks is dead, and its children are written.
    right = expected(flow_of(*CHAIN, f=replace(two, breaks=True)))[7]
    assert len(right.lines) == 2
    assert right.letters == {((7,), ()): {"f"}}
    # A failure beside it ends them all, and whether one of them fails before is up to timing.
    right = expected(flow_of(*CHAIN, f=two, beside=Fate(bad=FOREVER), child0=Fate(bad=FOREVER)))[7]
    assert not right.lines
    assert right.letters == {((7,), ()): {"beside"}, ((7, 0), ("f",)): {"child"}}
    assert right.certain == {((7,), ())}
    # So is whether it is a drop or a failure that comes first.
    right = expected(flow_of(FlowStage("a"), FlowStage("b"), a=Fate(bad=FOREVER), b=Fate(way="drop")))[7]
    assert (right.lines, right.certain) == ({}, set())
    assert right.letters == {((7,), ()): {"a"}}


def test_the_expected_outcome_of_a_stand_in() -> None:
    """What stands in for a generator's children is its only child."""
    skipping = (replace(CHAIN[0], on_error="skip", attempts=2), *CHAIN[1:])
    right = expected(flow_of(*skipping, f=Fate(bad=2, children=("value", "value"))))[7]
    ((key, line),) = right.lines.items()
    assert key == ((7, 0), ("f",))
    assert line["f"] is None
    assert line["child"] == ["child", [7, 0], [None]]
    assert line["_stageflow"] == {"f": {"outcome": "skipped", "error": "Planned: f [7]", "attempts": 2}}


def test_a_failing_flow_is_cut_down() -> None:
    def breaks_beside_a_batch(flow: Flow) -> bool:
        broken = any(node.broken for right in expected(flow).values() for node in right.tree.family())
        return broken and any(stage.batch for stage in flow.stages)

    flow = next(flow for flow in flows() if breaks_beside_a_batch(flow) and len(flow.stages) > 4)
    small = smallest(flow, breaks_beside_a_batch)
    assert (len(small.stages), len(small.records), small.max_open_records) == (2, 1, None)
    assert {trouble for stage in small.stages for trouble in stage.troubles} == {"breaks"}
    assert {(stage.max_in_flight, stage.depends_on, stage.attempts) for stage in small.stages} == {(1, (), 1)}
