import copy
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stageflow.errors import SettingError
from stageflow.policies import RateLimit
from stageflow.policies.rate import TokenBucket, TokenEstimate


@pytest.mark.parametrize("name", ["per_second", "per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", True, 10**400])
def test_rates_are_finite_and_above_zero(name, value):
    with pytest.raises(SettingError, match=f"{name} must be a number above 0"):
        RateLimit(**{name: value})


@pytest.mark.parametrize("value", [0, 0.5, float("nan"), float("inf"), "3", True])
def test_a_burst_is_at_least_one_call(value):
    with pytest.raises(SettingError, match="burst must be"):
        RateLimit(per_second=5, burst=value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"per_second": 1, "per_minute": 60}, {"burst": 5}, {"tokens_per_minute": 100, "burst": 5}],
    ids=repr,
)
def test_a_limit_limits_one_thing_in_one_way(settings):
    with pytest.raises(SettingError):
        RateLimit(**settings)


@pytest.mark.parametrize(
    ("settings", "rate", "burst"),
    [
        ({"per_second": 5}, 5, 5),
        ({"per_minute": 3000}, 50, 50),
        ({"per_minute": 6}, 0.1, 1),
        ({"per_second": 5, "burst": 1}, 5, 1),
        ({"tokens_per_minute": 60_000}, None, 1),
    ],
)
def test_a_burst_is_one_seconds_worth_and_at_least_one(settings, rate, burst):
    limit = RateLimit(**settings)
    assert limit.rate_per_second == rate
    assert limit.burst_calls == burst


def test_tokens_per_second():
    assert RateLimit(tokens_per_minute=90_000).tokens_per_second == 1500
    assert RateLimit(per_second=1).tokens_per_second is None


def test_a_limit_is_itself_and_no_other():
    one, other = RateLimit(per_second=5), RateLimit(per_second=5)
    assert one != other
    assert len({one, other, one}) == 2
    assert one != copy.copy(one)


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, 0.9), (1, math.inf), (1, math.nan)]
)
def test_a_bucket_refuses_what_is_out_of_range(rate, burst):
    with pytest.raises(SettingError):
        TokenBucket(rate, burst, 0.0)


def test_a_bucket_starts_full_and_then_grants_one_permit_after_the_other():
    bucket = TokenBucket(2.0, 3, now=100.0)
    assert [bucket.reserve(100.0) for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]
    assert bucket.reserve(101.5) == 0.5


def test_a_long_pause_fills_the_bucket_once():
    bucket = TokenBucket(1.0, 2, now=0.0)
    assert [bucket.reserve(1e9) for _ in range(4)] == [0, 0, 1, 2]


def test_a_clock_that_stands_still_grants_nothing_and_one_that_goes_back_stands_still():
    bucket = TokenBucket(1.0, 1, now=10.0)
    assert bucket.reserve(10.0) == 0
    assert [bucket.reserve(10.0) for _ in range(3)] == [1, 2, 3]
    assert bucket.reserve(0.0) == 4


def test_more_than_the_bucket_holds_is_granted_when_it_has_flowed_in():
    bucket = TokenBucket(100.0, 100, now=0.0)
    assert bucket.reserve(0.0, 250) == 1.5
    assert bucket.reserve(0.0, 50) == 2.0
    assert bucket.reserve(0.0, 0) == 2.0


def test_what_is_available():
    bucket = TokenBucket(2.0, 4, now=0.0)
    assert bucket.available(0.0) == 4
    bucket.reserve(0.0, 3)
    assert bucket.available(0.5) == 2
    bucket.reserve(0.5, 4)
    assert bucket.available(0.5) == -2
    assert bucket.available(1.5) == 0
    assert bucket.available(100.0) == 4


def test_a_lone_waiters_permit_goes_to_the_next():
    bucket = TokenBucket(1.0, 1, now=0.0)
    assert bucket.reserve(0.0) == 0
    for _ in range(5):
        assert bucket.reserve(0.0) == 1
        bucket.give_back()
    assert bucket.reserve(0.5) == 0.5


def test_a_permit_from_the_middle_comes_back_as_far_as_the_bucket_could_have_held_it():
    tight, wide = TokenBucket(1.0, 1, now=0.0), TokenBucket(1.0, 2, now=0.0)
    for bucket in (tight, wide):
        while bucket.reserve(0.0) < 3:
            pass
        bucket.give_back()
    assert tight.reserve(0.0) == 4  # at second 3 a permit starts that cannot be joined by another
    assert wide.reserve(0.0) == 3


def test_what_a_call_took_more_is_owed_and_what_it_took_less_is_there():
    bucket = TokenBucket(10.0, 100, now=0.0)
    bucket.reserve(0.0, 100)
    bucket.settle(50)
    assert bucket.available(0.0) == -50
    assert bucket.reserve(0.0, 0) == 5
    bucket = TokenBucket(10.0, 100, now=0.0)
    bucket.reserve(0.0, 100)
    bucket.settle(-40)
    assert bucket.reserve(0.0, 40) == 0
    bucket.settle(-1e9)
    assert bucket.available(0.0) == 100
    bucket.settle(30)
    assert bucket.available(0.0) == 70, "more was kept than the bucket holds"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 20)),
        st.tuples(st.just("jump"), st.floats(0, 1e6)),
        st.tuples(st.just("back"), st.floats(0, 100)),
        st.tuples(st.just("reserve"), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
    ),
    max_size=60,
)


def starts_after(steps, bucket):
    """When calls start, if each starts at the time it was granted or is cancelled before."""
    now, granted = 0.0, []
    for step, number in steps:
        if step == "reserve":
            granted += [now + bucket.reserve(now) for _ in range(number)]
        elif step == "cancel":
            waiting = [index for index, due in enumerate(granted) if due > now]
            if waiting:
                del granted[waiting[number % len(waiting)]]
                bucket.give_back()
        elif step == "back":
            bucket.available(now - number)
        else:
            now += number
    return granted


@given(st.floats(0.01, 100), st.floats(1, 20), STEPS)
@example(1.0, 1.0, [("reserve", 3), ("wait", 0.5), ("cancel", 0), ("reserve", 1)])
@example(1.0, 2.0, [("reserve", 5), ("cancel", 0), ("cancel", 0), ("cancel", 0), ("reserve", 4)])
@example(1.0, 5.0, [("reserve", 9), ("cancel", 0), ("cancel", 0), ("cancel", 0), ("wait", 3.9), ("reserve", 1)])
@example(1.0, 1.0, [("reserve", 2), ("cancel", 0), ("reserve", 2), ("cancel", 0), ("reserve", 1)])
@example(1.0, 1.0, [("reserve", 3), ("cancel", 1), ("cancel", 0), ("reserve", 2), ("cancel", 1), ("reserve", 2)])
def test_in_no_window_more_start_than_the_rate_and_one_burst(rate, burst, steps):
    starts = starts_after(steps, TokenBucket(rate, burst, 0.0))
    assert starts == sorted(starts), "somebody was overtaken"
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = rate * (starts[last] - starts[first]) + burst
            assert last - first + 1 <= allowed + 1e-6 * max(1.0, starts[last])


@given(st.floats(0.01, 100), st.floats(1, 20), st.integers(1, 200))
def test_a_crowd_is_admitted_as_fast_as_the_rate_allows(rate, burst, count):
    bucket = TokenBucket(rate, burst, 0.0)
    last = [bucket.reserve(0.0) for _ in range(count)][-1]
    assert last == pytest.approx(max(0.0, (count - burst) / rate))


@given(st.floats(1, 1e5), st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), min_size=1, max_size=50))
def test_over_time_what_was_used_counts_and_not_what_was_estimated(rate, calls):
    bucket = TokenBucket(rate, max(1.0, rate), 0.0)
    now = used = 0.0
    for estimate, actual in calls:
        now += bucket.reserve(now, estimate)
        bucket.settle(actual - estimate)
        used += actual
        assert used - actual <= rate * now + max(1.0, rate) + 1e-6 * max(1.0, used)


def test_an_estimate_is_the_mean_of_the_first_reports():
    estimate = TokenEstimate(first=1000)
    assert estimate.value == 1000
    estimate.add(100)
    assert estimate.value == 100
    estimate.add(300)
    assert estimate.value == 200
    assert TokenEstimate().value == 0


def test_an_estimate_follows_a_change():
    estimate = TokenEstimate()
    for _ in range(1000):
        estimate.add(100)
    for _ in range(60):
        estimate.add(500)
    assert 475 < estimate.value <= 500


@given(st.lists(st.floats(0, 1e12), min_size=1))
def test_an_estimate_stays_among_the_reports(reports):
    estimate = TokenEstimate(first=5)
    for tokens in reports:
        estimate.add(tokens)
    assert min(reports) * (1 - 1e-9) - 1e-9 <= estimate.value <= max(reports) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("tokens", [-1, math.nan, math.inf])
def test_a_broken_promise_of_the_caller_is_an_assertion(tokens):
    with pytest.raises(AssertionError):
        TokenEstimate().add(tokens)
    with pytest.raises(AssertionError):
        TokenBucket(1.0, 1, 0.0).reserve(0.0, tokens)


@pytest.mark.parametrize(
    ("rate", "burst"), [(-1, 1), (math.inf, 1), (math.nan, 1), (1, 0.9), (1, 0), (0, -1), (1, math.inf)]
)
def test_a_bucket_is_not_set_to_what_is_out_of_range(rate, burst):
    bucket = TokenBucket(1.0, 1, 0.0)
    with pytest.raises(SettingError):
        bucket.set_rate(0.0, rate, burst)


def test_a_rate_that_changes_keeps_what_is_there_as_far_as_there_is_room():
    bucket = TokenBucket(2.0, 10, now=0.0)
    bucket.set_rate(0.0, 1.0, 6)
    assert bucket.available(0.0) == 6
    bucket.set_rate(0.0, 4.0, 100)
    assert bucket.available(0.0) == 6, "a bucket that grows was filled"
    assert bucket.available(2.0) == 14
    bucket.set_rate(2.0, 1.0, 100)
    assert bucket.available(3.0) == 15, "the new rate was reckoned from before"


def test_what_is_owed_when_the_rate_changes_stays_owed():
    bucket = TokenBucket(10.0, 10, now=0.0)
    assert bucket.reserve(0.0, 40) == 3.0
    bucket.set_rate(1.0, 5.0, 5)
    assert bucket.available(1.0) == -20
    assert bucket.reserve(1.0, 0) == 4.0
    bucket.settle(5)
    assert bucket.reserve(1.0, 0) == 5.0


def test_at_a_rate_of_nothing_what_is_there_can_be_had_and_no_more_comes():
    bucket = TokenBucket(1.0, 2, now=0.0)
    bucket.set_rate(0.0, 0.0, 1)
    assert [bucket.reserve(0.0), bucket.reserve(0.0), bucket.reserve(1e9)] == [0.0, math.inf, math.inf]
    assert bucket.available(2e9) == 0, "what could not be had was reserved"
    bucket.set_rate(2e9, 0.5, 1)
    assert bucket.reserve(2e9) == 2.0
    bucket.set_rate(2e9, 0.0, 0)
    bucket.give_back(1.0)
    assert bucket.available(2e9) == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.sampled_from([0.0, 0.1, 0.5, 1.0])),
            st.tuples(st.just("wait"), st.floats(0, 20)),
            st.tuples(st.just("ask"), st.integers(1, 5)),
        ),
        max_size=60,
    ),
    st.floats(0.1, 100),
)
def test_with_rates_that_change_no_more_start_than_flowed_in_and_one_burst(steps, rate):
    """Whoever waits when the rate changes reserves anew."""
    bucket = TokenBucket(rate, max(1.0, rate), 0.0)
    now, share, flowed, waiting = 0.0, 1.0, 0.0, 0
    starts = []  # how much had flowed in by then
    due = math.inf  # of the one that has reserved

    def start_until(end):
        nonlocal waiting, due, now, flowed
        while waiting:
            if due == math.inf:
                due = now + bucket.reserve(now)
            if due > end:
                break
            flowed += (due - now) * rate * share
            now, due, waiting = due, math.inf, waiting - 1
            starts.append(flowed)
        if end > now:
            flowed += (end - now) * rate * share
            now = end

    for step, value in steps:
        if step == "ask":
            waiting += value
            start_until(now)
        elif step == "wait":
            start_until(now + value)
        else:
            if due < math.inf:
                bucket.give_back()
                due = math.inf
            share = value
            bucket.set_rate(now, rate * share, max(1.0, rate * share))
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            assert last - first + 1 <= starts[last] - starts[first] + max(1.0, rate) + 1e-6 * max(1.0, starts[last])


def test_a_bucket_that_shrinks_has_lost_what_it_has_no_room_for():
    bucket = TokenBucket(1.0, 10, now=0.0)
    bucket.set_rate(0.0, 1.0, 6)
    bucket.settle(2)
    assert bucket.available(0.0) == 4


def test_all_that_waited_when_the_rate_changed_give_back_all_of_it():
    bucket = TokenBucket(1.0, 1, now=0.0)
    assert [bucket.reserve(0.0) for _ in range(3)] == [0, 1, 2]
    bucket.set_rate(0.5, 0.1, 1)
    for _ in range(2):
        bucket.give_back()
    assert bucket.available(0.5) == 0.5
