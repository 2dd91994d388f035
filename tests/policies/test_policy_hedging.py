"""When a call is made a second time, in numbers alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.errors import SettingError
from stageflow.policies.hedging import Hedge, Hedging


def learned(hedge: Hedge, durations: list[float]) -> Hedging:
    hedging = Hedging(hedge)
    for seconds in durations:
        hedging.begin()
        hedging.end(seconds)
    return hedging


@pytest.mark.parametrize("extra", [0, -0.1, 1.1, True, "5%", float("nan")])
def test_extra_is_a_share(extra: object) -> None:
    with pytest.raises(SettingError, match="extra must be a share"):
        Hedge(extra=extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantile", [0.4, 1, 1.5, None, float("inf")])
def test_the_quantile_is_in_range(quantile: object) -> None:
    with pytest.raises(SettingError, match="quantile must be a number"):
        Hedge(quantile=quantile)  # type: ignore[arg-type]


def test_nothing_is_made_twice_while_too_little_is_known() -> None:
    assert learned(Hedge(), [1.0] * 99).begin() is None
    assert learned(Hedge(), [1.0] * 100).begin() is not None


def test_a_call_takes_long_beyond_the_quantile() -> None:
    patience = learned(Hedge(extra=0.5), [n / 100 for n in range(1, 101)]).begin()
    assert patience == pytest.approx(0.95, rel=0.09)


def test_with_few_extra_calls_only_the_slowest_are_made_twice() -> None:
    patience = learned(Hedge(extra=0.1), [n / 1000 for n in range(1, 1001)]).begin()
    assert patience == pytest.approx(0.95, rel=0.09)
    patience = learned(Hedge(extra=0.01), [n / 1000 for n in range(1, 1001)]).begin()
    assert patience == pytest.approx(0.992, rel=0.09)


def test_what_was_long_ago_is_forgotten() -> None:
    hedging = learned(Hedge(), [1.0] * 1000)
    for _ in range(2000):
        hedging.begin()
        hedging.end(4.0)
    assert hedging.begin() == pytest.approx(4.0, rel=0.091)


@given(st.floats(0.001, 1.0), st.lists(st.booleans(), max_size=300))
def test_the_extra_calls_never_exceed_their_share(extra: float, wanted: list[bool]) -> None:
    hedging = Hedging(Hedge(extra=extra))
    for slow in wanted:
        hedging.begin()
        if slow:
            hedging.take()
        assert hedging.hedges <= extra * hedging.calls


def test_what_was_not_used_is_saved_up_for_a_while_only() -> None:
    hedging = learned(Hedge(extra=0.05), [1.0] * 50_000)
    assert sum(hedging.take() for _ in range(50_000)) == 50  # of the last thousand calls
    for _ in range(100):
        hedging.begin()
    assert sum(hedging.take() for _ in range(100)) == 5
    few = learned(Hedge(extra=0.0005), [1.0] * 50_000)
    assert few.take()
    assert not few.take()


def test_where_calls_take_the_same_time_none_takes_long() -> None:
    for seconds in (0.013, 0.9, 1.0, 1.08, 77.7):
        patience = learned(Hedge(), [seconds] * 100).begin()
        assert patience is not None
        assert seconds <= patience <= 1.1 * seconds


def test_a_tail_of_two_in_a_hundred_is_cut() -> None:
    """The arithmetic of a service with 2 % of calls fifty times slower, with 3 % more calls at the most."""
    chance = random.Random(7)
    hedging = Hedging(Hedge(extra=0.03))

    def once() -> float:
        return chance.uniform(0.9, 1.1) * (50 if chance.random() < 0.02 else 1)

    plain, cut = [], []
    for _ in range(20_000):
        first, patience = once(), hedging.begin()
        seconds = first
        if patience is not None and first > patience and hedging.take():
            seconds = min(first, patience + once())
        hedging.end(seconds)
        plain.append(first)
        cut.append(seconds)
    at = int(0.995 * len(plain))
    assert sorted(plain)[at] > 3 * sorted(cut)[at]
    assert hedging.hedges <= 0.03 * hedging.calls
