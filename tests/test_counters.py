"""What is counted: durations within nine per cent, and calls that did not wait."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.counters import COUNTED_TOGETHER, INSTANT, Histogram, StageCounters

SECONDS = st.floats(INSTANT, 10_000.0, allow_nan=False)
DURATIONS = st.one_of(SECONDS, st.floats(0.0, INSTANT, exclude_max=True), st.sampled_from([1.0, 2.0, 0.5, 0.001]))


def histogram(durations: list[float]) -> Histogram:
    made = Histogram()
    for seconds in durations:
        made.add(seconds)
    return made


def test_an_empty_histogram_has_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


@given(SECONDS)
def test_one_duration_comes_back_within_nine_per_cent(seconds: float) -> None:
    for q in (0.0, 0.5, 0.95, 1.0):
        assert histogram([seconds]).quantile(q) == pytest.approx(seconds, rel=0.09)


@given(st.lists(DURATIONS, min_size=1, max_size=60), st.sampled_from([0.01, 0.25, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_that_of_the_sorted_durations_within_nine_per_cent(durations: list[float], q: float) -> None:
    found = histogram(durations).quantile(q)
    exact = sorted(durations)[max(1, ceil(round(q * len(durations), 9))) - 1]
    assert found is not None
    assert found == (pytest.approx(exact, rel=0.09) if exact >= INSTANT else 0.0)


@given(st.lists(DURATIONS, min_size=1, max_size=60))
def test_quantiles_grow_with_their_share(durations: list[float]) -> None:
    made = histogram(durations)
    found = [made.quantile(q / 20) or 0.0 for q in range(21)]
    assert found == sorted(found)


def test_the_longest_timeout_there_could_be_is_counted() -> None:
    week = 7 * 24 * 3600.0
    assert histogram([week]).quantile(1.0) == pytest.approx(week, rel=0.09)


def test_what_did_not_wait_is_counted_many_at_a_time() -> None:
    counters = StageCounters()
    counters.count_instant(10, 0.00005)
    counters.count_call(2.0)
    assert counters.passed == 10  # what became of a call is counted apart
    assert counters.busy_seconds == 2.00005
    assert counters.latency.quantile(0.5) == 0.0
    assert counters.latency.quantile(1.0) == pytest.approx(2.0, rel=0.09)


@given(st.lists(DURATIONS, min_size=1, max_size=60), st.sampled_from([0.01, 0.25, 0.5, 0.95, 0.99, 1.0]))
def test_many_durations_are_counted_at_once_as_well_as_one_by_one(durations: list[float], q: float) -> None:
    made = Histogram()
    made.add_all(list(durations))
    exact = sorted(durations)[max(1, ceil(round(q * len(durations), 9))) - 1]
    assert made.quantile(q) == (pytest.approx(exact, rel=0.09) if exact >= INSTANT else 0.0)
    assert made.instant + sum(made.counts) == len(durations)


def test_calls_are_counted_before_they_are_many_and_whenever_somebody_asks() -> None:
    counters = StageCounters()
    for _ in range(COUNTED_TOGETHER - 1):
        counters.count_call(0.5)
    assert len(counters.calls) == COUNTED_TOGETHER - 1
    counters.count_call(0.5)
    assert counters.calls == []
    counters.count_call(0.5)
    assert counters.busy_seconds == (COUNTED_TOGETHER + 1) / 2
    assert counters.latency.quantile(1.0) == pytest.approx(0.5, rel=0.09)


def test_what_others_counted_is_added() -> None:
    one, other = StageCounters(), StageCounters()
    one.count_call(1.0)
    one.passed = 3
    for seconds in (1.0, 4.0, 4.0):
        other.count_call(seconds)
    other.passed, other.retries = 2, 1
    one.add(other)
    assert (one.passed, one.retries, one.busy_seconds) == (5, 1, 10.0)
    assert one.latency.quantile(0.5) == pytest.approx(1.0, rel=0.09)
    assert one.latency.quantile(0.75) == pytest.approx(4.0, rel=0.09)
