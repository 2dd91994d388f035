"""Who works on which shard of a run past one machine: each rule of the coordinator by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from stageflow.cluster.coordinator import EPOCH_ATTEMPTS, ShardCoordinator
from stageflow.cluster.engines import CoordinatorSetup
from stageflow.cluster.messages import Orders, Report, ShardCommit, ShardLease
from stageflow.counters import StageCounters
from stageflow.errors import RunStopped
from stageflow.events import StageSnapshot, Warned
from stageflow.replicas.messages import Asked, Beat, Open, Stopped
from stageflow.work import StageAccount

BEAT, TTL, LIFETIME = 5.0, 30.0, 6.0


class Cluster:
    """A coordinator and what its replicas hold, on a clock that is set by hand."""

    def __init__(
        self, shards: int, *, done: Iterable[ShardCommit] = (), restarted: bool = False, epoch: int = 0
    ) -> None:
        self.setup = CoordinatorSetup(store="", shards=shards, limits={"slow": 100.0, "free": None})
        self.now = 100.0
        self.held: dict[str, dict[int, int]] = {}
        self.own = ShardCoordinator(self.setup, done, self.now, restarted=restarted, epoch=epoch)

    def restart(self, epoch: int) -> None:
        self.own = ShardCoordinator(self.setup, self.own.commits, self.now, restarted=True, epoch=epoch)

    def says(self, who: str, asks: int = 0, **more: Any) -> Orders:
        """A report that is answered, a moment later than the one before."""
        self.now += 0.001
        orders = self.lost(who, asks, **more)
        held = self.held.setdefault(who, {})
        held.update((lease.number, lease.attempt) for lease in orders.leases)
        for number in orders.drop:
            del held[number]
        return orders

    def lost(self, who: str, asks: int = 0, *, at: float | None = None, **more: Any) -> Orders:
        """A report whose answer does not reach the replica."""
        held = dict(self.held.get(who, {}))
        at = self.now if at is None else at
        return self.own.exchange(Report(who=who, at=at, asks=asks, **{"held": held, **more}), self.now)

    def leased(self, who: str, asks: int = 1) -> list[int]:
        return [lease.number for lease in self.says(who, asks).leases]

    def does(self, who: str, *numbers: int) -> Orders:
        done = tuple(ShardCommit(number, self.held[who].pop(number), written=1) for number in numbers)
        return self.says(who, committed=done)

    def dies(self, who: str) -> None:
        self.own.died(who, self.now)

    def wait(self, seconds: float, *alive: str) -> None:
        """Time goes on; those who are alive beat."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + BEAT / 2)
            self.own.observe(0, self.now)
            for who in alive:
                self.lost(who)

    def lease_of(self, who: str) -> ShardLease:
        (lease,) = self.says(who, 5).leases
        return lease


def test_shards_are_leased_in_the_order_of_the_input_and_as_many_as_are_asked_for() -> None:
    run = Cluster(5)
    assert run.leased("a", 2) == [0, 1]
    assert run.leased("b", 0) == []
    assert run.leased("b", 1) == [2]
    assert run.leased("a", 10) == [3, 4]
    assert run.leased("b", 10) == []


def test_one_answer_is_bounded() -> None:
    assert len(Cluster(1000).leased("a", 1000)) == 100


def test_what_is_committed_in_the_store_is_not_done_again() -> None:
    run = Cluster(4, done=[ShardCommit(2, 1), ShardCommit(0, 7)])
    assert run.leased("a", 9) == [1, 3]
    run.does("a", 1, 3)
    assert run.own.observe(0, run.now).finished
    assert Cluster(1, done=[ShardCommit(0, 1)]).says("a").finished


def test_a_shard_that_does_not_exist_is_nobodys() -> None:
    run = Cluster(1)
    assert run.lost("a", held={3: 1}, committed=(ShardCommit(9, 1),)).drop == (3,)
    assert run.own.commits == []


def test_the_shards_of_a_replica_that_died_go_to_the_front() -> None:
    run = Cluster(6)
    run.leased("a", 3)
    run.leased("b", 1)
    run.does("a", 1)
    run.dies("a")
    assert run.leased("b", 9) == [0, 2, 4, 5]
    assert run.says("a").fenced


def test_a_lease_that_a_replica_does_not_have_goes_back_and_no_death_is_charged() -> None:
    run = Cluster(2)
    for _ in range(5):
        run.now += 1.0
        assert [lease.number for lease in run.lost("a", 1).leases] == [0]
    assert run.leased("a", 2) == [0, 1]
    assert run.held["a"] == {0: 6, 1: 1}


def test_a_report_that_is_repeated_gets_the_same_answer() -> None:
    run = Cluster(3)
    first = run.lost("a", 1, at=1.0, limits={"slow": Asked(0.0, True)})
    run.now += 1.0
    assert run.lost("a", 1, at=1.0, limits={"slow": Asked(0.0, True)}) == first
    assert run.leased("b", 1) == [1]
    run.own.committed(ShardCommit(0, 1))
    again = run.lost("a", 1, at=1.0)
    assert (again.leases, again.granted) == ((), first.granted), "it is committed by now"
    assert [lease.number for lease in run.lost("c", 1, at=1.0).leases] == [2]
    run.own.observe(0, run.now, "stop")
    again = run.lost("c", 1, at=1.0)
    assert (again.leases, again.stop) == ((), True)


def test_a_replica_may_keep_to_an_earlier_attempt_than_it_was_answered_last() -> None:
    run = Cluster(1)
    first = run.lost("a", 1)
    run.now += 1.0
    assert run.lost("a", 1).leases[0].attempt == 2
    run.now += 1.0
    assert run.lost("a", held={0: first.leases[0].attempt}).drop == ()
    assert run.leased("b") == []


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    run = Cluster(3)
    before = run.now
    run.says("a", 1)
    late = run.lost("a", 1, at=before, held={})
    assert (late.leases, late.drop) == ((), ())
    assert run.leased("b", 9) == [1, 2]


def test_after_a_restart_the_replicas_say_what_they_have_before_anything_is_leased() -> None:
    run = Cluster(4)
    run.leased("a", 1)
    run.leased("b", 1)
    run.restart(1)
    assert run.leased("a") == []
    run.wait(1.9 * BEAT, "a")
    assert run.leased("a") == []
    assert run.says("b").drop == ()
    run.wait(0.2 * BEAT, "a", "b")
    assert run.leased("c", 9) == [2, 3]
    run.dies("a")
    assert [(lease.number, lease.attempt) for lease in run.says("c", 1).leases] == [(0, EPOCH_ATTEMPTS + 1)]


def test_who_says_after_a_restart_that_it_has_what_another_one_was_leased_is_to_drop_it() -> None:
    run = Cluster(2)
    run.leased("late", 2)
    run.restart(1)
    run.wait(2 * BEAT + 0.1)
    assert run.leased("b", 1) == [0]
    assert run.says("late").drop == (0,)
    assert run.held["late"] == {1: 1}
    assert run.leased("b", 1) == []


def test_a_commit_of_a_shard_that_another_one_has_is_believed_and_the_other_one_told() -> None:
    run = Cluster(2)
    run.leased("a", 2)
    run.wait(TTL + 1, "b")
    assert run.leased("b", 2) == [0, 1]
    assert run.says("a", committed=(ShardCommit(0, 1),)).fenced
    run.says("a", committed=(ShardCommit(0, 1),))
    assert run.says("b").drop == (0,)
    assert [commit.number for commit in run.own.observe(0, run.now).commits] == [0]
    run.does("b", 1)
    assert run.own.observe(0, run.now).finished


def test_what_is_committed_while_it_waits_for_a_replica_is_not_leased() -> None:
    run = Cluster(2)
    run.leased("a", 2)
    run.dies("a")
    run.says("a", committed=(ShardCommit(0, 1),))
    assert run.leased("b", 2) == [1]


# Silence


def test_a_replica_that_says_nothing_for_long_is_lost_and_never_comes_back() -> None:
    run = Cluster(1)
    run.leased("a")
    run.wait(TTL - 0.1, "b")
    assert run.own.observe(0, run.now).replicas == ("a", "b")
    assert run.leased("b") == []
    run.wait(0.2, "b")
    progress = run.own.observe(0, run.now)
    assert progress.replicas == ("b",)
    assert run.leased("b") == [0]
    for _ in range(2):
        assert run.says("a", 1).fenced


def test_that_a_replica_is_silent_is_told_once() -> None:
    run = Cluster(1)
    run.leased("a")
    for _ in range(int(TTL) + 2):
        run.now += 1.0
        told = run.own.observe(0, run.now).told
        if told:
            break
    assert told == (Warned("a has said nothing for 30 s: others go on with what it had"),)
    assert run.own.observe(0, run.now).told == ()


def test_a_coordinator_that_was_away_itself_blames_nobody() -> None:
    run = Cluster(1)
    run.leased("a")
    run.now += 10 * TTL
    assert run.own.observe(0, run.now).replicas == ("a",)
    assert not run.says("a").fenced


def test_two_silences_are_charged_as_one_death() -> None:
    run = Cluster(2)
    for number in range(3):
        assert run.leased(f"r{number}") == [0]
        run.wait(TTL + 1)
    assert run.leased("three", 2) == [0, 1]
    run.says("three", held={0: 4})
    run.wait(TTL + 1)
    assert run.leased("four", 2) == [0], "four silences are two deaths"


def test_a_death_of_one_that_was_silent_already_is_not_charged() -> None:
    run = Cluster(2)
    for number in range(3):
        run.leased(f"r{number}")
        run.wait(TTL + 1)
        run.dies(f"r{number}")
    assert run.leased("r3", 2) == [0, 1]


# Deaths


def after_deaths(count: int, shards: int = 2) -> Cluster:
    """Two shards each time with whoever died, as long as it may have both."""
    run = Cluster(shards)
    for number in range(count):
        run.leased(f"r{number}", shards)
        run.dies(f"r{number}")
    return run


def test_after_two_deaths_a_shard_is_leased_alone() -> None:
    run = after_deaths(2, shards=3)
    assert run.leased("a", 9) == [0]
    assert run.leased("a", 9) == [], "it got company"
    run.leased("b", 9)
    run.leased("c", 9)
    assert run.held == {**run.held, "a": {0: 3}, "b": {1: 3}, "c": {2: 3}}
    run.does("a", 0)
    run.dies("b")
    lease = run.lease_of("a")
    assert (lease.number, lease.careful) == (1, True)


def test_what_is_to_be_alone_is_not_given_to_one_that_has_something() -> None:
    run = Cluster(4)
    for who in "ab":
        run.leased(who, 1)
        run.dies(who)
    run.leased("c", 1)
    assert run.held["c"] == {0: 3}
    run.leased("d", 1)
    run.dies("c")
    assert run.leased("d", 9) == [2, 3]
    assert run.leased("e", 9) == [0]


def test_what_is_to_be_alone_is_so_again_when_it_was_given_back() -> None:
    run = after_deaths(2)
    for _ in range(3):
        run.now += 1.0
        assert [lease.number for lease in run.lost("a", 9).leases] == [0]


def careful(shards: int = 1) -> Cluster:
    run = Cluster(shards)
    for number in range(3):
        assert run.leased(f"r{number}", 1) == [0]
        run.dies(f"r{number}")
    return run


def test_from_the_third_death_on_a_record_that_kills_is_found_and_the_shard_goes_on_without_it() -> None:
    run = careful()
    fatal: tuple[int, ...] = ()
    for place in (7, 3, 11, 5):
        lease = run.lease_of(f"at {place}")
        assert (lease.careful, lease.fatal) == (True, fatal)
        run.says(f"at {place}", at_record=(0, 1))
        run.says(f"at {place}", at_record=(0, place))
        run.dies(f"at {place}")
        fatal = tuple(sorted((*fatal, place)))
    assert run.own.given_up == ()
    lease = run.lease_of("last")
    assert lease.fatal == (3, 5, 7, 11)
    run.does("last", 0)
    assert run.own.observe(0, run.now).finished


@pytest.mark.parametrize("at_record", [None, (1, 0), (0, 4)], ids=["none", "of another shard", "known already"])
def test_a_death_that_finds_nothing_counts_and_the_shard_is_given_up(at_record: tuple[int, int] | None) -> None:
    run = careful(2)
    if at_record == (0, 4):
        run.lease_of("before")
        run.says("before", at_record=at_record)
        run.dies("before")
    run.lease_of("a")
    run.says("a", at_record=at_record)
    run.dies("a")
    (lease,) = run.own.given_up
    assert run.own.given_up == (lease,), "until it is committed"
    assert (lease.number, lease.attempt) == (0, 5 + (at_record == (0, 4)))
    assert run.leased("b", 9) == [1]
    run.does("b", 1)
    assert not run.says("b", 1).finished
    run.own.committed(ShardCommit(0, lease.attempt, failed=True))
    assert run.own.given_up == ()
    progress = run.own.observe(0, run.now)
    assert progress.finished
    assert [(commit.number, commit.failed) for commit in progress.commits] == [(1, False), (0, True)]


def test_a_shard_that_was_given_up_and_is_committed_by_one_that_was_believed_dead_is_done() -> None:
    run = careful()
    run.lease_of("a")
    run.dies("a")
    assert run.own.given_up
    run.says("r0", committed=(ShardCommit(0, 1, written=5),))
    assert run.own.given_up == ()
    assert run.own.commits == [ShardCommit(0, 1, written=5)]


def test_what_is_done_with_care_is_known_after_a_restart_by_the_record_that_is_told() -> None:
    run = careful()
    run.lease_of("a")
    run.says("a", at_record=(0, 2))
    run.restart(1)
    run.says("a", at_record=(0, 3))
    run.dies("a")
    run.wait(2 * BEAT, "b")
    assert run.lease_of("b").fatal == (3,)


def test_a_record_that_is_told_of_a_shard_that_is_not_done_with_care_is_not_blamed() -> None:
    run = Cluster(1)
    run.leased("a")
    run.says("a", at_record=(0, 3))
    run.dies("a")
    assert run.lease_of("b") == ShardLease(0, 2)


def test_a_record_at_which_two_fall_silent_is_fatal() -> None:
    run = careful()
    for who, fatal in (("a", ()), ("b", ()), ("c", (4,))):
        lease = run.lease_of(who)
        assert (lease.careful, lease.fatal) == (True, fatal)
        run.says(who, at_record=(0, 4))
        if who != "c":
            run.wait(TTL + 1)
    run.does("c", 0)
    assert run.own.observe(0, run.now).finished


def test_an_attempt_number_is_of_one_epoch_and_they_are_bounded() -> None:
    run = Cluster(1, epoch=3)
    attempts = []
    while not run.own.given_up:
        who = f"r{len(attempts)}"
        attempts.append(run.lease_of(who).attempt)
        run.says(who, at_record=(0, len(attempts)))
        run.dies(who)
    attempts.append(run.own.given_up[0].attempt)
    assert attempts == list(range(3 * EPOCH_ATTEMPTS + 1, 4 * EPOCH_ATTEMPTS))


# The end


def test_who_leaves_gives_back_what_it_has_and_nobody_has_died() -> None:
    run = Cluster(2)
    run.leased("a", 1)
    orders = run.says("a", leaving=True)
    assert not orders.fenced
    assert not run.says("a", leaving=True).fenced, "it asks again: the answer was lost"
    assert run.own.observe(0, run.now).replicas == ()
    assert run.says("a", 1).fenced
    run.dies("a")
    for who in "bcd":
        run.leased(who, 1)
        run.says(who, leaving=True)
    assert run.leased("e", 2) == [0, 1]


@pytest.mark.parametrize("order", ["stop", "cancel"])
def test_orders_of_the_driver_reach_all_and_nothing_is_leased_any_more(order: Any) -> None:
    run = Cluster(3)
    run.leased("a")
    run.own.observe(0, run.now, order)
    run.own.observe(0, run.now)
    orders = run.says("a", 1)
    assert (orders.stop, orders.cancel, orders.leases) == (True, order == "cancel", ())
    orders = run.does("a", 0)
    assert not orders.finished
    assert len(run.own.observe(0, run.now).commits) == 1


def test_the_driver_is_told_each_commit_once_and_by_a_new_coordinator_all_again() -> None:
    run = Cluster(4)
    run.leased("a", 3)
    run.does("a", 1)
    first = run.own.observe(0, run.now)
    run.does("a", 0, 2)
    second = run.own.observe(first.cursor, run.now)
    assert [[commit.number for commit in one.commits] for one in (first, second)] == [[1], [0, 2]]
    assert run.own.observe(second.cursor, run.now).commits == ()
    run.restart(1)
    third = run.own.observe(second.cursor, run.now)
    assert {commit.number for commit in third.commits} == {0, 1, 2}
    assert run.own.observe(third.cursor, run.now).commits == ()


def test_what_replicas_say_is_told_once_also_where_they_repeat_it() -> None:
    run = Cluster(1)
    stop = Stopped.of(RunStopped("enough"))
    for _ in range(2):
        run.lost("a", told=(Warned("one"),), stopped=stop, at=1.0)
    run.says("a", told=(Warned("two"),), stopped=stop)
    progress = run.own.observe(0, run.now)
    assert (progress.told, progress.stopped) == ((Warned("one"), Warned("two")), stop)
    progress = run.own.observe(0, run.now)
    assert (progress.told, progress.stopped) == ((), None)
    run.says("b", stopped=Stopped.of(RunStopped("more")))
    assert run.own.observe(0, run.now).stopped is None, "the first is enough"


def beat(records: int, passed: int) -> Beat:
    counters = StageCounters()
    counters.passed, counters.peak_in_flight = passed, records
    shot = StageSnapshot(
        name="s",
        max_in_flight=4,
        queue_size=4,
        in_flight=records,
        queued=0,
        blocked=0,
        passed=passed,
        dead=0,
        waiting=0,
    )
    return Beat(Open(records), records, (shot,), {"s": StageAccount(counters, passed + records, 1)})


def test_what_replicas_count_is_added_up_also_of_those_that_are_gone() -> None:
    run = Cluster(9)
    for who, records, passed in (("a", 3, 10), ("b", 5, 20)):
        run.says(who, 1, beat=beat(records, passed))
    progress = run.own.observe(0, run.now + 1)
    assert (progress.open, progress.peak_open, progress.stages[0].passed) == (8, 8, 30)
    run.dies("a")
    run.says("c", beat=beat(2, 1))
    run.says("b", beat=beat(0, 25), leaving=True, held={})
    progress = run.own.observe(0, run.now + 2)
    assert (progress.open, progress.stages[0].passed) == (2, 26), "of those that are there, and have left"
    counters = progress.accounts["s"].counters
    assert (counters.passed, counters.cancelled) == (36, 3)
    assert progress.peak_open == 3, "one that died and the one in its place were never there together"
    assert Cluster(1).own.observe(0, 0.0).stages == ()


def test_what_is_counted_at_the_end_is_all_there_is() -> None:
    run = Cluster(1)
    for who in "abc":
        run.says(who, beat=beat(1, 1))
    run.leased("a")
    assert run.own.observe(0, run.now).accounts["s"].counters.passed == 3
    run.held["a"] = {}
    run.says("a", beat=beat(0, 9), committed=(ShardCommit(0, 1),))
    assert run.own.observe(0, run.now).accounts["s"].counters.passed == 11


# Limits


def asks(*, waiting: bool = True) -> dict[str, Asked]:
    return {"slow": Asked(0.0, waiting), "free": Asked(0.0, waiting)}


def test_shares_of_each_limit_sum_to_the_whole() -> None:
    run = Cluster(1)
    for who in "ab":
        run.says(who)
    one, other = (run.says(who, limits=asks()) for who in "ab")
    assert one.granted is not None
    assert other.granted is not None
    assert one.granted.shares == other.granted.shares == {"slow": 0.5, "free": 0.5}
    assert one.granted.seconds == LIFETIME > BEAT
    assert one.granted.at == run.now - 0.001
    assert run.says("a").granted is None


def test_nothing_is_granted_after_a_restart_while_shares_may_be_out() -> None:
    run = Cluster(1)
    run.says("a", limits=asks())
    run.restart(1)
    orders = run.says("a", limits=asks())
    assert orders.granted is not None
    assert orders.granted.shares == {"slow": 0.0, "free": 0.0}
    run.wait(LIFETIME, "a")
    orders = run.says("a", limits=asks())
    assert orders.granted is not None
    assert orders.granted.shares == {"slow": 1.0, "free": 1.0}


def test_the_share_of_one_that_died_comes_back_when_it_has_expired_and_of_one_that_left_at_once() -> None:
    run = Cluster(1)
    for who in "abc":
        run.says(who)
    for who in "abc":
        run.says(who, limits=asks())
    run.says("a", leaving=True)
    orders = run.says("b", limits=asks())
    assert orders.granted is not None
    assert orders.granted.shares["slow"] > 0.45
    run.dies("c")
    orders = run.says("b", limits=asks())
    assert orders.granted is not None
    assert orders.granted.shares["slow"] < 0.67
    run.wait(LIFETIME)
    orders = run.says("b", limits=asks())
    assert orders.granted is not None
    assert orders.granted.shares["slow"] == 1.0
