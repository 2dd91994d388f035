"""How a limit is divided: never more than the whole, evenly among who could use it, in turns where it is small."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stageflow.replicas.shares import Shares

ASKING, LIFETIME = 0.25, 1.0
NEARLY = 1e-6


class Replicas:
    """Some that ask every quarter of a second, each at a moment of its own.

    Attributes:
        demand: Of each, the part of the whole limit that it could use; infinity: any.
        held: What each holds.
        had: Of each, the integral of what it held, in seconds of the whole limit.
    """

    def __init__(
        self, demand: list[float], *, smallest: float = 0.0, turn: float = 0.0, seed: int = 0, jitter: float = 0.0
    ) -> None:
        self.shares = Shares(lifetime=LIFETIME, smallest=smallest, turn=turn)
        self.demand = demand
        self.held = [0.0] * len(demand)
        self.had = [0.0] * len(demand)
        self.now = 0.0
        self._last = [0.0] * len(demand)
        self._chance, self._jitter = Random(seed), jitter
        self._next = [self._chance.uniform(0, ASKING) for _ in demand]
        self.lost: set[int] = set()
        for who in range(len(demand)):
            self.shares.join(str(who), 0.0)

    def join(self, demand: float) -> None:
        self.shares.join(str(len(self.demand)), self.now)
        self.demand.append(demand)
        self.held.append(0.0)
        self.had.append(0.0)
        self._last.append(self.now)
        self._next.append(self.now + ASKING / 2)

    def run(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        end = self.now + seconds
        while True:
            alive = [who for who in range(len(self.demand)) if who not in self.lost]
            who = min(alive, key=lambda who: self._next[who])
            if self._next[who] > end:
                break
            self.now = self._next[who]
            use, self._last[who] = (self.now - self._last[who]) * self.held[who], self.now
            self.had[who] += use
            used = min(self.held[who], self.demand[who])
            self.held[who] = self.shares.ask(str(who), self.now, used=used, waiting=self.demand[who] > self.held[who])
            self._next[who] += ASKING * self._chance.uniform(1 - self._jitter, 1)
            assert self.shares.outstanding(self.now) <= 1 + NEARLY
            check()
        self.now = end


@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_hungry_have_even_parts_of_all_of_it_after_two_askings(count: int, seed: int) -> None:
    replicas = Replicas([inf] * count, seed=seed)
    replicas.run(2 * ASKING)
    assert replicas.held == pytest.approx([1 / count] * count)


@given(count=st.integers(1, 5), seed=st.integers(0, 99))
def test_who_joins_has_an_even_part_within_three_askings(count: int, seed: int) -> None:
    replicas = Replicas([inf] * count, seed=seed)
    replicas.run(3.0)
    replicas.join(inf)
    replicas.run(3 * ASKING)
    assert replicas.held == pytest.approx([1 / (count + 1)] * (count + 1))


@given(count=st.integers(2, 6), idle=st.integers(1, 5), seed=st.integers(0, 99))
def test_who_becomes_idle_loses_its_share_to_the_hungry_and_has_it_back_when_it_is_hungry(
    count: int, idle: int, seed: int
) -> None:
    idle = min(idle, count - 1)
    replicas = Replicas([inf] * count, seed=seed)
    replicas.run(3.0)
    replicas.demand[:idle] = [0.0] * idle
    replicas.run(3.0)
    assert sum(replicas.held[idle:]) >= 0.95
    assert replicas.held[idle:] == pytest.approx([replicas.held[-1]] * (count - idle))
    replicas.demand[:idle] = [inf] * idle
    replicas.run(3 * ASKING)
    assert replicas.held == pytest.approx([1 / count] * count)


def test_who_is_content_keeps_a_little_more_than_it_uses() -> None:
    replicas = Replicas([0.1, 0.2, inf])
    replicas.run(5.0)
    assert replicas.held == pytest.approx([0.12, 0.24, 0.64])


def test_who_uses_much_without_waiting_is_cut_to_an_even_part_too() -> None:
    """It was alone and content with 70 %. Two hungry ones join: it has a third, and waits from now on."""
    replicas = Replicas([0.7])
    replicas.run(2.0)
    assert replicas.held == pytest.approx([0.84])
    for _ in range(2):
        replicas.join(inf)
    replicas.run(4 * ASKING)
    assert replicas.held == pytest.approx([1 / 3] * 3)


@given(count=st.integers(2, 6), smallest=st.sampled_from([0.0, 0.4, 1.0]), seed=st.integers(0, 99))
def test_the_share_of_a_lost_one_comes_back_when_it_has_expired(count: int, smallest: float, seed: int) -> None:
    replicas = Replicas([inf] * count, smallest=smallest, seed=seed)
    replicas.run(3.0)
    lost = max(range(count), key=lambda who: replicas.held[who])
    share = replicas.held[lost]
    replicas.lost.add(lost)

    def check() -> None:
        if replicas.now <= 3.0 + LIFETIME - ASKING:
            assert replicas.shares.outstanding(replicas.now) <= 1 + NEARLY
            assert sum(held for who, held in enumerate(replicas.held) if who != lost) <= 1 - share + NEARLY

    replicas.run(LIFETIME + 2 * ASKING, check)
    assert sum(held for who, held in enumerate(replicas.held) if who != lost) == pytest.approx(1.0)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 6), smallest=st.floats(0.17, 1.0), turn=st.floats(0, 20), seed=st.integers(0, 99))
def test_where_even_parts_are_too_small_each_has_its_turn(count: int, smallest: float, turn: float, seed: int) -> None:
    replicas = Replicas([inf] * count, smallest=smallest, turn=turn, seed=seed, jitter=0.9)

    def check() -> None:
        assert all(not held or held >= smallest - NEARLY for held in replicas.held)

    round_trip = count * (max(turn, 10 * LIFETIME) + 2 * ASKING)
    replicas.run(6 * round_trip, check)
    assert sum(replicas.had) >= 0.95 * 6 * round_trip, "it lies idle between turns"
    assert min(replicas.had) >= 0.7 * max(replicas.had), replicas.had
    before = list(replicas.had)
    replicas.run(2 * round_trip, check)
    assert all(now > then for now, then in zip(replicas.had, before, strict=True)), "one had no turn"


@given(count=st.integers(2, 6), smallest=st.floats(0.51, 1.0), seed=st.integers(0, 99))
def test_where_there_are_turns_who_has_nothing_to_do_makes_room_at_once(count: int, smallest: float, seed: int) -> None:
    replicas = Replicas([inf] * count, smallest=smallest, seed=seed)
    replicas.run(3.0)
    holder = max(range(count), key=lambda who: replicas.held[who])
    replicas.demand[holder] = 0.0
    replicas.run(2 * ASKING)
    assert replicas.held[holder] == 0.0
    assert sum(replicas.held) == 1.0


def test_one_that_uses_little_does_not_keep_a_hungry_one_from_its_turns() -> None:
    replicas = Replicas([0.1, inf], smallest=0.6)
    replicas.run(60.0)
    assert replicas.had[1] >= 20.0
    assert replicas.had[0] >= 1.0


def test_nothing_is_granted_while_shares_of_before_may_be_out() -> None:
    shares = Shares(lifetime=1.0, silent_until=5.0)
    assert shares.ask("a", 4.9, used=0.0, waiting=True) == 0.0
    assert shares.ask("b", 4.95, used=0.0, waiting=False) == 0.0
    assert shares.ask("a", 5.0, used=0.0, waiting=False) == 0.5, "it was never granted anything, and is new"
    assert shares.ask("b", 5.1, used=0.0, waiting=False) == 0.5


def test_a_share_that_is_left_is_out_until_it_expires_also_for_one_that_comes_back() -> None:
    shares = Shares(lifetime=1.0)
    assert shares.ask("a", 0.0, used=0.0, waiting=True) == 1.0
    shares.leave("a")
    shares.leave("nobody")
    shares.join("a", 0.5)
    assert shares.outstanding(0.5) == 1.0
    assert shares.ask("b", 0.75, used=0.0, waiting=True) == 0.0
    assert shares.ask("b", 1.0, used=0.0, waiting=True) == 0.5


def test_among_many_the_hungry_have_even_parts_of_what_the_others_leave() -> None:
    """What is fair is found anew from time to time only, and never more than the whole is out."""
    replicas = Replicas([inf] * 200 + [0.001] * 100, jitter=0.5)
    replicas.run(4.0)
    assert replicas.held[200:] == pytest.approx([0.0012] * 100)
    assert replicas.held[:200] == pytest.approx([0.88 / 200] * 200, rel=0.02)
    replicas.demand[:100] = [0.0] * 100
    replicas.run(4.0)
    assert replicas.held[100:200] == pytest.approx([0.85 / 100] * 100, rel=0.03)
    replicas.join(inf)
    replicas.run(4 * ASKING)
    assert replicas.held[-1] == pytest.approx(replicas.held[150], rel=0.02)


def test_among_many_few_have_their_turn_at_a_time() -> None:
    replicas = Replicas([inf] * 120, smallest=0.02, jitter=0.5)

    def check() -> None:
        assert sum(held > 0 for held in replicas.held) <= 50

    replicas.run(35.0, check)
    assert sum(replicas.had) >= 0.95 * 35.0
    assert min(replicas.had) > 0, "one had no turn"


def test_who_has_left_takes_no_place_of_those_that_are_left_where_there_are_turns() -> None:
    shares = Shares(lifetime=1.0, smallest=0.3)
    for who in "abcd":
        shares.join(who, 0.0)
    for who in "ab":
        assert shares.ask(who, 0.1, used=0.0, waiting=True) == pytest.approx(1 / 3)
    shares.leave("a")
    assert shares.ask("c", 0.2, used=0.0, waiting=True) == pytest.approx(1 / 3)
    assert shares.ask("d", 0.2, used=0.0, waiting=True) == 0.0


class Asking(RuleBasedStateMachine):
    """Joins, askings, leaves, losses and clock jumps in any order: more than the whole is never out."""

    @initialize(
        smallest=st.one_of(st.just(0.0), st.floats(0, 1), st.just(1.0), st.just(60.0)),
        turn=st.floats(0, 100),
        silent=st.sampled_from([-inf, 0.0, 3.0]),
    )
    def make(self, smallest: float, turn: float, silent: float) -> None:
        self.shares = Shares(lifetime=LIFETIME, smallest=smallest, turn=turn, silent_until=silent)
        self.smallest, self.silent = min(1.0, smallest), silent
        self.now = 0.0
        self.granted: dict[str, tuple[float, float]] = {}

    @rule(who=st.sampled_from("abcdef"))
    def join(self, who: str) -> None:
        self.shares.join(who, self.now)

    @rule(who=st.sampled_from("abcdef"), used=st.one_of(st.just(0.0), st.floats(0, 100)), waiting=st.booleans())
    def ask(self, who: str, used: float, waiting: bool) -> None:
        share = self.shares.ask(who, self.now, used=used, waiting=waiting)
        assert share == 0.0 or self.smallest - NEARLY <= share <= 1.0
        assert share == 0.0 or self.now >= self.silent
        self.granted[who] = share, self.now + LIFETIME

    @rule(who=st.sampled_from("abcdef"))
    def leave(self, who: str) -> None:
        self.shares.leave(who)

    @rule(seconds=st.one_of(st.floats(0, 0.5), st.floats(0, 1e6), st.sampled_from([ASKING, LIFETIME])))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.floats(0, 1e6))
    def the_clock_goes_back_for_a_moment(self, seconds: float) -> None:
        before = self.shares.outstanding(self.now)
        assert self.shares.outstanding(self.now - seconds) == before

    @invariant()
    def never_more_than_the_whole(self) -> None:
        if hasattr(self, "shares"):
            out = sum(share for share, expires in self.granted.values() if expires > self.now)
            assert out <= 1 + NEARLY
            assert self.shares.outstanding(self.now) == pytest.approx(out)


TestAsking = Asking.TestCase
TestAsking.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
