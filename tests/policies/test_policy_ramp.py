from hypothesis import given
from hypothesis import strategies as st

from stageflow.policies.ramp import Ramp


def after(ramp, refused, *, now=0.0, seconds=10.0):
    """Refusals that all ask for as long a pause; returns when it ends."""
    for _ in range(refused):
        ramp.refused(now + seconds, seconds)
    return now + seconds


def start_all(ramp, now, until, step=0.25):
    """Start whatever may start, up to that time; returns how many did so at which time."""
    started = {}
    while now < until and ramp.on:
        there = ramp.there(now)
        if there > 0 and ramp.on:
            ramp.take(there)
            started[now] = there
        now += step
    return started


def test_nothing_starts_before_the_pause_is_over_and_then_starts_double():
    ramp = Ramp()
    assert not ramp.on
    end = after(ramp, 5)
    assert ramp.on
    assert ramp.there(9.9) == 0
    assert ramp.wait(4.0) == 6.0
    assert list(start_all(ramp, end, end + 2.6).items()) == [
        (10.0, 1), (10.5, 2), (11.0, 4), (11.5, 8), (12.0, 16), (12.5, 32),
    ]  # fmt: skip


def test_one_refusal_alone_is_no_quota():
    ramp = Ramp()
    end = after(ramp, 1)
    assert ramp.wait(end) == 0.0
    assert not ramp.on


def test_the_next_round_feels_for_the_end_where_the_last_one_found_it():
    ramp = Ramp()
    end = after(ramp, 5)
    start_all(ramp, end, end + 3.25)  # 127
    end = after(ramp, 27, now=13.25)
    ramp.there(end)
    sizes = list(start_all(ramp, end, end + 8.0).values())
    assert sum(sizes[:12]) == 100
    assert max(sizes[:12]) == 12
    assert sizes[12:16] == [1, 2, 4, 8]


def test_without_refusals_it_ends_by_itself():
    ramp = Ramp()
    end = after(ramp, 5)
    start_all(ramp, end, end + 100.0)
    assert not ramp.on
    assert after(ramp, 5, now=200.0) == 210.0
    assert ramp.there(210.0) == 1, "nothing is known after so long"


def test_where_a_service_refuses_at_random_it_is_given_up_for_a_while():
    ramp, now, ramped = Ramp(), 0.0, []
    for round_ in range(40):
        now = after(ramp, 2 + round_ % 2, now=now)
        ramp.there(now)
        ramped.append(ramp.on)
        for _ in range(20 if round_ % 2 else 4):
            if ramp.on:
                now += ramp.wait(now)
                ramp.take()
    assert ramped[0]
    assert not any(ramped[-20:])


@given(st.lists(st.tuples(st.integers(0, 80), st.floats(0.01, 600)), max_size=30), st.floats(0, 2))
def test_whoever_waits_as_long_as_it_says_gets_on(pauses, idle):
    ramp, now = Ramp(), 0.0
    for refused, seconds in pauses:
        now = after(ramp, refused, now=now, seconds=seconds)
        for _ in range(20):
            if not ramp.on:
                break
            waits = 0
            while (seconds := ramp.wait(now)) > 0:
                now = max(now + seconds, ramp._next)  # a sum of floats may fall short
                waits += 1
                assert waits < 3
            if ramp.on:
                assert ramp.there(now) > 0
                ramp.take()
            now += idle
