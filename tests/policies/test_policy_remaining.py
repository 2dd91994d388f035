from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.policies.remaining import Remaining


def heard(began=0.0, remaining=10.0, reset=60.0, limit=100.0, now=None, quota=None):
    quota = quota or Remaining()
    quota.heed(began if now is None else now, began=began, remaining=remaining, reset=reset, limit=limit)
    return quota


def test_before_anything_is_said_nothing_is_held_back():
    quota = Remaining()
    assert quota.there(5.0) == inf
    assert quota.wait(5.0) == 0.0
    quota.take(5.0)
    quota.give_back()


def test_no_more_start_than_remain_until_the_reset_and_then_no_more_than_all():
    quota = heard(remaining=2, limit=3)
    for _ in range(2):
        assert quota.wait(1.0) == 0.0
        quota.take(1.0)
    assert quota.wait(1.0) > 59.0, "what was begun counts, and that after the reset, too"
    quota.give_back()
    assert quota.wait(1.0) == 0.0
    assert quota.wait(61.0) == 0.0


def test_what_was_begun_after_the_request_is_not_in_its_figure():
    quota = heard(began=0.0, remaining=50)
    for at in (1.0, 2.0, 3.0, 4.0):
        quota.take(at)
    heard(began=2.0, remaining=48, now=5.0, quota=quota)
    assert quota.there(5.0) == 46, "those of 3 and 4"
    heard(began=1.0, remaining=49, now=6.0, quota=quota)
    assert quota.there(6.0) == 46, "older news"
    heard(began=4.0, remaining=46, now=7.0, quota=quota)
    assert quota.there(7.0) == 46


def test_requests_of_one_moment_count_once_each():
    quota = heard(began=0.0, remaining=50)
    for _ in range(3):
        quota.take(1.0)
    for left in (48, 47, 49):
        heard(began=1.0, remaining=left, now=2.0, quota=quota)
    assert quota.there(2.0) == 47


def test_what_others_use_leaves_the_own_part_of_what_remains():
    quota, left = heard(remaining=1000, limit=1000), 1000
    for second in range(1, 101):
        quota.take(float(second))
        left -= 4
        heard(began=float(second), remaining=left, now=second + 0.5, limit=1000, quota=quota)
    assert quota.part == pytest.approx(0.25, rel=0.02)
    assert quota.there(100.6) == pytest.approx(left / 4, rel=0.02)


def test_a_share_that_is_known_holds_at_once():
    quota = heard(remaining=40)
    quota.share = 0.25
    assert quota.there(1.0) == 10
    assert quota.wait(1.0, 11.0) > 0


def test_a_reset_far_away_is_no_pace_to_keep():
    assert heard(remaining=0, reset=3600.0).there(1.0) == inf


def test_what_is_more_than_all_of_the_limit_starts_with_a_whole_one():
    quota = heard(remaining=100, limit=100)
    assert quota.wait(1.0, 1000.0) == 0.0
    assert heard(remaining=99, limit=100).wait(1.0, 1000.0) > 0.0


def test_where_nothing_new_is_heard_for_as_long_again_nothing_is_known():
    quota = heard(remaining=0, reset=10.0, limit=2)
    for _ in range(2):
        quota.take(11.0)
    assert 0 < quota.wait(11.0) < 11.0
    assert quota.there(11.0 + quota.wait(11.0)) == inf


NEWS = st.tuples(
    st.floats(0, 5), st.floats(0, 3), st.integers(0, 50), st.floats(0, 30), st.sampled_from([None, 5.0, 50.0])
)


@given(st.lists(st.one_of(NEWS, st.just(None)), max_size=60), st.floats(0.01, 1.0))
def test_whatever_is_heard_no_more_start_than_the_newest_figure_allows(course, share):
    """And whoever waits as long as it says gets on."""
    quota, now, newest, begun = Remaining(), 0.0, -1.0, []
    quota.share = share
    left, reset = inf, -1.0
    for step in course:
        if step is None:
            for _ in range(5):
                if quota.wait(now) > 0:
                    break
                quota.take(now)
                begun.append(now)
                if now < reset:
                    assert sum(at > newest for at in begun) <= left + 1e-9
            else:
                continue
            waits = 0
            while (seconds := quota.wait(now)) > 0:
                now, waits = now + seconds + 1e-9, waits + 1
                assert waits < 4
        else:
            passes, ago, remaining, until, limit = step
            now += passes
            began = max(0.0, now - ago)
            quota.heed(now, began=began, remaining=remaining, reset=until, limit=limit)
            if began > newest:
                newest, left, reset = began, remaining, began + until
            elif began == newest:
                left, reset = min(left, remaining), began + until
