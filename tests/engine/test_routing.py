"""Which stage is next: joins, ways out, and one level per fan-out. The router moves nothing, so no loop is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stageflow import Pipeline
from stageflow.engine.routing import Router
from stageflow.item import Item


class Routed:
    """A job and one record of it: what is ready, in the names of stages and the paths of items."""

    def __init__(self, edges: dict[str, list[str]], fan_outs: tuple[str, ...] = ()) -> None:
        pipeline = Pipeline("routes")
        for name, needs in edges.items():
            pipeline.add_stage(name, _yields if name in fan_outs else _returns, depends_on=needs)
        self.settled: list[Item] = []
        plan = pipeline.plan()
        self.router = Router(plan, self.settled.append)
        self.record = Item(0, {}, len(plan.first))

    def finish(self, stage: str, item: Item | None = None, value: Any = None) -> list[tuple[str, tuple[int, ...]]]:
        """``stage`` has returned for the item: who is ready now."""
        item = item or self.record
        item.results[stage] = value
        ready = self.router.next(item, stage)
        self.router.leave(item)
        return [(name, each.path) for each, name in ready]

    def spread(
        self, stage: str, value: Any, item: Item | None = None
    ) -> tuple[Item, list[tuple[str, tuple[int, ...]]]]:
        """``stage`` has yielded a child."""
        child = self.router.child(item or self.record, stage, value)
        ready = self.router.next(child, stage)
        self.router.leave(child)
        return child, [(name, each.path) for each, name in ready]

    def end(self, item: Item | None = None) -> None:
        """A visit has ended, without a result for those below."""
        self.router.leave(item or self.record)


def _returns(record: Any) -> None: ...


def _yields(record: Any) -> Iterator[None]:
    yield


def test_a_line_settles_behind_its_last_stage() -> None:
    routed = Routed({"a": [], "b": ["a"]})
    assert routed.finish("a") == [("b", ())]
    assert routed.settled == []
    assert routed.finish("b") == []
    assert routed.settled == [routed.record]


def test_a_join_is_ready_behind_the_last_of_its_dependencies_in_any_order() -> None:
    for order in (["b", "c"], ["c", "b"]):
        routed = Routed({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]})
        assert routed.finish("a") == [("b", ()), ("c", ())]
        assert routed.finish(order[0]) == []
        assert routed.finish(order[1]) == [("d", ())]
        assert routed.finish("d") == []
        assert routed.settled == [routed.record]


def test_what_done_cuts_off_is_not_run_and_what_stands_beside_it_is() -> None:
    routed = Routed({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["c"]})
    routed.finish("a")
    routed.router.cut(routed.record, "b")
    assert routed.finish("b") == []
    assert routed.finish("c") == [("e", ())]
    assert routed.finish("e") == []
    assert routed.settled == [routed.record]


def test_a_fan_out_makes_a_level_and_the_record_settles_with_its_last_child() -> None:
    routed = Routed({"a": [], "b": ["a"]}, fan_outs=("a",))
    first, ready = routed.spread("a", "x")
    assert ready == [("b", (0,))]
    second, ready = routed.spread("a", "y")
    assert ready == [("b", (1,))]
    routed.end()  # the generator is at its end
    assert (first.results, second.results) == ({"a": "x"}, {"a": "y"})
    routed.finish("b", first)
    assert routed.settled == []
    routed.finish("b", second)
    assert routed.settled == [routed.record]


def test_a_fan_out_of_nothing_settles_at_once() -> None:
    routed = Routed({"a": [], "b": ["a"]}, fan_outs=("a",))
    routed.end()
    assert routed.settled == [routed.record]


def test_children_that_all_ended_before_the_generator_do_not_settle_the_record() -> None:
    routed = Routed({"a": [], "b": ["a"]}, fan_outs=("a",))
    child, _ = routed.spread("a", "x")
    routed.finish("b", child)
    assert routed.settled == []
    routed.end()
    assert routed.settled == [routed.record]


def test_a_stage_of_a_fan_out_and_its_neighbour_runs_once_per_child_whichever_comes_first() -> None:
    edges = {"a": [], "beside": [], "both": ["a", "beside"]}
    routed = Routed(edges, fan_outs=("a",))
    assert routed.finish("beside", value="B") == []
    children = []
    for number in range(2):
        child, ready = routed.spread("a", number)
        assert ready == [("both", (number,))]
        assert child.results == {"a": number, "beside": "B"}
        children.append(child)
    routed.end()
    assert [routed.finish("both", child) for child in children] == [[], []]
    assert routed.settled == [routed.record]

    routed = Routed(edges, fan_outs=("a",))
    early = [routed.spread("a", number) for number in range(2)]
    assert [ready for _, ready in early] == [[], []]
    assert routed.finish("beside", value="B") == [("both", (0,)), ("both", (1,))]
    late, ready = routed.spread("a", 2)
    assert ready == [("both", (2,))]
    routed.end()
    for child in (*(child for child, _ in early), late):
        assert child.results["beside"] == "B"
        routed.finish("both", child)
    assert routed.settled == [routed.record]


def test_a_fan_out_below_a_fan_out_makes_a_second_level() -> None:
    routed = Routed({"a": [], "b": ["a"], "c": ["b"], "all": ["a", "b"]}, fan_outs=("a", "b"))
    child, ready = routed.spread("a", "x")
    assert ready == [("b", (0,))]
    grandchild, ready = routed.spread("b", "y", child)
    assert ready == [("c", (0, 0)), ("all", (0, 0))]
    other, ready = routed.spread("b", "z", child)
    assert (other.path, ready) == ((0, 1), [("c", (0, 1)), ("all", (0, 1))])
    assert [each.path for each in other.lineage()] == [(0, 1), (0,), ()]
    routed.end(child)
    routed.end()
    for each in (grandchild, other):
        routed.finish("c", each)
        assert routed.settled == []
        routed.finish("all", each)
    assert routed.settled == [routed.record]


def test_two_fan_outs_of_one_record_count_their_children_by_themselves() -> None:
    routed = Routed({"a": [], "b": [], "below_a": ["a"], "below_b": ["b"]}, fan_outs=("a", "b"))
    paths = [routed.spread(stage, None)[0].path for stage in ("a", "b", "a", "b", "b")]
    assert paths == [(0,), (0,), (1,), (1,), (2,)]


def test_a_child_of_a_record_that_was_given_up_goes_nowhere() -> None:
    routed = Routed({"a": [], "b": ["a"], "c": ["a", "beside"], "beside": []}, fan_outs=("a",))
    before, _ = routed.spread("a", "x")
    routed.record.close()
    assert before.closed
    after = routed.router.child(routed.record, "a", "y")
    assert after.closed
    assert routed.router.next(after, "a") == []


def test_many_children_take_time_in_proportion_to_their_number() -> None:
    """The place of a child is counted, not looked up among its siblings: 50,000 take no minute."""
    routed = Routed({"a": [], "b": ["a"]}, fan_outs=("a",))
    children = [routed.spread("a", None)[0] for _ in range(50_000)]
    assert children[-1].path == (49_999,)


def test_a_join_of_a_stage_and_of_what_comes_after_it_is_ready_behind_the_last() -> None:
    edges = {"a": [], "b": ["a"], "c": ["a"], "d": ["a", "b", "c"], "e": ["a", "d"], "f": ["b", "c", "d", "e"]}
    for order in (["b", "c"], ["c", "b"]):
        routed = Routed(edges)
        assert routed.finish("a") == [("b", ()), ("c", ())]
        assert [routed.finish(stage) for stage in (*order, "d", "e")] == [[], [("d", ())], [("e", ())], [("f", ())]]
        assert routed.finish("f") == []
        assert routed.settled == [routed.record]


def test_many_are_routed_as_one_is() -> None:
    edges = {"a": [], "b": ["a"], "c": ["a"], "g": ["a"], "d": ["a", "b", "c", "g"]}
    for last, before in (("b", ["c", "g"]), ("g", ["b", "c"])):
        routed = Routed(edges)
        items = [Item(index, {}, 2) for index in range(4)]
        for item, there in zip(items, [before, before[:1], before, []], strict=True):
            item.results.update(dict.fromkeys(["a", last, *there]))
        items[2].cut = frozenset({"d"})
        assert routed.router.next_of_all(items, last) == [("d", [items[0]])]
        assert [item.live for item in items] == [2, 1, 1, 1]
    assert routed.router.next_of_all(items[:2], "a") == [("b", items[:2]), ("c", items[:2]), ("g", items[:2])]
