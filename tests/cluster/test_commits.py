"""Commits: decided once, published whatever ends, and read back with few calls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_store import Killed, SteppedStore, Turns, killed_before

from stageflow.cluster.commits import Commits, dead_name, part_name
from stageflow.cluster.messages import ShardCommit
from stageflow.errors import StorageError

OUT, DEAD = b'{"x":1}\n{"x":2}\n', b'{"index":2}\n'
FOUND = ShardCommit(17, 2, lines=5, written=2, dropped=2, dead=1, out_lines=2, dead_lines=1)
PUBLISHED = {"part-000017.jsonl": OUT, "dead/part-000017.jsonl": DEAD}


def results(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if not name.startswith("_stageflow/")}


def attempts(objects: dict[str, bytes]) -> list[str]:
    return [name for name in objects if name.startswith("_stageflow/attempts/")]


def test_a_commit_is_published_and_read_back() -> None:
    store = SteppedStore({})
    assert Commits(store).commit(FOUND, OUT, DEAD) == FOUND
    assert results(store.objects) == PUBLISHED
    assert sorted(store.objects) == ["_stageflow/commits/000017.json", *sorted(PUBLISHED)]
    assert Commits(store).all() == {17: FOUND}


def test_nothing_is_no_object() -> None:
    store = SteppedStore({})
    gone = ShardCommit(0, 1, lines=2, dropped=2)
    given_up = ShardCommit(1, 4, failed=True)
    assert [Commits(store).commit(commit, b"", b"") for commit in (gone, given_up)] == [gone, given_up]
    assert results(store.objects) == {}
    assert Commits(store).all() == {0: gone, 1: given_up}


def test_who_comes_later_leaves_nothing_and_is_told_of_the_winner() -> None:
    store = SteppedStore({})
    Commits(store).commit(FOUND, OUT, DEAD)
    later = replace(FOUND, attempt=3, written=3, dropped=1, out_lines=3)
    assert Commits(store).commit(later, b"1\n2\n3\n", DEAD) == FOUND
    assert results(store.objects) == PUBLISHED
    assert attempts(store.objects) == []


def test_two_attempts_of_one_number_are_two() -> None:
    """Two runs over one output count alike: neither writes over what the other is about to publish."""
    store = SteppedStore({})
    with pytest.raises(Killed):
        Commits(SteppedStore(store.objects, killed_before(3))).commit(FOUND, OUT, DEAD)
    assert Commits(store).commit(FOUND, b"3\n4\n", b"5\n") == FOUND
    assert results(store.objects) == PUBLISHED
    assert attempts(store.objects) == []


def test_a_record_whose_creation_was_answered_with_no_is_known_again() -> None:
    store = SteppedStore({})

    def create(name: str, data: bytes) -> bool:
        store.objects[name] = data  # the first answer was lost, and the second try is told that the name is taken
        return False

    store.create = create  # type: ignore[method-assign]
    assert Commits(store).commit(FOUND, OUT, DEAD) == FOUND
    assert results(store.objects) == PUBLISHED


def test_a_service_that_refuses_all_of_several_is_asked_again() -> None:
    store = SteppedStore({})
    create, refused = store.create, iter([True])
    store.create = lambda name, data: not next(refused, False) and create(name, data)  # type: ignore[method-assign]
    assert Commits(store).commit(FOUND, OUT, DEAD) == FOUND
    assert results(store.objects) == PUBLISHED


# Ends


def killed_at_each_step(act: Callable[[SteppedStore], object]) -> list[dict[str, bytes]]:
    """What each end leaves, and in the end what it comes to when there is none."""
    left: list[dict[str, bytes]] = []
    for step in itertools.count():
        objects: dict[str, bytes] = {}
        left.append(objects)
        try:
            act(SteppedStore(objects, killed_before(step)))
        except Killed:
            continue
        return left


def test_whatever_step_is_the_last_a_repair_leaves_all_or_nothing() -> None:
    left = killed_at_each_step(lambda store: Commits(store).commit(FOUND, OUT, DEAD))
    assert len(left) == 8  # put, put, create, and twice publish with its deletion
    for step, objects in enumerate(left):
        decided = step >= 3
        assert Commits(SteppedStore(objects)).repair() == ({17: FOUND} if decided else {})
        assert results(objects) == (PUBLISHED if decided else {})
        assert len(attempts(objects)) == (0 if decided else step)
        # Then somebody else does it.
        later = replace(FOUND, attempt=3)
        winner = Commits(SteppedStore(objects)).commit(later, b"3\n4\n", b"5\n")
        assert winner == (FOUND if decided else later)
        Commits(SteppedStore(objects)).repair()
        assert results(objects) == (PUBLISHED if decided else {part_name(17): b"3\n4\n", dead_name(17): b"5\n"})
        assert attempts(objects) == []


def test_a_repair_may_be_ended_and_done_again() -> None:
    def losers_and_a_repair(store: SteppedStore) -> None:
        quiet = SteppedStore(store.objects)
        for steps in (1, 2, 5):
            with pytest.raises(Killed):
                Commits(SteppedStore(store.objects, killed_before(steps))).commit(FOUND, OUT, DEAD)
        with pytest.raises(Killed):
            Commits(SteppedStore(store.objects, killed_before(2))).commit(replace(FOUND, number=18), OUT, DEAD)
        assert len(attempts(quiet.objects)) == 6
        Commits(store).repair()

    left = killed_at_each_step(losers_and_a_repair)
    assert len(left) > 8
    for objects in left:
        Commits(SteppedStore(objects)).repair()
        assert results(objects) == PUBLISHED
        # Whoever made these may still be about to commit them.
        assert [name.partition(".")[0] for name in attempts(objects)] == ["_stageflow/attempts/000018"] * 2


WRITERS = 4
STEPS = st.tuples(st.integers(0, WRITERS), st.booleans())


@settings(max_examples=300, deadline=None)
@given(shards=st.lists(st.integers(0, 1), min_size=WRITERS, max_size=WRITERS), steps=st.lists(STEPS, max_size=60))
def test_writers_and_a_repair_in_any_order_come_to_one_result(shards: list[int], steps: list[tuple[int, bool]]) -> None:
    objects: dict[str, bytes] = {}
    told: dict[int, set[ShardCommit]] = {0: set(), 1: set()}
    turns = Turns()

    def found(writer: int) -> ShardCommit:
        return ShardCommit(shards[writer], writer + 1, lines=2, written=1, dead=1, out_lines=1, dead_lines=1)

    def writing(writer: int) -> Callable[[Callable[[], None]], None]:
        def body(before: Callable[[], None]) -> None:
            lines = b"out %d\n" % writer, b"dead %d\n" % writer
            told[shards[writer]].add(Commits(SteppedStore(objects, before)).commit(found(writer), *lines))

        return body

    for writer in range(WRITERS):
        turns.start(writer, writing(writer))
    turns.start(WRITERS, lambda before: Commits(SteppedStore(objects, before)).repair())
    for number, kill in steps:
        turns.step(number, kill=kill)
    turns.finish()
    assert turns.errors == []
    commits = Commits(SteppedStore(objects)).repair()
    expected = {}
    for number, commit in commits.items():
        assert commit == found(commit.attempt - 1)
        assert told[number] <= {commit}
        expected[part_name(number)] = b"out %d\n" % (commit.attempt - 1)
        expected[dead_name(number)] = b"dead %d\n" % (commit.attempt - 1)
    assert {number for number, winners in told.items() if winners} <= commits.keys()
    assert results(objects) == expected
    assert not any(name.startswith(f"_stageflow/attempts/{number:06}") for name in objects for number in commits)


# Many


def test_many_commits_are_read_with_few_calls_from_a_snapshot() -> None:
    store = SteppedStore({})
    commits = Commits(store)
    for number in range(200):
        commits.commit(ShardCommit(number, 1, lines=number, written=number), b"", b"")
    commits.compact(commits.all())
    for number in range(200, 203):
        commits.commit(ShardCommit(number, 1, failed=True), b"", b"")
    store.reads = 0
    found = Commits(store).all()
    assert store.reads == 4
    assert found == {number: ShardCommit(number, 1, lines=number, written=number) for number in range(200)} | {
        number: ShardCommit(number, 1, failed=True) for number in range(200, 203)
    }
    assert list(found) == list(range(203))
    assert Commits(store).repair() == found


def test_a_snapshot_says_nothing_of_what_is_not_committed() -> None:
    store = SteppedStore({})
    Commits(store).compact({17: FOUND})
    assert Commits(store).all() == {}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"stageflow": "commits", "version": 2, "rows": []}', b"\xff", b"{}"])
def test_a_snapshot_that_can_not_be_read_is_none(text: bytes) -> None:
    store = SteppedStore({})
    Commits(store).commit(FOUND, OUT, DEAD)
    store.put("_stageflow/commits-snapshot.json", text)
    assert Commits(store).all() == {17: FOUND}


# Damage


def damaged(**changes: Any) -> bytes:
    store = SteppedStore({})
    Commits(store).commit(FOUND, OUT, DEAD)
    fields = json.loads(store.objects["_stageflow/commits/000017.json"])
    return json.dumps({name: value for name, value in (fields | changes).items() if value is not None}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        damaged()[:-1],
        damaged(version=2),
        damaged(drawn="../../x"),
        damaged(drawn=None),
        damaged(number=18),
        damaged(written=-1),
        damaged(written="2"),
        damaged(written=True),
        damaged(failed=0),
        damaged(dead=None),
        damaged(more=1),
    ],
)
def test_a_record_that_is_none_is_refused_by_its_name(data: bytes) -> None:
    store = SteppedStore({"_stageflow/commits/000017.json": data})
    for ask in (Commits(store).all, lambda: Commits(store).commit(FOUND, OUT, DEAD)):
        with pytest.raises(StorageError) as refused:
            ask()
        assert str(refused.value) == (
            "memory: _stageflow/commits/000017.json is no commit record of this version of stageflow, or it is damaged"
        )


def test_an_undamaged_record_is_one() -> None:
    assert Commits(SteppedStore({"_stageflow/commits/000017.json": damaged()})).all() == {17: FOUND}


def test_what_is_no_record_and_no_attempt_is_left_alone() -> None:
    foreign = {"_stageflow/commits/notes.txt": b"", "_stageflow/attempts/mine": b"", "README": b""}
    store = SteppedStore(dict(foreign))
    assert Commits(store).repair() == {}
    assert store.objects == foreign


def test_results_that_are_gone_are_told() -> None:
    store = SteppedStore({})
    Commits(store).commit(FOUND, OUT, DEAD)
    store.delete("part-000017.jsonl")
    with pytest.raises(StorageError, match=r"has a commit of shard 17, and not its part-000017\.jsonl"):
        Commits(store).commit(FOUND, OUT, DEAD)


def test_what_a_store_says_is_told_in_one_line() -> None:
    def before() -> None:
        raise OSError(28, "No space left on device")

    for ask in (
        lambda commits: commits.all(),
        lambda commits: commits.repair(),
        lambda commits: commits.compact({}),
        lambda commits: commits.commit(FOUND, OUT, DEAD),
    ):
        with pytest.raises(StorageError, match="cannot use memory: No space left on device"):
            ask(Commits(SteppedStore({}, before)))
