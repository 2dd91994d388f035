"""A coordinator past one machine under faults in any order: each shard done once, and never by two who may do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stageflow.cluster.coordinator import ShardCoordinator
from stageflow.cluster.engines import CoordinatorSetup
from stageflow.cluster.messages import Orders, Report, ShardCommit, ShardLease
from stageflow.replicas.messages import Asked

BEAT, TTL = 5.0, 30.0
LIMITS = {"slow": 3.0, "free": None}
NEARLY = 1e-6


@dataclass
class Replica:
    """A replica that keeps to the protocol, as far as it lives.

    Attributes:
        held: The attempts of what it has, by shard.
        confirmed: Of those, which the coordinator of this epoch knows that it has.
        found: Commits that it has not told of yet.
        unanswered: What it repeats.
        frozen: It says nothing, for now.
    """

    name: str
    held: dict[int, int] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    found: list[ShardCommit] = field(default_factory=list)
    unanswered: Report | None = None
    frozen: bool = False
    at_record: tuple[int, int] | None = None


class Run(RuleBasedStateMachine):
    """The store is a dictionary that takes each number once; everything else may fail."""

    @initialize(shards=st.integers(1, 8), most_deaths=st.integers(1, 5), done=st.sets(st.integers(0, 7), max_size=2))
    def make(self, shards: int, most_deaths: int, done: set[int]) -> None:
        self.setup = CoordinatorSetup(store="", shards=shards, limits=LIMITS, most_deaths=most_deaths)
        self.now, self.epoch, self.stopped = 0.0, 0, False
        self.store = {number: ShardCommit(number, 999) for number in done if number < shards}
        self.replicas: dict[str, Replica] = {}
        self.dead: list[str] = []  # of whom the engine has not told
        self.sent: list[Report] = []
        self.leases: dict[tuple[int, int], str] = {}  # every one there was
        self.shares: dict[tuple[int, str, str], tuple[float, float]] = {}
        self.born = self.cursor = 0
        self.seen: dict[int, ShardCommit] = {}
        self.begin(restarted=False)

    def begin(self, *, restarted: bool) -> None:
        done = list(self.store.values())
        self.own = ShardCoordinator(self.setup, done, self.now, restarted=restarted, epoch=self.epoch)
        self.began = self.now
        self.restarted = restarted
        self.there: set[str] = set()
        self.fenced: set[str] = set()
        self.granted_at: dict[str, float] = {}
        self.seen_now: set[int] = set()
        self.stopped = False
        for replica in self.replicas.values():
            replica.confirmed.clear()

    # What happens

    @precondition(lambda self: len(self.replicas) < 4)
    @rule()
    def join(self) -> None:
        self.born += 1
        self.replicas[f"r{self.born}"] = Replica(f"r{self.born}")

    def some(self, data: st.DataObject) -> Replica | None:
        able = sorted(name for name, replica in self.replicas.items() if not replica.frozen)
        return self.replicas[data.draw(st.sampled_from(able))] if able else None

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), asks=st.integers(0, 3), waiting=st.booleans(), reaches=st.integers(0, 5))
    def report(self, data: st.DataObject, asks: int, waiting: bool, reaches: int) -> None:
        if (replica := self.some(data)) is not None:
            self.talk(replica, asks, waiting=waiting, reaches=reaches > 0)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), chance=st.integers(0, 3))
    def leave(self, data: st.DataObject, chance: int) -> None:
        if not chance and (replica := self.some(data)) is not None:
            replica.held.clear()
            self.talk(replica, 0, leaving=True)

    def talk(
        self, replica: Replica, asks: int, *, waiting: bool = True, leaving: bool = False, reaches: bool = True
    ) -> None:
        self.now += 0.001
        report = replica.unanswered or Report(
            who=replica.name,
            at=self.now,
            held=dict(replica.held),
            asks=asks,
            committed=tuple(replica.found),
            limits={name: Asked(0.1, waiting) for name in LIMITS},
            at_record=replica.at_record,
            leaving=leaving,
        )
        orders = self.exchange(report)
        self.sent = [*self.sent[-9:], report]
        replica.unanswered = report
        if reaches:
            self.answered(replica, report, orders)

    def exchange(self, report: Report) -> Orders:
        orders = self.own.exchange(report, self.now)
        assert orders.fenced or report.leaving or report.who not in self.fenced, "one that was lost came back"
        for lease in orders.leases:
            self.check_lease(lease, report.who)
        assert not orders.leases or not (self.stopped or (self.restarted and self.now < self.began + 2 * BEAT))
        if report.leaving:  # it makes no calls any more
            self.shares = {key: share for key, share in self.shares.items() if key[:2] != (self.epoch, report.who)}
        if orders.granted is not None and self.granted_at.get(report.who, -1.0) < report.at:
            self.granted_at[report.who] = report.at
            for name, share in orders.granted.shares.items():
                assert not share or not self.restarted or self.now >= self.began + orders.granted.seconds
                self.shares[self.epoch, report.who, name] = share, self.now + orders.granted.seconds
        return orders

    def check_lease(self, lease: ShardLease, who: str) -> None:
        key = lease.number, lease.attempt
        assert self.leases.setdefault(key, who) == who, "two leases of one attempt"
        assert lease.number not in {commit.number for commit in self.own.commits}

    def answered(self, replica: Replica, report: Report, orders: Orders) -> None:
        """It obeys. What it holds and was not told to drop is its own alone."""
        replica.unanswered = None
        replica.found = [commit for commit in replica.found if commit not in report.committed]
        if orders.fenced or report.leaving:
            del self.replicas[replica.name]
            return
        before = len(replica.held)
        for number in orders.drop:
            replica.held.pop(number, None)
        for lease in orders.leases:
            assert lease.number not in replica.held
            replica.held[lease.number] = lease.attempt
            if lease.careful:
                replica.at_record = lease.number, lease.attempt % 3
                assert list(replica.held) == [lease.number], "what is done with care got company"
        assert len(replica.held) <= before + report.asks
        replica.confirmed = set(replica.held)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_report_comes_twice(self, data: st.DataObject) -> None:
        """Its second answer is for nobody."""
        report = data.draw(st.sampled_from(self.sent))
        if report.who not in self.dead:  # a replica that nobody knows would join
            self.exchange(report)

    @precondition(lambda self: any(replica.held for replica in self.replicas.values()))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """Also by one that was taken for lost, or told to drop it and has not heard."""
        busy = sorted(name for name, replica in self.replicas.items() if replica.held)
        replica = self.replicas[data.draw(st.sampled_from(busy))]
        self.do(replica, data.draw(st.sampled_from(sorted(replica.held))))

    def do(self, replica: Replica, number: int) -> None:
        found = self.store.setdefault(number, ShardCommit(number, replica.held.pop(number), written=1))
        replica.held.pop(number, None)
        replica.found.append(found)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.replicas)))
        del self.replicas[name]
        self.dead.append(name)

    @precondition(lambda self: self.dead)
    @rule()
    def the_engine_tells(self) -> None:
        who = self.dead.pop(0)
        for _ in range(2):
            self.own.died(who, self.now)
        self.sent = [report for report in self.sent if report.who != who]

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def freeze_or_wake(self, data: st.DataObject) -> None:
        replica = self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]
        replica.frozen = not replica.frozen

    @rule(steps=st.integers(1, 14))
    def time_goes_on(self, steps: int) -> None:
        """And the others beat."""
        for _ in range(steps):
            self.now += BEAT / 2
            for replica in list(self.replicas.values()):
                if not replica.frozen and steps > 4:
                    self.talk(replica, 0, waiting=False)
            self.observe()

    @rule()
    def observe(self) -> None:
        progress = self.own.observe(self.cursor, self.now, "stop" if self.stopped else "")
        self.cursor = progress.cursor
        for commit in progress.commits:
            assert commit.number not in self.seen_now, "a commit is told twice"
            self.seen_now.add(commit.number)
            assert self.store[commit.number] == commit
            assert self.seen.setdefault(commit.number, commit) == commit
        self.fenced |= self.there.difference(progress.replicas)
        self.there = set(progress.replicas)
        assert progress.finished is (len(self.seen_now) == self.setup.shards)

    @rule()
    def what_was_given_up_is_written(self) -> None:
        for lease in self.own.given_up:
            key = lease.number, lease.attempt
            assert self.leases.setdefault(key, "given up") == "given up", "two leases of one attempt"
            failed = ShardCommit(lease.number, lease.attempt, failed=True)
            self.own.committed(self.store.setdefault(lease.number, failed))

    @rule()
    def the_coordinator_is_started_again(self) -> None:
        self.epoch += 1
        self.begin(restarted=True)

    @rule(chance=st.integers(0, 5))
    def stop(self, chance: int) -> None:
        if not chance:
            self.stopped = True
            self.observe()

    # What holds always

    @invariant()
    def no_shard_has_two_who_may_do_it(self) -> None:
        if not hasattr(self, "own"):
            return
        there = set(self.own.observe(1 << 62, self.now).replicas)
        known = {commit.number for commit in self.own.commits}
        having = [
            number
            for name, replica in self.replicas.items()
            for number in replica.confirmed & replica.held.keys()
            if name in there and number not in known
        ]
        assert len(having) == len(set(having)), "a shard has two who may do it"
        assert not set(having) & {lease.number for lease in self.own.given_up}

    @invariant()
    def never_more_than_the_whole_limit_is_out(self) -> None:
        for name in LIMITS if hasattr(self, "own") else ():
            out = [
                share for (_, _, limit), (share, expires) in self.shares.items() if limit == name and expires > self.now
            ]
            assert sum(out) <= 1 + NEARLY

    def teardown(self) -> None:
        """Whatever has happened: a run that is started again does all of it."""
        if not hasattr(self, "own"):
            return
        if self.stopped:
            self.the_coordinator_is_started_again()
        self.join()
        for replica in self.replicas.values():
            replica.frozen = False
        for _ in range(14 * self.setup.shards + 20):
            self.now += BEAT / 2
            while self.dead:
                self.the_engine_tells()
            if not self.replicas:
                self.join()
            for replica in list(self.replicas.values()):
                self.talk(replica, max(0, 2 - len(replica.held)))
                for number in list(replica.held):
                    self.do(replica, number)
            self.what_was_given_up_is_written()
            self.observe()
            self.no_shard_has_two_who_may_do_it()
            self.never_more_than_the_whole_limit_is_out()
            if self.own.observe(0, self.now).finished:
                break
        assert self.seen == self.store
        assert self.store.keys() == set(range(self.setup.shards)), "a shard was lost"


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


# Records that kill


@dataclass
class Mortal:
    """A replica that runs some records of its leases at a time, and dies of some of them."""

    name: str
    leases: dict[int, ShardLease] = field(default_factory=dict)
    done: dict[int, set[int]] = field(default_factory=dict)


def run_with_killers(
    sizes: list[int], killers: set[tuple[int, int]], replicas: int, in_flight: int, seed: int
) -> tuple[int, dict[int, tuple[int, ...]]]:
    """Run it to its end. How many died, and what was fatal in each shard that was committed."""
    chance, now, born, deaths = Random(seed), 0.0, 0, 0
    own = ShardCoordinator(CoordinatorSetup(store="", shards=len(sizes), limits={}), (), now, restarted=False, epoch=0)
    living: list[Mortal] = []
    committed: dict[int, tuple[int, ...]] = {}
    while len(committed) < len(sizes):
        assert now < 100, "it does not end"
        assert not own.given_up, "a shard was given up for its neighbours, or its killers"
        while len(living) < replicas:
            born += 1
            living.append(Mortal(f"r{born}"))
        one = chance.choice(living)
        now += 0.001
        found = []
        for number, lease in list(one.leases.items()):
            if len(one.done[number]) == sizes[number]:
                del one.leases[number]
                committed[number] = lease.fatal
                found.append(ShardCommit(number, lease.attempt))
        held = {number: lease.attempt for number, lease in one.leases.items()}
        report = Report(who=one.name, at=now, held=held, asks=max(0, 2 - len(held)), committed=tuple(found))
        for lease in own.exchange(report, now).leases:
            one.leases[lease.number], one.done[lease.number] = lease, set(lease.fatal)
        under_way = [
            (number, place)
            for number, lease in one.leases.items()
            for place in range(sizes[number])
            if place not in one.done[number]
        ]
        under_way = under_way[: 1 if any(lease.careful for lease in one.leases.values()) else in_flight]
        if under_way and one.leases[under_way[0][0]].careful:
            now += 0.001
            held = {number: lease.attempt for number, lease in one.leases.items()}
            own.exchange(Report(who=one.name, at=now, held=held, at_record=under_way[0]), now)
        if killers.intersection(under_way):
            living.remove(one)
            own.died(one.name, now)
            deaths += 1
            continue
        for number, place in under_way:
            one.done[number].add(place)
    assert own.observe(0, now).finished
    return deaths, committed


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    places=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=4),
    replicas=st.integers(1, 4),
    in_flight=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_all_records_that_kill_are_found_and_nothing_else_is_given_up(
    sizes: list[int], places: set[tuple[int, int]], replicas: int, in_flight: int, seed: int
) -> None:
    killers = {(number, place) for number, place in places if number < len(sizes) and place < sizes[number]}
    deaths, committed = run_with_killers(sizes, killers, replicas, in_flight, seed)
    found = {(number, place) for number, fatal in committed.items() for place in fatal}
    assert found == killers
    assert deaths <= len(killers) + 3 * len({number for number, _ in killers})
