"""Who has which shard: each record done once, whatever becomes of the replicas; a record that kills them is named."""

from __future__ import annotations

from math import ceil, log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from stageflow.replicas.coordinator import Coordinator, Lease, Shard


def coordinator(*sizes: int, window: int | None = None, who: str = "a") -> Coordinator:
    """With shards of so many records, and replicas by those letters."""
    own, first = Coordinator(window=window), 0
    for number, size in enumerate(sizes):
        own.add(Shard(number, range(first, first + size)))
        first += size
    own.closed = True
    for name in who:
        own.join(name)
    return own


def leased(own: Coordinator, who: str) -> Lease:
    lease = own.lease(who)
    assert lease is not None
    return lease


def test_shards_are_leased_in_order_and_done_record_by_record() -> None:
    own = coordinator(2, 1, who="ab")
    assert [list(leased(own, who).indices) for who in "ab"] == [[0, 1], [2]]
    assert own.lease("a") is None
    assert own.given_out
    assert own.shard_of(2) == 1
    own.settled([2, 0])
    assert (own.done, own.finished) == ([1], False)
    own.settled([1])
    assert (own.done, own.finished) == ([1, 0], True)


def test_a_shard_without_records_is_done_at_once() -> None:
    own = coordinator(0, 1, 0)
    assert own.done == [0, 2]
    assert own.ready == 1


def test_what_was_lost_comes_back_to_its_place_without_what_is_done() -> None:
    own = coordinator(3, 2, 2, who="abc")
    for who in "ab":
        leased(own, who)
    own.settled([1])
    assert own.lost("b") == 1
    assert own.lost("a") == 1
    assert [(list(lease.indices), lease.deaths) for lease in (leased(own, "c") for _ in range(3))] == [
        ([0, 2], 1),
        ([3, 4], 1),
        ([5, 6], 0),
    ]


def test_a_replica_that_is_lost_with_nothing_in_hand_charges_nobody() -> None:
    own = coordinator(1, who="ab")
    leased(own, "a")
    own.settled([0])
    assert own.lost("a") == 0
    assert own.lost("b") == 0
    assert own.finished


def test_the_window_holds_back_what_is_far_ahead_of_the_oldest() -> None:
    own = coordinator(1, 1, 1, 1, window=2)
    assert [list(leased(own, "a").indices) for _ in range(2)] == [[0], [1]]
    own.settled([1])
    assert own.lease("a") is None
    own.settled([0])
    assert [list(leased(own, "a").indices) for _ in range(2)] == [[2], [3]]


def test_after_two_deaths_a_lease_is_alone_then_halved_and_its_last_record_named() -> None:
    own = coordinator(4, 1, who="abcdefz")
    for who in "ab":
        assert (list(leased(own, who).indices), list(leased(own, who).indices)) == ([0, 1, 2, 3], [4])
        assert own.lost(who) == 2
    for who, held in (("c", [0, 1, 2, 3]), ("d", [0, 1]), ("e", [0])):
        lease = leased(own, who)
        assert (list(lease.indices), lease.alone, lease.fatal) == (held, True, False)
        assert own.lease(who) is None, "it has company"
        assert own.lost(who) == 1
    lease = leased(own, "z")
    assert (list(lease.indices), lease.alone, lease.fatal, lease.deaths) == ([0], False, True, 5)
    assert own.lease("z") is None, "what may kill was given to one that has something else"
    own.settled([0])
    for rest in ([1], [2, 3], [4]):
        lease = leased(own, "z")
        assert (list(lease.indices), lease.fatal) == (rest, False)
        own.settled(rest)
    assert own.finished


def whole(shards: int, who: str) -> Coordinator:
    """One index to each shard, its number."""
    own = Coordinator(whole=True)
    for number in range(shards):
        own.add(Shard(number, (number,)))
    own.closed = True
    for name in who:
        own.join(name)
    return own


def numbers(own: Coordinator, who: str) -> list[int]:
    """All that a replica is leased."""
    return [lease.shard.number for lease in iter(lambda: own.lease(who), None)]


def test_a_whole_shard_is_alone_and_never_divided_whoever_dies_of_it() -> None:
    own = whole(2, "abcdefg")
    for deaths, who in enumerate("abcdef"):
        lease = leased(own, who)
        assert (list(lease.indices), lease.deaths, lease.fatal) == ([0], deaths, False)
        assert lease.alone is (deaths >= 2)
        assert own.lost(who) == 1
    assert numbers(own, "g") == [0]


def test_the_shards_that_are_spared_are_not_charged_with_a_death() -> None:
    own = whole(3, "ab")
    assert numbers(own, "a") == [0, 1, 2]
    own.lost("a", spared={0, 2})
    assert numbers(own, "b") == [0, 1, 2]
    assert [lease.deaths for lease in own.held("b")] == [0, 1, 0]


def test_a_shard_that_waits_is_adopted_by_whoever_has_it_and_no_other_is() -> None:
    own = whole(4, "ab")
    assert leased(own, "a").shard.number == 0
    own.finish(3)
    adopted = own.adopt("b", 2)
    assert adopted is not None
    assert [own.adopt("b", number) for number in (0, 2, 3, 4)] == [None] * 4
    assert numbers(own, "a") == [1]
    assert own.lost("b") == 1
    assert numbers(own, "a") == [2]


def test_what_is_given_back_goes_to_its_place_and_nobody_has_died() -> None:
    own = whole(3, "ab")
    assert numbers(own, "a") == [0, 1, 2]
    for number in (2, 0):
        own.give_back(number)
    assert [lease.shard.number for lease in own.held("a")] == [1]
    assert numbers(own, "b") == [0, 2]
    assert {lease.deaths for lease in own.held("b")} == {0}


def test_a_shard_that_is_given_up_is_leased_to_nobody_and_is_to_be_done_all_the_same() -> None:
    own = whole(2, "a")
    given_up = own.give_up(0)
    assert given_up is not None
    assert given_up.shard.number == 0
    assert own.give_up(0) is None
    assert numbers(own, "a") == [1]
    assert own.finish(1) == "a"
    assert not own.finished
    assert own.finish(0) is None
    assert own.finished


@pytest.mark.parametrize("leased_to", ["a", None])
def test_a_shard_is_done_whoever_has_it(leased_to: str | None) -> None:
    own = whole(2, "ab")
    if leased_to:
        leased(own, leased_to)
    assert own.finish(0) == leased_to
    assert own.held("a") == []
    assert (own.done, own.ready) == ([0], 1)
    assert numbers(own, "b") == [1]


@pytest.mark.parametrize(
    "broken",
    [
        lambda own: own.join("a"),
        lambda own: own.add(Shard(7, range(9))),
        lambda own: Coordinator.add(_open_one(), Shard(3, range(9))),
        lambda own: own.adopt("a", 0),
    ],
    ids=["two of one name", "behind the end", "out of order", "a shard that may be in parts"],
)
def test_a_broken_promise_is_an_assertion(broken) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        broken(coordinator(1))


def _open_one() -> Coordinator:
    own = Coordinator()
    own.add(Shard(3, range(1)))
    return own


class Fleet(RuleBasedStateMachine):
    """Replicas come, take leases, do records in any order, and are lost at any time. The model is kept by record."""

    @initialize(window=st.one_of(st.none(), st.integers(1, 4)))
    def make(self, window: int | None) -> None:
        self.own = Coordinator(window=window)
        self.window = window
        self.shards: list[set[int]] = []
        self.shard_of: dict[int, int] = {}
        self.deaths: dict[int, int] = {}
        self.settled: set[int] = set()
        self.replicas: dict[str, dict[int, Lease]] = {}
        self.born = 0
        self.seen_done: list[int] = []

    def left(self, lease: Lease) -> list[int]:
        return [index for index in lease.indices if index not in self.settled]

    def held(self) -> list[int]:
        return [index for leases in self.replicas.values() for lease in leases.values() for index in self.left(lease)]

    def waiting(self) -> list[int]:
        """The records that nobody has, in the order of the input, as far as the window reaches."""
        gone = self.settled.union(self.held())
        oldest = min((number for number, shard in enumerate(self.shards) if shard - self.settled), default=0)
        reach = oldest + self.window if self.window is not None else len(self.shards)
        return [index for index, number in sorted(self.shard_of.items()) if index not in gone and number < reach]

    @precondition(lambda self: not self.own.closed)
    @rule(size=st.integers(0, 7))
    def add(self, size: int) -> None:
        first, number = len(self.shard_of), len(self.shards)
        indices = range(first, first + size)
        self.own.add(Shard(number, indices))
        self.shards.append(set(indices))
        self.shard_of.update(dict.fromkeys(indices, number))
        self.deaths.update(dict.fromkeys(indices, 0))
        self.check()

    @precondition(lambda self: not self.own.closed and len(self.shards) > 3)
    @rule()
    def close(self) -> None:
        self.own.closed = True

    @precondition(lambda self: len(self.replicas) < 4)
    @rule()
    def join(self) -> None:
        self.born += 1
        self.own.join(f"r{self.born}")
        self.replicas[f"r{self.born}"] = {}

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        self.lease(data.draw(st.sampled_from(sorted(self.replicas))))

    def lease(self, who: str) -> Lease | None:
        held, waiting = self.replicas[who], self.waiting()
        others = set(self.held())
        safe = [index for index in waiting if self.deaths[index] < 2]
        lease = self.own.lease(who)
        has_alone = any(one.alone for one in held.values())
        if lease is None:
            assert has_alone or not (safe if held else waiting), "it is not given what it may have"
            return None
        assert not has_alone, "what is alone got company"
        assert not (lease.alone and held), "what is to be alone was given to one that has something"
        assert not others.intersection(lease.indices), "a record is leased twice at a time"
        assert not self.settled.intersection(lease.indices), "what is done is leased again"
        assert {self.deaths[index] for index in lease.indices} == {lease.deaths}
        assert not lease.fatal or (len(lease.indices) == 1 and lease.deaths >= 3)
        assert lease.fatal or lease.alone is (lease.deaths >= 2)
        if held and lease.fatal:
            assert not safe or lease.indices[0] < safe[0]
        else:
            assert lease.indices[0] == (safe if held else waiting)[0], "not the first that it may have"
        assert list(lease.indices) == sorted(lease.indices)
        held[lease.id] = lease
        return lease

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.do(data.draw(st.lists(st.sampled_from(self.held()), min_size=1, max_size=12, unique=True)))

    def do(self, indices: list[int]) -> None:
        for index in indices:
            assert self.own.shard_of(index) == self.shard_of[index]
        self.own.settled(indices)
        assert not self.settled.intersection(indices)
        self.settled.update(indices)
        for held in self.replicas.values():
            for lease in [lease for lease in held.values() if not self.left(lease)]:
                del held[lease.id]
        self.check()

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(self.replicas)))
        held = self.replicas.pop(who)
        assert self.own.lost(who) == len(held)
        for lease in held.values():
            for index in self.left(lease):
                self.deaths[index] += 1
        self.check()

    def check(self) -> None:
        self.seen_done += self.own.done
        self.own.done.clear()
        done = [number for number, shard in enumerate(self.shards) if shard <= self.settled]
        assert sorted(self.seen_done) == done, "a shard that is done is told once"
        assert self.own.finished is (self.own.closed and len(done) == len(self.shards))
        if self.window is None:
            assert bool(self.own.ready) is bool(self.waiting())
        assert self.own.given_out is (self.own.closed and not self.own.ready)

    def teardown(self) -> None:
        """Whatever has happened: those that are left, and one more, do all of it."""
        if not hasattr(self, "own"):
            return
        self.own.closed = True
        self.join()
        for _ in range(2 * len(self.shard_of) + 2):
            for who in sorted(self.replicas):
                self.lease(who)
            if held := self.held():
                self.do(held)
        assert self.settled == set(self.shard_of), "a record was lost"
        self.check()
        assert self.own.finished


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def deaths_until_done(
    sizes: list[int], killers: set[int], replicas: int, ahead: int, in_flight: int, seed: int
) -> tuple[int, set[int], set[int]]:
    """Run it with replicas that die of some records. How many died; which records were named, and which were done."""
    chance, own, deaths = Random(seed), coordinator(*sizes, who=""), 0
    held: dict[str, list[Lease]] = {}
    named, done, born = set[int](), set[int](), 0
    while not own.finished:
        while len(held) < replicas:
            born += 1
            own.join(str(born))
            held[str(born)] = []
        who = chance.choice(sorted(held))
        while len(held[who]) < ahead and (lease := own.lease(who)):
            held[who].append(lease)
        fatal = [lease for lease in held[who] if lease.fatal]
        named.update(lease.indices[0] for lease in fatal)
        settled = {lease.indices[0] for lease in fatal}
        under_way = [index for lease in held[who] if not lease.fatal for index in lease.indices if index not in done]
        under_way = under_way[:in_flight]
        if killers.intersection(under_way) and chance.random() < 0.7:
            own.settled(settled)
            done |= settled
            own.lost(who)
            del held[who]
            deaths += 1
            continue
        settled.update(index for index in under_way if index not in killers and chance.random() < 0.5)
        assert not done & settled
        own.settled(settled)
        done |= settled
        held[who] = [lease for lease in held[who] if not done.issuperset(lease.indices)]
        assert deaths < 1000, "it does not end"
    return deaths, named, done


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=2),
    replicas=st.integers(1, 4),
    ahead=st.integers(1, 3),
    in_flight=st.integers(1, 16),
    seed=st.integers(0, 2**32),
)
def test_who_kills_is_named_after_few_deaths_and_all_others_are_done(
    sizes: list[int], places: list[float], replicas: int, ahead: int, in_flight: int, seed: int
) -> None:
    count = sum(sizes)
    killers = {int(place * count) for place in places} if count else set()
    deaths, named, done = deaths_until_done(sizes, killers, replicas, ahead, in_flight, seed)
    assert named == killers
    assert done == set(range(count))
    assert deaths <= len(killers) * (3 + ceil(log2(max(1, *sizes, 1))))


def test_how_many_deaths_a_killer_costs() -> None:
    """Three to be alone and then divided, and one for each halving of 1,000 records: 13. All others are done."""
    worst = max(deaths_until_done([1000] * 3, {1234}, 2, 2, 64, seed)[0] for seed in range(20))
    assert 5 <= worst <= 3 + 10
