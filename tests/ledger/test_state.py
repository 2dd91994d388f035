"""What the lines of a ledger add up to."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.commit import BLANK, Commit, InputMark, Totals
from stageflow.ledger.state import DEAD, DEAD_IN_PART, DROPPED, OPEN, WRITTEN, State


def header(epoch: int = 1) -> dict[str, Any]:
    return {"t": "h", "v": 1, "run": "r", "epoch": epoch, "dead": None, "input": None, "job": {}}


def final(state: State, **fields: Any) -> dict[str, Any]:
    ends = {"o": state.results_end, "x": state.letters_end, "z": state.results_end, "y": state.letters_end}
    return {"t": "f", "rewritten": False, "ended": True, "n": [0, 0, 0], **ends, **fields}


def settle(state: State, commit: Commit) -> None:
    start = state.results_end
    end = start + sum(map(len, commit.lines))
    letters = state.letters_end, state.letters_end + sum(map(len, commit.letters)), 0
    state.apply({**state.commit_fields(commit, (start, end, 0), letters), "p": 0})


def written(*ordinals: int) -> Commit:
    return Commit(ordinals=list(ordinals), lines=[b"12345678\n"] * len(ordinals))


def died(ordinal: int, lines: int = 0, letters: int = 1) -> Commit:
    return Commit(
        ordinals=[ordinal],
        lines=[b"12345678\n"] * lines,
        line_counts={ordinal: lines},
        letters=[b"dead\n"] * letters,
        letter_counts={ordinal: letters},
    )


def begun() -> State:
    state = State()
    state.apply(header())
    return state


def test_kinds_and_totals() -> None:
    state = begun()
    settle(state, written(2, 0))
    settle(state, Commit(ordinals=[1], line_counts={1: 0}))
    settle(state, died(3))
    settle(state, died(4, lines=2))
    state.apply({"t": "i", "n": 7, "b": 70, "sha": "x", "w": [5], "p": 0})
    assert list(state.done[:7]) == [WRITTEN, DROPPED, WRITTEN, DEAD, DEAD_IN_PART, BLANK, OPEN]
    assert state.totals == Totals(written=2, dropped=1, dead=2)
    assert [state.is_done(ordinal) for ordinal in (0, 5, 6, 10**6)] == [True, True, False, False]
    assert list(state.letters) == [3, 4]


def test_a_retry_settles_a_dead_record_once_more() -> None:
    state = begun()
    settle(state, died(0, letters=2))
    settle(state, died(1, lines=1))
    settle(state, died(2, lines=1))
    settle(state, died(3))
    state.apply({"t": "r", "n": [[0, 4]], "p": 0})
    settle(state, Commit(ordinals=[0], lines=[b"x\n"], resolved=[0, 1]))
    settle(state, Commit(ordinals=[1], line_counts={1: 0}, resolved=[2]))
    settle(state, Commit(ordinals=[2], line_counts={2: 0}, resolved=[3], replaced=[2]))
    assert list(state.pending_retries()) == [4]
    assert list(state.open_letters()) == [4]
    assert list(state.done[:4]) == [WRITTEN, WRITTEN, DROPPED, DEAD]
    assert state.totals == Totals(written=2, dropped=1, dead=1)
    settle(state, Commit(ordinals=[3], line_counts={3: 0}, letters=[b"y\n"], letter_counts={3: 1}, resolved=[4]))
    assert list(state.open_letters()) == [5]
    assert list(state.pending_retries()) == []


def test_a_new_epoch_numbers_the_letters_that_are_left_anew() -> None:
    state = begun()
    for ordinal in range(3):
        settle(state, died(ordinal))
    state.apply({"t": "r", "n": [[0, 2]], "p": 0})
    settle(state, Commit(ordinals=[1], lines=[b"x\n"], resolved=[1]))
    state.apply(final(state, y=10))
    assert state.final is not None
    state.apply(header(2))
    assert state.final is None
    assert list(state.letters) == [0, 2]
    assert list(state.open_letters()) == [0, 1]
    assert list(state.pending_retries()) == []
    assert state.letters_end == 10


def test_the_order_is_known_as_lines_come() -> None:
    state = begun()
    settle(state, written(0, 1))
    settle(state, written(3))
    assert state.ascending
    settle(state, written(2))
    assert not state.ascending
    state.apply(final(state, rewritten=True))
    state.apply(header(2))
    assert state.ascending
    settle(state, written(5))
    assert state.ascending
    settle(state, written(4))
    assert not state.ascending


def test_lines_that_were_replaced_are_in_the_file_until_it_is_rewritten() -> None:
    state = begun()
    settle(state, died(0, lines=2))
    assert not state.holds_replaced
    state.apply({"t": "r", "n": [[0, 0]], "p": 0})
    settle(state, Commit(ordinals=[0], lines=[b"x\n"], resolved=[0], replaced=[0]))
    assert state.holds_replaced
    state.apply(final(state, z=2, rewritten=True))
    state.apply(header(2))
    assert not state.holds_replaced
    assert state.results_end == 2


def test_a_run_begins_to_read_at_the_last_mark_before_which_all_has_settled() -> None:
    state = begun()
    assert state.start() is None
    for lines in (2, 4, 6):
        state.apply({"t": "i", "n": lines, "b": 10 * lines, "sha": "x", "p": 0})
    assert state.start() is None
    settle(state, written(0, 1, 3, 4))
    assert state.start() == InputMark(2, 20, "x")
    settle(state, written(2))
    assert state.start() == InputMark(4, 40, "x")
    settle(state, written(5))
    assert state.start() == InputMark(6, 60, "x")


def test_only_a_marker_that_nothing_follows_is_a_clean_end() -> None:
    state = begun()
    marker = {"t": "s", "o": 0, "x": 0, "n": [0, 0, 0], "at": "now", "rss": 1, "p": 0}
    state.apply(marker)
    assert not state.clean
    state.apply({**marker, "clean": True})
    assert state.clean
    settle(state, written(0))
    assert not state.clean


@given(st.permutations(range(30)), st.integers(1, 7))
def test_any_grouping_adds_up_to_the_same(ordinals: list[int], size: int) -> None:
    one, many = begun(), begun()
    settle(one, written(*ordinals))
    for at in range(0, len(ordinals), size):
        settle(many, written(*ordinals[at : at + size]))
    assert one.done[:30] == many.done[:30]
    assert one.totals == many.totals
    assert one.ascending == many.ascending == (list(ordinals) == sorted(ordinals))


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.sampled_from(["in order", "shuffled", "shuffled but for their ends"]),
)
def test_many_in_a_row_come_to_the_same_as_one_by_one(sizes: list[int], rng: random.Random, order: str) -> None:
    groups, at = [], 0
    for size in sizes:
        groups.append(list(range(at, at + size)))
        at += size + rng.randrange(3)
    if order == "shuffled":
        rng.shuffle(groups)
        for group in groups[::2]:
            rng.shuffle(group)
    elif order == "shuffled but for their ends":
        for group in groups:
            group[1:-1] = rng.sample(group[1:-1], max(0, len(group) - 2))
    together, single = begun(), begun()
    for group in groups:
        assert together.may_settle(group)
        settle(together, written(*group))
        assert not together.may_settle(group)
        for ordinal in group:
            settle(single, written(ordinal))
    end = max(map(max, groups)) + 1
    assert together.done[:end] == single.done[:end]
    assert not together.done[end:].strip(bytes([OPEN]))
    assert together.totals == single.totals
    assert together.ascending == single.ascending


@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize("ordinals", [list(range(40)), list(range(39, -1, -1))], ids=["in a row", "scattered"])
def test_a_record_that_has_settled_may_not_do_so_again(place: int, ordinals: list[int]) -> None:
    state = begun()
    settle(state, written(place))
    assert not state.may_settle(ordinals)
    assert not state.may_settle([place])
    assert state.may_settle([ordinal for ordinal in ordinals if ordinal != place])


@pytest.mark.parametrize("ordinals", [list(range(40)), list(range(39, -1, -1))], ids=["in a row", "scattered"])
def test_a_dead_record_may_settle_again_while_it_is_tried_again(ordinals: list[int]) -> None:
    state = begun()
    settle(state, died(7))
    settle(state, died(8, lines=1))
    assert not state.may_settle(ordinals)
    state.apply({"t": "r", "n": [[0, 1]]})
    assert state.may_settle(ordinals)
    settle(state, written(9))
    assert not state.may_settle(ordinals)
